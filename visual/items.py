"""What a page is made of: positioned, coloured items. `drawing` draws them; nothing here does."""

import math
import unicodedata
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import NamedTuple

from visual.colors import Theme


class Item(NamedTuple):
    """One thing to draw; x, y, w, h in pixels. A text lies within its box."""

    kind: str  # "box", "outline", "line" (from its left end to its right one; h may be below 0),
    # "text", or "area": nothing to see, but the mouse finds it
    x: float
    y: float
    w: float
    h: float
    color: tuple = (0, 0, 0)
    text: str = ""
    size: int = 0  # of the text
    radius: float = 0  # of a box's corners
    command: str = ""  # what a click on it does
    token: int | None = None  # the token that it shows
    tip: str = ""  # what appears beside it when the mouse is there


def moved(items, dx, dy):
    """The items, elsewhere."""
    return [item._replace(x=item.x + dx, y=item.y + dy) for item in items]


def extent(items):
    """Width and height of what lies to the right of and below (0, 0)."""
    return max((i.x + i.w for i in items), default=0), max((i.y + i.h for i in items), default=0)


@dataclass(frozen=True, eq=False)
class Style:
    """What every row of the page needs to know: fonts, colours, the size of things.

    `fonts` has two methods, in pixels: `width(text, size)` and `height(size)`.
    """

    fonts: object
    theme: Theme
    unit: float  # pixels in one unit of the design, which is made for 1000 x 700

    def px(self, n):
        """n units in whole pixels, at least 1."""
        return max(1, round(n * self.unit))

    def text(self, x, y, text, color, command="", tip="", size=None):
        """A text item. `size` in pixels; without it, that of labels."""
        size = size or self.px(14)
        w, h = self.fonts.width(text, size), self.fonts.height(size)
        return Item("text", x, y, w, h, color, text, size, command=command, tip=tip)


@dataclass(frozen=True)
class Layout:
    """A whole page, from back to front. What has not changed since another page is the same object
    there: few of the words are looked at again when a page is drawn."""

    rows: list  # items
    words: list  # the pieces of tokens, each a tuple of items, the first of which is its box
    overlay: list  # items on top of them: the card of a token, the help

    @cached_property
    def items(self):
        return [*self.rows, *chain.from_iterable(self.words), *self.overlay]

    def at(self, x, y):
        """The topmost item at a point that a click or the mouse's pointing means, or None."""
        for item in reversed(self.items):
            inside = item.x <= x < item.x + item.w and item.y <= y < item.y + item.h
            if inside and (item.command or item.tip or item.token is not None):
                return item
        return None


def glide(shown, layout, seconds):
    """The layout with its words on the way from where they were shown so many seconds ago.

    shown: the layout drawn then, or None. Words slide along their line and push each other, so that
    none covers another one. What comes from another line appears where it belongs, once there is
    room. Returns (layout, whether something still moves).
    """
    same, before = set(map(id, shown.words if shown else layout.words)), {}
    if all(id(word) in same for word in layout.words):
        return layout, False
    for box, *_ in shown.words:
        before.setdefault(box.token, []).append(box)
    rest, lines, sliding = math.exp(-seconds / 0.08), {}, False  # rest: of the way
    for k, (box, *_) in enumerate(layout.words):
        old = before.get(box.token, [])
        stays, x = bool(old) and abs(old[0].y - box.y) < 0.5, box.x
        if stays and abs(old[0].x - x) >= 0.5:
            x, sliding = x + (old[0].x - x) * rest, True
        del old[: len(old) > 1]  # a token may have several pieces
        lines.setdefault(box.y, []).append((box.x, x, box.w, stays, k))
    if not sliding:
        return layout, False
    words = {}
    for line in lines.values():
        line.sort()
        right, places = math.inf, []
        for end, x, w, _, k in [each for each in reversed(line) if each[3]]:
            right = max(end, min(x, right - w))
            places.append((right, w, k))
        left, free = -math.inf, []
        for x, w, k in reversed(places):
            x = max(x, left)
            word, dx = layout.words[k], x - layout.words[k][0].x
            words[k] = tuple(moved(word, dx, 0)) if dx else word
            left = x + w
            free.append((x, left))
        for x, _, w, stays, k in line:
            if not stays and all(x + w <= start or end <= x for start, end in free):
                words[k] = layout.words[k]
    return replace(layout, words=[words[k] for k in sorted(words)]), True


# -- texts


def joins(character):
    """Whether it belongs to the character before it: accents, vowel signs, joiners."""
    return unicodedata.category(character)[0] == "M" or character in "\u200c\u200d"


def direction(text):
    """How a text is read: "R" from right to left, "L" from left to right, "" if either will do."""
    if text and text.isascii() and text[0].isalpha():  # most are
        return "L"
    for character in text or "":
        kind = unicodedata.bidirectional(character)
        if kind in ("R", "AL"):
            return "R"
        if kind in ("L", "EN", "AN"):
            return "L"
    return ""


def visible(text):
    """A text of which one can see every character: line breaks and control characters, too."""
    special = {"\n": "↵", "\t": "⇥", "\r": "↤", "\u200c": "\u200c", "\u200d": "\u200d"}
    hidden = ("Cc", "Cf", "Cs")
    return "".join(
        special.get(c) or (f"\\x{ord(c):02x}" if unicodedata.category(c) in hidden else c)
        for c in text
    )


def shorten(fonts, text, size, width):
    """The text, cut off with "…" if it is wider than `width` pixels; "" if not even that fits."""
    if fonts.width(text, size) <= width:
        return text
    cut = lambda n: fonts.width(text[:n] + "…", size)  # noqa: E731
    n = bisect_right(range(len(text)), width, key=cut) - 1  # how many characters fit
    return text[:n] + "…" if n >= 0 else ""
