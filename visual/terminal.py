"""The run as text in a terminal."""

import os
import shutil
import time
import unicodedata

from visual.colors import THEMES, mix
from visual.controls import SECONDS
from visual.items import shorten
from visual.record import MASKED, facts, pieces
from visual.typesetting import appearance, break_lines


class Cells:
    """The fonts of a terminal: everything is measured in cells."""

    def width(self, text, size):
        """Cells that a terminal uses for a text."""
        wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
        return len(text) + wide - sum(unicodedata.category(c) in ("Mn", "Me", "Cf") for c in text)


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
            code = "38;2;{};{};{}".format(*ink) + (";48;2;{};{};{}".format(*paper) if paper else "")
            shown = f"\x1b[{code}m{shown}\x1b[0m"
        lines[spot.line] += " " * int(spot.x - ends[spot.line]) + shown
        ends[spot.line] = spot.x + spot.w
    return lines


def frame(record, at, state, columns, colors, room=None):
    """What is to be seen of a run or a race as lines; `room`: lines for each text (None: all)."""
    lines = []
    for lane in record.lanes:
        status = "  ".join(f"{label} {value}" for label, value in facts(record, lane, at))
        lines.append(shorten(Cells(), status, 1, columns))
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
