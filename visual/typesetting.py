"""The text of a run, set in lines: which token stands where, and how it looks.

Nobody knows how long the words will be that the masks become. So all masks are equally wide, and
the lines of each row are made from those of the row before: a line stays as it is while it is
neither too long nor much too short. What a row looks like depends only on the rows before it, so a
run looks the same while it is sampled and when it is seen again.
"""

import math
import re
import unicodedata
from bisect import bisect_left
from functools import lru_cache
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

import numpy as np

from visual.colors import certainty_color, mix, probability_color, readable_on, viridis
from visual.items import Item, direction, joins, shorten, visible
from visual.record import MASKED, pieces, predictions

FADE = 1 / 16  # of the clock: for so long a token that has just appeared glows
MASK = "0000"  # a mask is as wide as this
SHORT = 0.6  # a line with less than this share of the width is broken anew
BLEED = 4  # units by which the box of a token reaches beyond its word


class Spot(NamedTuple):
    """A token, or as much of it as stands on one line. x, w in pixels."""

    token: int
    text: str | None  # None: a mask
    w: float
    gap: bool = True  # something separates it from what comes before it
    newline: bool = False  # it is the last on its line
    line: int = 0
    x: float = 0.0
    room: tuple = (True, True)  # whether there is a gap on its left and on its right


def joined(shown, i):
    """Piece i, with marks that join Arabic letters to those of the neighbouring tokens."""

    def arabic(k, end):
        letters = [c for c in (shown[k] if 0 <= k < len(shown) else None) or "" if not joins(c)]
        return bool(letters) and unicodedata.bidirectional(letters[end]) == "AL"

    before, after = arabic(i - 1, -1) and arabic(i, 0), arabic(i, -1) and arabic(i + 1, 0)
    return "\u200d" * before + shown[i] + "\u200d" * after


@lru_cache(maxsize=4096)
def measured(piece, width, fonts, size):
    """A piece as spots without places so far, cut at line breaks: (text, w, gap, newline)s."""
    gap = len(piece) > 1 and piece[0] == " " and not piece[1].isspace()
    found = []
    for part in re.findall(r"[^\n]+|\n", piece[gap:]):
        stand = "◌" * (unicodedata.category(part[0])[0] == "M")  # for an accent
        text = shorten(fonts, stand + visible(part), size, width)
        w = min(width, max(fonts.width(text, size), fonts.width("·", size)))
        found.append((text, w, gap, part == "\n"))
        gap = False
    return found


def spots_of(shown, width, fonts, size):
    """What the tokens show, as spots. A leading space is a gap."""
    mask = min(width, fonts.width(MASK, size))
    for token, piece in enumerate(shown):
        if piece is None:
            yield Spot(token, None, mask)
        else:
            piece = piece if piece.isascii() else joined(shown, token)
            yield from (Spot(token, *part) for part in measured(piece, width, fonts, size))


def words_of(spots, width):
    """Group spots into words: lists that a line break should not tear apart."""
    word, total = [], 0
    for spot in spots:
        if word and (spot.gap or word[-1].newline or spot.text is None or total + spot.w > width):
            yield word
            word, total = [], 0
        word.append(spot)
        total += spot.w
    if word:
        yield word


def break_lines(shown, width, fonts, size, kept=frozenset(), rtl=False):
    """Set the pieces `shown` in lines of `width` pixels: (list of Spot, number of lines).

    kept: tokens that began a line before, and go on doing so if the line is not too short.
    rtl: the text reads from right to left.
    """
    words = list(words_of(spots_of(shown, width, fonts, size), width))
    space = fonts.width(" ", size)
    placed, start, line = [], 0, 0
    while start < len(words):
        x, end, old, whole = 0.0, start, None, False
        while end < len(words) and not whole:
            total = sum(spot.w for spot in words[end]) + space * (words[end][0].gap and end > start)
            if end > start and x + total > width:
                break
            if x > SHORT * width and words[end][0].token in kept:
                old = end
            x, whole, end = x + total, words[end][-1].newline, end + 1
        if old and not whole:
            end = old
        spots = [spot for word in words[start:end] for spot in word]
        placed += place_line(spots, line, space, width, rtl)
        start, line = end, line + 1
    return placed, max(1, line)


def place_line(spots, line, space, width, rtl):
    """Give the spots of a line their places, which follow the order in which the eye meets them."""
    parts = []  # spots, and None for a gap
    for spot in spots:
        parts += [None, spot] if spot.gap and parts else [spot]
    ways = [direction(part.text) if part else "" for part in parts]
    order = visual_order(ways, rtl) if rtl or "R" in ways else list(range(len(parts)))
    widths = [part.w if part else space for part in parts]
    x, placed = width - sum(widths) if rtl else 0.0, {}
    for before, i, after in zip([None, *order], order, [*order[1:], None], strict=False):
        if parts[i]:
            room = before is None or not parts[before], after is None or not parts[after]
            placed[i] = Spot(*parts[i][:5], line, x, room)
        x += widths[i]
    return [placed[i] for i in sorted(placed)]


def visual_order(directions, rtl):
    """From the order of reading to that on the line: "R" runs are turned round in a text from left
    to right, all else in one from right to left. What has no direction takes its neighbours'."""
    base = "R" if rtl else "L"

    def last(ways):  # the one that was known before each of them
        return list(accumulate(ways, lambda old, new: new or old, initial=base))[:-1]

    around = zip(last(directions), last(directions[::-1])[::-1], strict=True)
    ways = [way or (a if a == b else base) for way, (a, b) in zip(directions, around, strict=True)]
    order = []
    for way, run in groupby(range(len(ways)), key=ways.__getitem__):
        order += list(run)[:: 1 if way == base else -1]
    return order[::-1] if rtl else order


def line_height(fonts, size):
    """Pixels from one line of text to the next."""
    return math.ceil(fonts.height(size) * 1.42)


def set_text(record, n, width, height, largest, fonts):
    """Row n of a record in lines: (size of the letters, spots).

    The letters are the largest with which the first row fits; when a text grows too long for
    them, they become smaller.
    """
    key, rtl = (width, height, largest, fonts), record.leftwards
    if len(record.layouts) > 8:  # a window that is being resized
        record.layouts.clear()
    rows = record.layouts.setdefault(key, [])

    def lines(shown, size, kept=frozenset()):
        spots, n_lines = break_lines(shown, width, fonts, size, kept, rtl)
        return spots, n_lines * line_height(fonts, size)

    while len(rows) <= n:
        shown = pieces(record, len(rows))
        if rows:
            size, _, kept = rows[-1]
        else:
            sizes, kept = range(4, max(5, largest + 1)), frozenset()
            tall = bisect_left(sizes, True, key=lambda s: lines(shown, s)[1] > height * 0.94)
            size = sizes[max(0, tall - 1)]
        if record.causal:  # what is not written is not there
            shown = tuple(piece or "" for piece in shown)
        spots, tall = lines(shown, size, kept)
        while tall > height and size > 4:
            size -= 1
            spots, tall = lines(shown, size)
        starts = frozenset(b.token for a, b in pairwise(spots) if b.line > a.line)
        rows.append((size, spots, starts))
    return rows[n][:2]


def freshness(record, n, at):
    """How much those tokens of row n glow that have just appeared, or were just taken back:
    {place: 0 to 1}, in few steps, as each colour that a word has must be rendered once."""
    row = record.rows[n]
    places = np.flatnonzero(row.since > record.at(at - FADE)).tolist()
    ages = [(at - record.rows[row.since[i]].time) / FADE for i in places]
    return {i: math.ceil(8 * max(0, 1 - k) ** 2) / 8 for i, k in zip(places, ages, strict=True)}


def look_of(record, n, i, view, theme, fresh=0.0):
    """How token i of row n looks: (text, ink, paper).

    The text is None but for what is predicted at a mask, the paper if it is that of the page.
    """
    row, text, ink, paper = record.rows[n], None, theme.ink, None
    since, masked = row.since[i], row.text[i] == MASKED
    if masked:
        paper = theme.mask
        if view == "prediction" and i in (found := predictions(row, row.look)):
            guess, chance = found[i]
            text = in_text(record.tokenizer.show(int(guess)))
            ink = certainty_color(round(32 * chance) / 32, theme)
    elif view == "text" and since:
        ink = probability_color(row.probability[i], theme)
    elif view == "order" and since:
        paper = mix(viridis(record.rows[since].time), (255, 255, 255), 0.6 * fresh)
        ink = readable_on(paper)
    if fresh and (masked or view != "order"):
        paper = mix(paper or theme.page, theme.accent, 0.55 * fresh)
        ink = ink if text else mix(ink, theme.ink, fresh)
    return text, ink, paper


def appearance(record, n, at, view, theme):
    """How all tokens of row n look at a moment of the clock, see `look_of`."""
    fresh, length = freshness(record, n, at), record.length
    return [look_of(record, n, i, view, theme, fresh.get(i, 0)) for i in range(length)]


def in_text(name):
    """A token's name as it looks in a text: without its leading space."""
    return visible(name.removeprefix(" ") or name)


def fit(style, text, box, size, color):
    """A text in the middle of box (x, y, w, h): smaller, and cut off, if it is too wide."""
    x, y, w, h = box
    size = min(size, max(round(size * 0.6), int(size * w / max(1, style.fonts.width(text, size)))))
    item = style.text(x, y, shorten(style.fonts, text, size, w), color, size=size)
    return item._replace(x=x + max(0, (w - item.w) / 2), y=y + (h - item.h) / 2)


@lru_cache(maxsize=16)
def at_rest(record, n, view, look, box, style, before):
    """Row n in box (x, y, w, h) when nothing glows or is chosen: its words, and what each is made
    of: its token, and what `word` needs besides its look. `look`: of the row, as it comes late."""
    inset, row = style.px(BLEED), record.rows[n]
    x, y, w, h = box[0] + inset, box[1], box[2] - 2 * inset, box[3]
    size, spots = set_text(record, n, int(w), int(h), style.px(44), style.fonts)
    pitch, last = line_height(style.fonts, size), y + h - style.fonts.height(size)
    given = ((row.since == 0) & (row.text != MASKED)).tolist()
    looks = [look_of(record, n, i, view, style.theme) for i in range(record.length)]
    words, parts = [], []
    for spot in spots:
        i, top = spot.token, y + spot.line * pitch
        if top <= last:  # a very small window does not show all
            parts.append((i, (style, size, spot, x, top, given[i], before + i)))
            words.append(word(*parts[-1][1], looks[i]))
    return words, parts


def lay_out_panel(record, state, box, style, before=0):
    """The text of one run in box (x, y, w, h) as words, see `Layout`.

    `before`: how many tokens the panels to the left have.
    """
    n, view = record.at(state.at), state.view
    look = record.rows[n].look if view == "prediction" else None
    words, parts = at_rest(record, n, view, look, box, style, before)
    fresh, words = freshness(record, n, state.at), list(words)
    for k, (i, made_of) in enumerate(parts):
        if i in fresh or before + i in state.selected:
            look = look_of(record, n, i, view, style.theme, fresh.get(i, 0))
            words[k] = word(*made_of, look, before + i in state.selected)
    return words


@lru_cache(maxsize=8192)
def word(style, size, spot, x, top, given, token, look, chosen=False):
    """The items of a spot that looks like this, its box first."""
    theme, fonts, (text, ink, paper) = style.theme, style.fonts, look
    glyph, hair, left = fonts.height(size), max(1, round(size / 16)), x + spot.x
    bleed = min(style.px(BLEED), fonts.width(" ", size) // 3)  # two boxes never meet in one space
    start = left - bleed * spot.room[0]
    end = left + spot.w + (bleed if spot.room[1] else -hair)
    place = (start, top, max(1, end - start), glyph)
    items = [Item("box" if paper else "area", *place, paper, radius=size / 5)]
    if spot.text:
        items.append(style.text(left, top, spot.text, ink, size=size)._replace(w=spot.w))
    elif text:
        items.append(fit(style, text, (left, top, spot.w, glyph), size, ink))
    if given:
        items.append(Item("box", left, top + glyph - hair, spot.w, hair, theme.accent))
    if chosen:
        items.append(Item("outline", *place, theme.accent, radius=size / 5))
    return tuple(item._replace(token=token) for item in items)
