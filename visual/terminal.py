"""The run as text in a terminal."""

import os
import shutil
import time
import unicodedata

from visual.colors import THEMES, mix
from visual.controls import END, SECONDS
from visual.items import shorten
from visual.record import MASKED, facts, pieces
from visual.typesetting import appearance, break_lines, in_text


class Cells:
    """The fonts of a terminal: everything is measured in cells."""

    def width(self, text, size):
        """Cells that a terminal uses for a text."""
        wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
        return len(text) + wide - sum(unicodedata.category(c) in ("Mn", "Me", "Cf") for c in text)


def text_frame(record, at, view, theme, columns, colors):
    """The text at a moment of the clock as lines for a terminal."""
    cells, n = Cells(), record.at(at)
    spots, n_lines = break_lines(pieces(record, -1), columns, cells, 1)
    lines, ends, row, shown_now = [""] * n_lines, [0] * n_lines, record.rows[n], pieces(record, n)
    looks = appearance(record, n, at, view, theme)
    for spot in spots:
        i, shown = spot.token, spot.text
        text, ink, paper = looks[i]
        if row.text[i] == MASKED:
            shown = text if colors and text else "▁" * int(spot.w) * (not record.causal)
            ink = ink if colors and text else mix(theme.page, theme.ink, 0.4)
        elif row.text[i] != record.rows[-1].text[i]:  # it is taken back later
            shown = in_text(shown_now[i])
        shown = shorten(cells, shown, 1, spot.w)
        shown += " " * int(spot.w - cells.width(shown, 1))
        if colors:
            shown = colored(shown, ink, paper or theme.page)
        space = " " * int(spot.x - ends[spot.line])
        lines[spot.line] += (colored(space, ink, theme.page) if colors else space) + shown
        ends[spot.line] = spot.x + spot.w
    if colors:  # on the page's own colour, whatever the terminal's is
        rest = [colored(" " * int(columns - end), theme.ink, theme.page) for end in ends]
        lines = [line + end for line, end in zip(lines, rest, strict=True)]
    return lines


def colored(text, ink, paper):
    """A text with the escapes that colour it."""
    code = "38;2;{};{};{};48;2;{};{};{}".format(*ink, *paper)
    return f"\x1b[{code}m{text}\x1b[0m" if text else ""


def frame(lanes, at, state, columns, colors, room=None):
    """What is to be seen of the lanes as lines; `room`: lines for each text (None: all)."""
    lines, theme = [], THEMES[state.theme]
    for lane in lanes:
        told = facts(lane, lane.at(at), alone=len(lanes) == 1)
        status = shorten(
            Cells(), "  ".join(f"{label} {value}" for label, value in told), 1, columns
        )
        lines.append(colored(f"{status:<{columns}}", theme.faint, theme.page) if colors else status)
        lines += text_frame(lane, at, state.view, theme, columns, colors)[:room]
        lines.append("")
    return lines


def play_in_terminal(lanes, state, out, seconds=SECONDS):
    """Animate the run in a terminal; into a file or a pipe, print five moments of it."""
    window, animated = shutil.get_terminal_size(), out.isatty()
    columns = max(8, min(96, window.columns - 2))
    if not animated:
        for i in range(5):
            lines = frame(lanes, END if i == 4 else i / 4, state, columns, colors=False)
            print("\n".join(lines), file=out)
        return
    if os.name == "nt":
        os.system("")  # makes a Windows console understand escapes
    colors, n_frames, height = "NO_COLOR" not in os.environ, max(2, int(seconds * 12)), 0
    room = max(1, window.lines // len(lanes) - 3)
    for i in range(n_frames):
        at = END * i / (n_frames - 1)
        lines = frame(lanes, at, state, columns, colors, room if i < n_frames - 1 else None)
        back = f"\x1b[{height}A" if height else ""
        out.write(back + "".join(f"\r\x1b[K{line}\n" for line in lines))
        out.flush()
        height = len(lines)
        time.sleep(seconds / n_frames)
