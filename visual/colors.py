"""The colours of a page, light or dark, and what they mean."""

import math
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, eq=False)
class Theme:
    """Colours, (red, green, blue) from 0 to 255."""

    page: tuple  # the background
    ink: tuple
    faint: tuple  # labels
    line: tuple  # what is fainter still: rules, the empty timeline
    mask: tuple
    accent: tuple
    card: tuple  # background of what lies on top
    wrong: tuple  # background of what breaks a rule
    scale: tuple  # part of the colour scale that can be read on this page: improbable, probable


def rgb(colors):
    """Colours as they are written, "ff0000 ..." -> [(255, 0, 0), ...]."""
    return [tuple(bytes.fromhex(color)) for color in colors.split()]


THEMES = {  # page, ink, faint, line, mask, accent, card, wrong; the scale
    "dark": Theme(*rgb("11131a e9e9ed 8e93a3 323644 282c39 f0a83c 1e212c f0706a"), (0.5, 1.0)),
    "light": Theme(*rgb("fbfaf6 1d1f28 646874 d6d4cd e4e2db ac5200 ffffff c22f2a"), (0.42, 0.0)),
}
# matplotlib's colour scale at 0, 1/8, ... 1: even to the eye, also to a colour-blind one
VIRIDIS = rgb("440154 472d7b 3b528b 2c728e 21918c 28ae80 5ec962 addc30 fde725")


@lru_cache(maxsize=4096)
def mix(a, b, k):
    """The colour at k in [0, 1] on the way from a to b."""
    return tuple(round(x + (y - x) * k) for x, y in zip(a, b, strict=True))


def viridis(k):
    """The colour at k in [0, 1] of the scale."""
    position = min(max(float(k), 0.0), 1.0) * (len(VIRIDIS) - 1)
    i = min(int(position), len(VIRIDIS) - 2)
    return mix(VIRIDIS[i], VIRIDIS[i + 1], position - i)


@lru_cache(maxsize=4096)
def probability_color(p, theme):
    """The colour of a token that was drawn with probability p.

    It follows the square root: most draws are below 0.2, and should not look alike.
    """
    low, high = theme.scale
    return viridis(low + (high - low) * math.sqrt(p))


def certainty_color(p, theme):
    """The colour of a prediction with probability p; at p = 0 there is still something to see."""
    return mix(theme.mask, theme.ink, 0.15 + 0.85 * p)


def readable_on(paper):
    """Black or white, whichever is easier to read on this colour."""
    light = sum(w * (c / 255) ** 2 for w, c in zip((0.2, 0.7, 0.1), paper, strict=True))
    return (12, 12, 16) if light > 0.225 else (255, 255, 255)
