"""The text of a run, set in lines: which token stands where, and how it looks after each step.

A token keeps its place from the first step to the last, so that nothing jumps while it is read.
"""

import math
import re
from bisect import bisect_left
from functools import lru_cache
from itertools import zip_longest
from typing import NamedTuple

from visual.colors import certainty_color, mix, probability_color, readable_on, viridis
from visual.items import Item, joins, shorten, visible
from visual.record import MASKED, candidates, pieces


class Spot(NamedTuple):
    """A token, or as much of it as stands on one line. x, w in pixels."""

    token: int
    text: str
    w: float
    gap: bool = True  # something separates it from what stands on its left
    newline: bool = False  # it is the last on its line
    line: int = 0
    x: float = 0.0


def spots_of(pieces, width, fonts, size):
    """What the tokens show, cut at line breaks, without places so far. A leading space is a gap."""
    for token, piece in enumerate(pieces):
        gap = len(piece) > 1 and piece[0] == " " and not piece[1].isspace()
        for part in re.findall(r"[^\n]+|\n", piece[gap:]):
            text = "◌" * joins(part[0]) + visible(part)  # something for an accent to stand on
            text = shorten(fonts, text, size, width)
            w = min(width, max(fonts.width(text, size), fonts.width("·", size)))
            yield Spot(token, text, w, gap, part == "\n")
            gap = False


def words_of(spots):
    """Group spots into words: lists that a line break should not tear apart."""
    word = []
    for spot in spots:
        if word and (spot.gap or word[-1].newline):
            yield word
            word = []
        word.append(spot)
    if word:
        yield word


def break_lines(pieces, width, fonts, size):
    """Set the text in lines of `width` pixels. Returns (list of Spot, number of lines)."""
    space, placed, x, line = fonts.width(" ", size), [], 0.0, 0
    for word in words_of(spots_of(pieces, width, fonts, size)):
        total = sum(spot.w for spot in word)
        x += space if word[0].gap and x > 0 else 0
        if x > 0 and x + total > width and (total <= width or x + word[0].w > width):
            x, line = 0.0, line + 1
        for spot in word:
            if x > 0 and x + spot.w > width:
                x, line = 0.0, line + 1
            placed.append(spot._replace(line=line, x=x, gap=spot.gap or x == 0))
            x, line = (0.0, line + 1) if spot.newline else (x + spot.w, line)
    return placed, 1 + max((spot.line for spot in placed), default=0)


def live_grid(pieces, width, fonts, size):
    """Tokens in equal cells: so nothing moves while it is not known how long they will be."""
    gap = fonts.width(" ", size)
    cell = min(width, fonts.width("abcdef", size))
    columns = max(1, int((width + gap) / (cell + gap)))
    spots = []
    for i, piece in enumerate(pieces):
        text = shorten(fonts, visible(piece.removeprefix(" ")), size, cell)
        place = dict(line=i // columns, x=i % columns * (cell + gap))
        spots.append(Spot(i, text, cell, **place))
    return spots, -(-len(pieces) // columns)


def line_height(fonts, size):
    """Pixels from one line of text to the next."""
    return math.ceil(fonts.height(size) * 1.42)


@lru_cache(maxsize=32)
def set_text(pieces, live, width, height, largest, fonts):
    """The text in the largest letters with which it fits: (size, spots)."""
    setter, sizes = (live_grid if live else break_lines), range(4, max(5, largest + 1))

    def too_tall(size):
        return setter(pieces, width, fonts, size)[1] * line_height(fonts, size) > height

    size = sizes[max(0, bisect_left(sizes, True, key=too_tall) - 1)]
    return size, setter(pieces, width, fonts, size)[0]


def freshness(record, i, at):
    """1 when a token has just appeared, soon 0, which a given token always is."""
    since = record.since[record.row(at), i]
    if since == 0 or (at >= record.n_steps and not record.live):  # nothing glows at the end
        return 0.0
    fade = 3 if record.live else max(1.0, record.n_steps / 16)  # in steps
    return max(0.0, 1 - (at - since) / fade) ** 2


def appearance(record, i, at, view, theme):
    """How token i looks after `at` steps: (text, ink, paper).

    The text is None if it is that of the end, the paper if it is that of the page.
    """
    row = record.row(at)
    token, since = record.texts[row, i], record.since[row, i]
    if token == MASKED:
        best = candidates(record, i, at)[:1] if view == "prediction" else []
        for name, p in best:
            return in_text(name), certainty_color(p, theme), theme.mask
        return "", theme.ink, theme.mask
    piece = pieces(record, row)[i]  # differs if it is remasked later, or its character incomplete
    text = None if piece == pieces(record, -1)[i] else in_text(piece)
    fresh = freshness(record, i, at)
    paper = mix(theme.page, theme.accent, 0.55 * fresh) if fresh > 0.01 else None
    if since == 0 or record.live:
        return text, theme.ink, paper
    if view == "order":
        paper = mix(viridis(since / record.n_steps), (255, 255, 255), 0.6 * fresh)
        return text, readable_on(paper), paper
    if view == "prediction":
        return text, mix(theme.ink, theme.page, 0.25), paper
    final = token == record.texts[-1, i]
    ink = probability_color(record.probability[i], theme) if final else theme.faint
    return text, mix(ink, theme.ink, fresh), paper


def in_text(name):
    """A token's name as it looks in a text: without its leading space."""
    return visible(name.removeprefix(" ") or name)


def fit(style, text, box, size, color):
    """A text in box (x, y, w, h): somewhat smaller, and cut off, if it is too wide."""
    x, y, w, h = box
    smallest = max(1, round(size * 0.65))
    while style.fonts.width(text, size) > w and size > smallest:
        size -= 1
    item = style.text(x, y, shorten(style.fonts, text, size, w), color, size=size)
    return item._replace(y=y + (h - item.h) / 2)


BLEED = 4  # units by which the box of a token reaches beyond its word


def lay_out_panel(record, state, box, style, before=0):
    """The text of one run in box (x, y, w, h) as items.

    `before`: how many tokens the panels to the left have.
    """
    theme, fonts, inset = style.theme, style.fonts, style.px(BLEED)
    x, y, w, h = box[0] + inset, box[1], box[2] - 2 * inset, box[3]
    row, live = record.row(state.at), record.live
    size, spots = set_text(pieces(record, -1), live, int(w), int(h), style.px(30), fonts)
    pitch, glyph, hair = line_height(fonts, size), fonts.height(size), max(1, round(size / 16))
    bleed = min(inset, fonts.width(" ", size) // 3)  # two boxes never meet in one space
    items = []
    for spot, after in zip_longest(spots, spots[1:]):
        i, left, top = spot.token, x + spot.x, y + spot.line * pitch
        if top + glyph > y + h:  # in a very small window
            break
        text, ink, paper = appearance(record, i, state.at, state.view, theme)
        end = left + spot.w
        end += bleed if after is None or after.gap else -hair
        start = left - bleed if spot.gap else left
        place = (start, top, max(1, end - start), glyph)
        kind = "box" if paper else "area"
        items.append(Item(kind, *place, paper, radius=size / 5, token=before + i))
        if text is None:
            items.append(style.text(left, top, spot.text, ink, size=size)._replace(w=spot.w))
        elif text:
            items.append(fit(style, text, (left, top, spot.w, glyph), size, ink))
        if record.since[row, i] == 0 and record.texts[row, i] != MASKED:  # given
            items.append(Item("box", left, top + glyph - hair, spot.w, hair, theme.accent))
    return items
