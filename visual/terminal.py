"""The run as text in a terminal."""

import math
import os
import shutil
import time
import unicodedata

from visual.controls import SECONDS
from visual.items import THEMES, mix, shorten
from visual.recording import MASKED
from visual.typesetting import break_lines, token_look


class Cells:
    """The fonts of a terminal: everything is measured in cells."""

    def width(self, text, size):
        """Cells that a terminal uses for a text."""
        return sum(map(self.cell, text))

    @staticmethod
    def cell(character):
        if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Me"):
            return 0
        return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def text_frame(record, at, view, theme, columns, colors):
    """The text after `at` steps as lines for a terminal."""
    cells = Cells()
    spots, n_lines = break_lines(record.pieces, columns, cells, 1)
    lines, ends, row = [""] * n_lines, [0] * n_lines, record.row(at)
    for spot in spots:
        look = token_look(record, spot.token, at, view, theme)
        shown = spot.text if look.text is None else look.text
        if record.states[row, spot.token] == MASKED and not (colors and shown):
            shown = "▁" * int(spot.w)
        shown = shorten(cells, shown, 1, spot.w)
        shown += " " * int(spot.w - cells.width(shown, 1))
        if colors:
            ink = look.ink if shown.strip("▁") else mix(theme.page, theme.ink, 0.4)
            paper = look.paper if shown.strip("▁") else None
            shown = f"\x1b[38;2;{ink[0]};{ink[1]};{ink[2]}m{shown}\x1b[0m"
            if paper is not None:
                shown = f"\x1b[48;2;{paper[0]};{paper[1]};{paper[2]}m{shown}"
        lines[spot.line] += " " * int(spot.x - ends[spot.line]) + shown
        ends[spot.line] = spot.x + spot.w
    return lines


def terminal_facts(record, step):
    """Where a run is after `step` steps, in one line."""
    line = f"step {step}/{record.n_steps}  t {1 - step / record.n_steps:.2f}"
    line += f"  masked {record.masked(step)}  network calls {record.calls[step]:.0f}"
    if record.seconds:
        line += f"  {record.seconds * record.calls[step] / max(1, record.calls[-1]):.2f} s"
    return line


def understand_escapes():
    """Make a Windows console understand what moves its cursor and colours its text."""
    if os.name == "nt":
        os.system("")


def play_in_terminal(record, state, out, seconds=SECONDS):
    """Animate the run in a terminal; into a file or a pipe, print five moments of it."""
    window, theme = shutil.get_terminal_size((80, 24)), THEMES[state.theme]
    columns = max(8, min(96, window.columns - 2))
    if not out.isatty():
        for i in range(5):
            at = math.floor(record.n_steps * i / 4)
            for lane in record.lanes:
                now = math.floor(record.lane_at(lane, at))
                print(terminal_facts(lane, now), file=out)
                lines = text_frame(lane, now, state.view, theme, columns, False)
                print("\n".join(lines), end="\n\n", file=out)
        return
    understand_escapes()
    colors, n_frames, height = "NO_COLOR" not in os.environ, max(2, int(seconds * 12)), 0
    room = max(1, window.lines // len(record.lanes) - 3)
    for i in range(n_frames):
        at = record.n_steps * i / (n_frames - 1)
        lines = []
        for lane in record.lanes:
            now = record.lane_at(lane, at)
            text = text_frame(lane, now, state.view, theme, columns, colors)
            lines += text[:room]
            lines += ["", shorten(Cells(), terminal_facts(lane, math.floor(now)), 1, columns)]
        back = f"\x1b[{height}A" if height else ""
        out.write(back + "".join(f"\r\x1b[K{line}\n" for line in lines))
        out.flush()
        height = len(lines)
        time.sleep(seconds / n_frames)
    for lane in record.lanes:
        text = text_frame(lane, lane.n_steps, state.view, theme, columns, colors)
        if len(text) > room:  # so far its end was not to be seen
            out.write("\n" + "\n".join(text) + "\n")
