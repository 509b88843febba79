"""The text of a run, set in lines: which token stands where, and how it looks after each step.

A token keeps its place from the first step to the last, so that nothing jumps while it is read.
"""

import math
import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

from visual.items import Item, mix, probability_color, readable_on, shorten, viridis
from visual.recording import MASKED, candidates


class Spot(NamedTuple):
    """A token, or as much of it as stands on one line. x, w in pixels."""

    token: int
    text: str
    line: int
    x: float
    w: float
    starts: bool = True  # nothing touches it on its left: it begins a word or a line
    ends: bool = True


class Run(NamedTuple):
    """A part of a token that stays on one line."""

    token: int
    text: str
    gap: bool  # a space comes before it
    ends_line: bool
    w: float


def visible(character):
    """A character as something that one can see."""
    if character in "\n\t\r":
        return {"\n": "↵", "\t": "⇥", "\r": "↤"}[character]
    if unicodedata.category(character) in ("Cc", "Cs"):
        return f"\\x{ord(character):02x}"
    return character


def token_runs(token, piece, fonts, size):
    """Cut a token's text at line breaks. A leading space becomes a gap."""
    gap = len(piece) > 1 and piece[0] == " " and not piece[1].isspace()
    runs = []
    for part in re.findall(r"[^\n]+|\n", piece[1:] if gap else piece):
        text = "".join(map(visible, part))
        if unicodedata.combining(text[0]):
            text = "◌" + text  # a mark with nothing to stand on
        w = max(fonts.width(text, size), fonts.width("·", size))
        runs.append(Run(token, text, gap and not runs, part == "\n", w))
    return runs


def words_of(runs):
    """Group runs into words: lists that a line break should not tear apart."""
    word = []
    for run in runs:
        if run.gap and word:
            yield word
            word = []
        word.append(run)
        if run.ends_line:
            yield word
            word = []
    if word:
        yield word


def split_run(run, width, fonts, size):
    """A run that is wider than a line -> runs that are not (except for single characters)."""
    parts, text = [], ""
    for character in run.text:
        whole = unicodedata.combining(character) or character == "\u200d"
        if text and not whole and fonts.width(text + character, size) > width:
            parts.append(text)
            text = ""
        text += character
    parts.append(text)
    least = fonts.width("·", size)
    return [
        Run(
            run.token,
            part,
            run.gap and i == 0,
            run.ends_line and i == len(parts) - 1,
            min(width, max(least, fonts.width(part, size))),
        )
        for i, part in enumerate(parts)
    ]


def break_lines(pieces, width, fonts, size):
    """Set the text in lines of `width` pixels. Returns (list of Spot, number of lines)."""
    space = fonts.width(" ", size)
    runs = [run for i, piece in enumerate(pieces) for run in token_runs(i, piece, fonts, size)]
    spots, x, line = [], 0.0, 0
    for word in words_of(runs):
        total = sum(run.w for run in word)
        if word[0].gap and x > 0:
            x += space
        if x > 0 and x + total > width and (total <= width or x + word[0].w > width):
            x, line = 0.0, line + 1
        for whole in word:
            parts = [whole] if whole.w <= width else split_run(whole, width, fonts, size)
            for run in parts:
                if x > 0 and x + run.w > width:
                    x, line = 0.0, line + 1
                touches = spots and spots[-1].line == line and not (run.gap and run is parts[0])
                if touches:
                    spots[-1] = spots[-1]._replace(ends=False)
                spots.append(Spot(run.token, run.text, line, x, run.w, starts=not touches))
                x += run.w
                if run.ends_line:
                    x, line = 0.0, line + 1
    return spots, 1 + max((spot.line for spot in spots), default=0)


def live_grid(pieces, width, fonts, size):
    """Tokens in equal cells: so nothing moves while it is not known how long they will be."""
    gap = fonts.width(" ", size)
    cell = min(width, fonts.width("abcdef", size))
    columns = max(1, int((width + gap) / (cell + gap)))
    spots = []
    for i, piece in enumerate(pieces):
        text = shorten(fonts, "".join(map(visible, piece.removeprefix(" "))), size, cell)
        spots.append(Spot(i, text, i // columns, i % columns * (cell + gap), cell))
    return spots, -(-len(pieces) // columns)


def line_height(fonts, size):
    """Pixels from one line of text to the next."""
    return math.ceil(fonts.height(size) * 1.42)


@lru_cache(maxsize=256)
def set_text(pieces, live, width, height, largest, smallest, fonts):
    """The text in the largest letters with which it fits into the panel.

    Returns (size, spots, number of lines). In the smallest letters it may not fit all the same.
    """
    setter = live_grid if live else break_lines

    def attempt(size):
        spots, n_lines = setter(pieces, width, fonts, size)
        return size, spots, n_lines, n_lines * line_height(fonts, size) <= height

    low, high = smallest, max(smallest, largest)
    best = attempt(low)
    while low < high:
        middle = (low + high + 1) // 2
        tried = attempt(middle)
        if tried[-1]:
            best, low = tried, middle
        else:
            high = middle - 1
    return best[:3]


def flash_of(record, i, at):
    """How fresh a token is: 1 when it has just appeared, soon 0, which a given token always is."""
    since = record.since[record.row(at), i]
    fade = 3 if record.live else max(1.0, record.n_steps / 16)  # in steps
    return max(0.0, 1 - (at - since) / fade) ** 2 if since > 0 else 0.0


class Look(NamedTuple):
    """How a token looks: its text (None: the final one), ink, and paper (None: the page's)."""

    text: str | None
    ink: tuple
    paper: tuple | None


def token_look(record, i, at, view, theme):
    """How token i looks after `at` steps."""
    s = record.row(at)
    token, since = record.states[s, i], record.since[s, i]
    if token == MASKED:
        guess = candidates(record, i, at)[:1] if view == "belief" else []
        if not guess:
            return Look("", theme.ink, theme.mask)
        name, p = guess[0]
        # 15 % of the way at p = 0: something to see, however unsure the model is
        return Look(shown_name(name), mix(theme.mask, theme.ink, 0.15 + 0.85 * p), theme.mask)
    final = token == record.states[-1, i]
    text = None if final else shown_name(record.names[token])  # some samplers take tokens back
    character = slice(i, record.last[i] + 1)
    if final and (record.states[s, character] != record.states[-1, character]).any():
        text = "\ufffd"  # a part of its character is missing
    flash = flash_of(record, i, at)
    paper = mix(theme.page, theme.accent, 0.55 * flash) if flash > 0.01 else None
    if since == 0 or record.live:
        return Look(text, theme.ink, paper)
    if view == "order":
        paper = mix(viridis(since / record.n_steps), (255, 255, 255), 0.6 * flash)
        return Look(text, readable_on(paper), paper)
    if view == "belief":
        return Look(text, mix(theme.ink, theme.page, 0.25), paper)
    ink = probability_color(record.probability[i], theme) if final else theme.faint
    return Look(text, mix(ink, theme.ink, flash), paper)


def shown_name(name):
    """A candidate's name as it looks in a text: without its leading space."""
    return "".join(map(visible, name.removeprefix(" ") or name))


def fitted_text(style, text, box, size, color, part):
    """A text in box (x, y, w, h): somewhat smaller, and cut off, if it is too wide."""
    x, y, w, h = box
    smallest = max(1, round(size * 0.65))
    while style.fonts.width(text, size) > w and size > smallest:
        size -= 1
    while text and style.fonts.width(text, size) > w:
        text = text[:-1]
    item = style.text(x, y, text, color, size, part)
    return [item._replace(y=y + (h - item.h) / 2)] if text else []


BLEED = 4  # units by which the box of a token reaches beyond its word


def lay_out_panel(record, at, state, box, style, before=0):
    """The text of one run after `at` steps in box (x, y, w, h).

    `before`: how many tokens the panels to the left have. Returns (items, number of lines that do
    not fit).
    """
    theme, fonts = style.theme, style.fonts
    row = record.row(at)
    zoom, inset = style.unit * state.zoom, style.px(BLEED)
    x, y, w, h = box[0] + inset, box[1], box[2] - 2 * inset, box[3]
    largest, smallest = round(30 * zoom), max(9, round(13 * zoom))
    size, spots, n_lines = set_text(
        record.pieces, record.live, int(w), int(h), largest, smallest, fonts
    )
    pitch, glyph = line_height(fonts, size), fonts.height(size)
    bleed = min(inset, fonts.width(" ", size) // 3)  # two boxes never meet in one space
    if glyph > h:
        return [], n_lines
    room = int((h - glyph) // pitch) + 1
    first = min(state.scroll, max(0, n_lines - room))
    kept = {position for position, _ in state.settings.kept} if not record.live else set()
    items, hair = [], max(1, round(size / 16))
    for spot in spots:
        if not first <= spot.line < first + room:
            continue
        i, left, top = spot.token, x + spot.x, y + (spot.line - first) * pitch
        look = token_look(record, i, at, state.view, theme)
        start = left - bleed if spot.starts else left
        end = left + spot.w + bleed if spot.ends else left + spot.w - hair
        place = (start, top, max(1, end - start), glyph)
        shape = dict(radius=size / 5, command=f"fix {before + i}")
        if look.paper is None:
            items.append(Item("area", *place, part="token", **shape))
        else:
            items.append(Item("box", *place, look.paper, part="token", **shape))
        inside = (left, top, spot.w, glyph)
        if look.text is None:
            word = style.text(left, top, spot.text, look.ink, size, "word")
            items.append(word._replace(w=spot.w))
        else:
            items += fitted_text(style, look.text, inside, size, look.ink, "word")
        if record.since[row, i] == 0 and record.states[row, i] != MASKED:  # given
            rule = (left, top + glyph - hair, spot.w, hair, theme.accent)
            items.append(Item("box", *rule, part="given"))
        if i in kept:
            items.append(Item("outline", *place, theme.accent, part="kept", radius=size / 5))
        if before + i == state.cursor:
            items.append(Item("outline", *place, theme.ink, part="cursor", radius=size / 5))
    return items, n_lines - room
