"""The run as text in a terminal."""

import os
import shutil
import time
import unicodedata

from visual.colors import THEMES
from visual.controls import END, SECONDS
from visual.items import shorten
from visual.record import facts, pieces
from visual.typesetting import appearance, break_lines


class Cells:
    """The fonts of a terminal: everything is measured in cells."""

    def width(self, text, size):
        """Cells that a terminal uses for a text."""
        wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
        return len(text) + wide - sum(unicodedata.category(c) in ("Mn", "Me", "Cf") for c in text)


CELLS = Cells()


def frame(lanes, at, state, columns, colors):
    """What is to be seen of the lanes at a moment of the clock, as lines."""
    lines, theme = [], THEMES[state.theme]

    def painted(text, ink, paper=None):
        code = "38;2;{};{};{};48;2;{};{};{}".format(*ink, *(paper or theme.page))
        return f"\x1b[{code}m{text}\x1b[0m" if colors and text else text

    for lane in lanes:
        n = lane.at(at)
        told = "  ".join(" ".join(fact) for fact in facts(lane, n, alone=len(lanes) == 1))
        lines.append(painted(shorten(CELLS, told, 1, columns).ljust(columns), theme.faint))
        looks = appearance(lane, n, at, state.view, theme)
        spots, n_lines = break_lines(pieces(lane, n), columns, CELLS, 1)
        texts, ends = [""] * n_lines, [0] * n_lines
        for spot in spots:
            text, ink, paper = looks[spot.token]
            shown = spot.text or shorten(CELLS, text or "", 1, spot.w)
            if spot.text is None and not text:
                shown, ink = "▁" * int(spot.w) * (not lane.causal), theme.faint
            space = " " * int(spot.x - ends[spot.line])
            shown += " " * int(spot.w - CELLS.width(shown, 1))
            texts[spot.line] += painted(space, ink) + painted(shown, ink, paper)
            ends[spot.line] = spot.x + spot.w
        rest = [painted(" " * int(columns - end), theme.ink) for end in ends]
        lines += [*map(str.__add__, texts, rest), ""]
    return lines if colors else [line.rstrip() for line in lines]


def play_in_terminal(lanes, state, out, seconds=SECONDS):
    """Animate the run in a terminal; into a file or a pipe, print five moments of it."""
    window, animated = shutil.get_terminal_size(), out.isatty()
    columns = max(8, min(96, window.columns - 2))
    if os.name == "nt":
        os.system("")  # makes a Windows console understand escapes
    colors = animated and "NO_COLOR" not in os.environ
    n_frames, height = max(2, int(seconds * 12)) if animated else 5, 0
    for i in range(n_frames):
        lines = frame(lanes, END * i / (n_frames - 1), state, columns, colors)
        if animated and i < n_frames - 1:  # what is higher than the window cannot be overwritten
            lines = lines[: window.lines - 2]
        out.write(f"\x1b[{height}A\x1b[J" * (height > 0))
        out.write("".join(f"{line}\n" for line in lines))
        out.flush()
        height = len(lines) * animated
        time.sleep(seconds / n_frames * animated)
