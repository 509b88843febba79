"""The run as text in a terminal."""

import math
import os
import shutil
import time
import unicodedata

from visual.colors import THEMES, mix
from visual.controls import SECONDS
from visual.items import shorten
from visual.record import MASKED, pieces
from visual.typesetting import appearance, break_lines


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


def escaped(text, ink, paper):
    """The text in these colours, (red, green, blue) or None, for a terminal."""
    for layer, color in ((38, ink), (48, paper)):
        if color is not None:
            text = "\x1b[{};2;{};{};{}m{}".format(layer, *color, text)
    return text + "\x1b[0m"


def text_frame(record, at, view, theme, columns, colors):
    """The text after `at` steps as lines for a terminal."""
    cells, row = Cells(), record.row(at)
    spots, n_lines = break_lines(pieces(record, -1), columns, cells, 1)
    lines, ends = [""] * n_lines, [0] * n_lines
    for spot in spots:
        text, ink, paper = appearance(record, spot.token, at, view, theme)
        shown = spot.text if text is None else text
        if record.texts[row, spot.token] == MASKED and not (colors and shown):
            shown, ink, paper = "▁" * int(spot.w), mix(theme.page, theme.ink, 0.4), None
        shown = shorten(cells, shown, 1, spot.w)
        shown += " " * int(spot.w - cells.width(shown, 1))
        if colors:
            shown = escaped(shown, ink, paper)
        lines[spot.line] += " " * int(spot.x - ends[spot.line]) + shown
        ends[spot.line] = spot.x + spot.w
    return lines


def status_line(record, step):
    """Where a run is after `step` steps, in one line."""
    line = f"step {step}/{record.n_steps}  t {1 - step / record.n_steps:.2f}"
    line += f"  masked {record.masked(step)}  network calls {record.calls[step]:.0f}"
    if record.seconds:
        line += f"  {record.seconds * record.calls[step] / max(1, record.calls[-1]):.2f} s"
    return line


def frame(record, at, state, columns, colors, room=None):
    """What is to be seen of a run or a race as lines; `room`: lines for each text (None: all)."""
    lines = []
    for lane in record.lanes:
        lines.append(shorten(Cells(), status_line(lane, math.floor(at)), 1, columns))
        lines += text_frame(lane, at, state.view, THEMES[state.theme], columns, colors)[:room]
        lines.append("")
    return lines


def play_in_terminal(record, state, out, seconds=SECONDS):
    """Animate the run in a terminal; into a file or a pipe, print five moments of it."""
    window, animated = shutil.get_terminal_size(), out.isatty()
    columns = max(8, min(96, window.columns - 2))
    if not animated:
        for i in range(5):
            lines = frame(record, record.n_steps * i / 4, state, columns, colors=False)
            print("\n".join(lines), file=out)
        return
    if os.name == "nt":
        os.system("")  # makes a Windows console understand escapes
    colors, n_frames, height = "NO_COLOR" not in os.environ, max(2, int(seconds * 12)), 0
    room = max(1, window.lines // len(record.lanes) - 3)
    for i in range(n_frames):
        at = record.n_steps * i / (n_frames - 1)
        lines = frame(record, at, state, columns, colors, room if i < n_frames - 1 else None)
        back = f"\x1b[{height}A" if height else ""
        out.write(back + "".join(f"\r\x1b[K{line}\n" for line in lines))
        out.flush()
        height = len(lines)
        time.sleep(seconds / n_frames)
