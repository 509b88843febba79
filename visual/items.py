"""What a page is made of: positioned, coloured items, and the colours and sizes they take.

Nothing here knows pygame, and nothing draws: `drawing` does.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Theme:
    """Colours, (red, green, blue) from 0 to 255."""

    page: tuple  # the background
    ink: tuple
    faint: tuple  # labels
    line: tuple  # what is fainter still: rules, the empty timeline
    mask: tuple
    accent: tuple
    card: tuple  # background of what lies on top
    scale: tuple  # part of the colour scale that can be read on this page: improbable, probable


THEMES = {
    "dark": Theme(
        page=(17, 19, 26),
        ink=(233, 233, 237),
        faint=(142, 147, 163),
        line=(50, 54, 68),
        mask=(40, 44, 57),
        accent=(240, 168, 60),
        card=(30, 33, 44),
        scale=(0.5, 1.0),
    ),
    "light": Theme(
        page=(251, 250, 246),
        ink=(29, 31, 40),
        faint=(100, 104, 116),
        line=(214, 212, 205),
        mask=(228, 226, 219),
        accent=(172, 82, 0),
        card=(255, 255, 255),
        scale=(0.42, 0.0),
    ),
}

# matplotlib's viridis at 0, 1/8, ... 1: even to the eye, also to a colour-blind one
VIRIDIS = (
    (68, 1, 84),
    (71, 45, 123),
    (59, 82, 139),
    (44, 114, 142),
    (33, 145, 140),
    (40, 174, 128),
    (94, 201, 98),
    (173, 220, 48),
    (253, 231, 37),
)


def mix(a, b, k):
    """The colour at k in [0, 1] on the way from a to b."""
    return tuple(round(x + (y - x) * k) for x, y in zip(a, b, strict=True))


def viridis(k):
    """The colour at k in [0, 1] of the scale."""
    position = min(max(float(k), 0.0), 1.0) * (len(VIRIDIS) - 1)
    i = min(int(position), len(VIRIDIS) - 2)
    return mix(VIRIDIS[i], VIRIDIS[i + 1], position - i)


def probability_color(p, theme):
    """The colour of a token that was drawn with probability p.

    It follows the square root: most draws are below 0.2, and should not look alike.
    """
    low, high = theme.scale
    return viridis(low + (high - low) * math.sqrt(p))


def luminance(color):
    """Relative luminance in [0, 1] (WCAG 2)."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    """Contrast of two colours, from 1 to 21; text wants 4.5 (WCAG 2)."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def readable_on(paper):
    """Black or white, whichever is easier to read on this colour."""
    return max([(12, 12, 16), (255, 255, 255)], key=lambda ink: contrast(ink, paper))


class Item(NamedTuple):
    """One thing to draw; x, y, w, h in pixels. A text lies within its box."""

    kind: str  # "box", "outline", "text", or "area": nothing to see, but it can be clicked
    x: float
    y: float
    w: float
    h: float
    color: tuple = (0, 0, 0)
    text: str = ""
    size: int = 0  # of the text
    radius: float = 0  # of a box's corners
    part: str = ""  # what it belongs to
    command: str = ""  # what a click on it does


def moved(items, dx, dy):
    """The items, elsewhere."""
    return [item._replace(x=item.x + dx, y=item.y + dy) for item in items]


@dataclass(frozen=True)
class Style:
    """What every part of the page needs to know: fonts, colours, the size of things.

    `fonts` has two methods, in pixels: `width(text, size)` and `height(size)`.
    """

    fonts: object
    theme: Theme
    unit: float  # pixels in one unit of the design, which is made for 1000 x 700

    def px(self, n):
        """n units in whole pixels, at least 1."""
        return max(1, round(n * self.unit))

    def text(self, x, y, text, color, size=None, part="", command=""):
        """A text item. `size` in pixels; without it, that of labels."""
        size = size or self.px(14)
        w, h = self.fonts.width(text, size), self.fonts.height(size)
        return Item("text", x, y, w, h, color, text, size, part=part, command=command)


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


def item_at(items, x, y):
    """The topmost item at a point that does something, or None."""
    for item in reversed(items):
        inside = item.x <= x < item.x + item.w and item.y <= y < item.y + item.h
        if inside and (item.command or item.part == "card"):
            return item
    return None


def along_timeline(items, x):
    """Where x lies on the timeline: 0 at its left end, 1 at its right."""
    bars = [item for item in items if item.command == "timeline"]
    return min(max((x - bars[0].x) / bars[0].w, 0.0), 1.0) if bars else 0.0
