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


def glide(shown, layout, seconds, far):
    """The layout with its words on the way from where they were shown so many seconds ago.

    shown: the layout drawn then, or None. What goes farther than `far` pixels is there at once.
    Returns (layout, whether something still moves).
    """
    same, before = set(map(id, shown.words if shown else layout.words)), {}
    new = [k for k, word in enumerate(layout.words) if id(word) not in same]
    if not new:
        return layout, False
    for word in shown.words:
        before.setdefault(word[0].token, []).append(word[0])
    rest, words, moves = math.exp(-seconds / 0.08), list(layout.words), False  # rest: of the way
    for k in new:
        box, old = words[k][0], before.get(words[k][0].token, [])
        if old:
            dx, dy = old[0].x - box.x, old[0].y - box.y
            del old[: len(old) > 1]  # a token may have several pieces
            if abs(dx) + abs(dy) >= 0.5 and max(abs(dx), abs(dy)) <= far:
                words[k], moves = tuple(moved(words[k], dx * rest, dy * rest)), True
    return replace(layout, words=words), moves


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
