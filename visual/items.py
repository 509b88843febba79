"""What a page is made of: positioned, coloured items. `drawing` draws them; nothing here does."""

import math
import unicodedata
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain
from typing import NamedTuple

from visual.colors import Theme


class Item(NamedTuple):
    """One thing to draw; x, y, w, h in pixels. A text lies within its box."""

    kind: str  # "box", "outline", "line", "text", or "area": nothing to see, but the mouse finds it
    x: float
    y: float
    w: float
    h: float
    color: tuple = (0, 0, 0)
    text: str = ""
    size: int = 0  # of the text
    radius: float = 0  # of a box's corners; of a line: how thick it is
    command: str = ""  # what a click on it does
    token: int | None = None  # the token that it shows
    tip: str = ""  # what appears beside it when the mouse is there
    points: tuple = ()  # that a line joins, from (x, y)


@lru_cache(maxsize=1024)
def moved(items, dx, dy):
    """The items of a tuple elsewhere, as a tuple: the same object whenever they are the same."""
    return tuple(item._replace(x=item.x + dx, y=item.y + dy) for item in items)


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
    """A whole page, from back to front: tuples of items. What has not changed since another page
    should be the same object there, as it is not drawn again then."""

    rows: list
    words: list  # the pieces of tokens; the first item of each is a box around it
    overlay: tuple  # on top of them: the card of a token, or the help

    @cached_property
    def items(self):
        return [*chain.from_iterable([*self.rows, *self.words]), *self.overlay]

    def at(self, x, y):
        """The topmost item at a point that a click or the mouse's pointing means, or None."""
        for item in reversed(self.items):
            inside = item.x <= x < item.x + item.w and item.y <= y < item.y + item.h
            if inside and (item.command or item.tip or item.token is not None):
                return item
        return None


def glide(shown, layout, seconds):
    """The layout with its words on the way from where they were shown so many seconds ago.

    shown: the layout drawn then, or None. Words slide along their line, and none covers another
    one. What comes from another line appears where it belongs, once there is room. Returns (layout,
    whether something still moves).
    """
    same, before = set(map(id, shown.words if shown else layout.words)), {}
    lines = {word[0].y: [] for word in layout.words if id(word) not in same}
    if not lines:
        return layout, False
    for word in layout.words:
        if word[0].y in lines:
            lines[word[0].y].append(word)
    for box, *_ in shown.words:
        if box.y in lines:  # a token may have several pieces there
            before.setdefault((box.token, box.y), []).append(box.x)
    places, rest = {}, math.exp(-seconds / 0.08)  # rest: of the way
    right = max(box.x + box.w for box, *_ in chain(layout.words, shown.words))
    for line in lines.values():
        places |= slide(line, before, rest, right)
    if not places:
        return layout, False
    words = [places.get(id(word), word) for word in layout.words]
    return replace(layout, words=[word for word in words if word]), True


def slide(line, before, rest, right):
    """Those words of a line that are on their way, none beyond `right`: {id(word): the word there,
    or None}."""
    line = sorted(line, key=lambda word: word[0].x)
    ends, widths, starts = [word[0].x for word in line], [word[0].w for word in line], []
    for box, *_ in line:
        olds = before.get((box.token, box.y), [None])
        starts.append(olds.pop(0) if len(olds) > 1 else olds[0])
    here = [k for k, start in enumerate(starts) if start is not None]
    x = list(ends)
    for k in here:
        x[k] += (starts[k] - x[k]) * rest * (abs(starts[k] - x[k]) >= 0.5)
    if x == ends:
        return {}
    left, places = -math.inf, {}
    for k in reversed(here):  # who goes to the left lets those on the right go first
        right = x[k] = min(x[k], max(ends[k], right - widths[k]))
    for k in here:  # who goes to the right is pushed by those on the left
        x[k] = max(x[k], left)
        left = x[k] + widths[k]
    for k, word in enumerate(line):
        if x[k] != ends[k]:
            places[id(word)] = moved(word, x[k] - ends[k], 0)
        elif starts[k] is None:
            covers = (x[i] < x[k] + widths[k] and x[k] < x[i] + widths[i] for i in here)
            places |= {id(word): None} if any(covers) else {}
    return places


# -- texts


def joins(character):
    """Whether it belongs to the character before it: accents, vowel signs, joiners."""
    return unicodedata.category(character)[0] == "M" or character in "\u200c\u200d"


@lru_cache(maxsize=4096)
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
