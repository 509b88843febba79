"""What a page is made of: positioned, coloured items. `drawing` draws them; nothing here does."""

import math
import unicodedata
from dataclasses import dataclass
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
    anchor: bool = False  # the box of a token: what else shows this token goes where it goes
    tip: str = ""  # what appears beside it when the mouse is there


def moved(items, dx, dy):
    """The items, elsewhere."""
    return [item._replace(x=item.x + dx, y=item.y + dy) for item in items]


def extent(items):
    """Width and height of what lies to the right of and below (0, 0)."""
    return max((i.x + i.w for i in items), default=0), max((i.y + i.h for i in items), default=0)


@dataclass(frozen=True)
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
    """A whole page."""

    items: list  # from back to front
    overlay: list  # on top of them: the card of a token, the help

    def at(self, x, y):
        """The topmost item at a point that a click or the mouse's pointing means, or None."""
        for item in reversed(self.items + self.overlay):
            inside = item.x <= x < item.x + item.w and item.y <= y < item.y + item.h
            if inside and (item.command or item.tip or item.token is not None):
                return item
        return None


def glide(shown, layout, seconds, far):
    """The layout with its tokens on the way from where they were shown so many seconds ago.

    shown: the layout drawn then, or None. What goes farther than `far` pixels is there at once.
    Returns (layout, whether something still moves).
    """
    parts, items, moves, dx, dy = {}, [], False, 0.0, 0.0
    for item in shown.items if shown else ():
        if item.anchor:
            parts.setdefault(item.token, []).append(item)
    rest = math.exp(-seconds / 0.08)  # how much of the way is still to go
    for item in layout.items:
        if item.anchor:
            old = parts.get(item.token) or [item]
            dx, dy = old[0].x - item.x, old[0].y - item.y
            del old[: len(old) > 1]
            still = max(abs(dx), abs(dy)) > far or abs(dx) + abs(dy) < 0.5
            dx, dy = (0.0, 0.0) if still else (dx * rest, dy * rest)
            moves = moves or not still
        if item.token is not None and (dx or dy):
            item = item._replace(x=item.x + dx, y=item.y + dy)
        items.append(item)
    return Layout(items, layout.overlay), moves


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
    low, high = 0, len(text)  # how many characters fit
    while low < high:
        middle = (low + high + 1) // 2
        if fonts.width(text[:middle] + "…", size) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low] + "…" if fonts.width("…", size) <= width else ""
