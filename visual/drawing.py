"""Fonts, and items drawn on a pygame surface."""

import importlib.util
from functools import cache, lru_cache
from pathlib import Path

import pygame
import pygame.freetype

from visual.items import joins

FALLBACK_FONTS = (  # of the usual systems, for what the first font has no glyph for
    "notosanscjksc,notosanscjkjp,sourcehansanssc,microsoftyahei,pingfangsc,hiraginosansgb,simsun",
    "notosansdevanagari,nirmalaui,kohinoordevanagari,notosanshebrew,notosansarabic,segoeui",
    "notocoloremoji,segoeuiemoji,applecoloremoji,notoemoji,segoeuisymbol,symbola,arialunicodems",
)


def font_paths():
    """Files of fonts, the best first; looked for one by one, as finding them takes time."""
    spec = importlib.util.find_spec("matplotlib")  # which brings DejaVu along, on every system
    if spec is not None and spec.origin:
        folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
        yield from filter(Path.exists, (folder / "DejaVuSansMono.ttf", folder / "DejaVuSans.ttf"))
    mono = pygame.font.match_font("dejavusansmono,menlo,consolas,cascadiamono,liberationmono")
    if mono:
        yield Path(mono)
    yield Path(pygame.font.__file__).parent / pygame.font.get_default_font()
    for name in ",".join(FALLBACK_FONTS).split(","):
        path = pygame.font.match_font(name)
        if path:
            yield Path(path)


class Fonts:
    """Measures and renders text, each character in the first font that has it."""

    def __init__(self):
        pygame.font.init()
        pygame.freetype.init()  # it can say whether a font has a glyph
        self.more_paths = font_paths()
        self.fonts, self.coverage = [], []  # the best first; those that were needed so far
        self.first_with, self.width = cache(self.first_with), cache(self.width)
        self.image = lru_cache(4000)(self.image)
        self.first_with("a")

    def first_with(self, character):
        """Number of the first font that has a character, or 0 if none has."""
        for i, font in enumerate(self.coverage):
            if font.get_metrics(character)[0] is not None:
                return i
        for path in self.more_paths:
            try:
                fonts = pygame.font.Font(str(path), 20), pygame.freetype.Font(str(path), 20)
                has_it = fonts[1].get_metrics(character)[0] is not None
            except (pygame.error, OSError):  # a format that this SDL cannot read or resize
                continue
            self.fonts.append(fonts[0])
            self.coverage.append(fonts[1])
            if has_it:
                return len(self.fonts) - 1
        return 0

    def font(self, number, size):
        """A font in a size. It is the same object for all sizes, as each keeps its file open."""
        font = self.fonts[number]
        if font.point_size != size:  # a change empties its cache of glyphs
            font.point_size = size
        return font

    def parts(self, text):
        """Cut a text where the font changes: a list of (number of the font, text)."""
        parts = []
        for character in text:
            number = self.first_with(character)
            if parts and (joins(character) or parts[-1][0] == number):
                parts[-1] = (parts[-1][0], parts[-1][1] + character)
            else:
                parts.append((number, character))
        return parts

    def width(self, text, size):
        """Pixels."""
        return sum(self.font(n, size).size(part)[0] for n, part in self.parts(text))

    def height(self, size):
        """Pixels."""
        return self.font(0, size).get_height() + 1  # an underscore may stand one lower

    def image(self, text, size, color):
        """The text as a surface."""
        box = (max(1, self.width(text, size)), self.height(size))
        surface = pygame.Surface(box, pygame.SRCALPHA)
        x, ascent = 0, self.font(0, size).get_ascent()
        for number, part in self.parts(text):
            font = self.font(number, size)
            width = font.size(part)[0]
            if width:  # SDL renders no text without width, such as a lone variation selector
                surface.blit(font.render(part, True, color), (x, ascent - font.get_ascent()))
            x += width
        return surface


@lru_cache(maxsize=2000)
def rounded(w, h, radius, color, line):
    """A box with smooth corners as a surface; `line` > 0: its outline only, that thick."""
    fine = 4  # drawn so many times larger, then shrunk
    surface = pygame.Surface((w * fine, h * fine), pygame.SRCALPHA)
    surface.fill((*color, 0))  # the colour also where it is transparent: no dark rims
    pygame.draw.rect(surface, color, surface.get_rect(), line * fine, round(radius * fine))
    return pygame.transform.smoothscale(surface, (w, h))


def draw_layout(surface, layout, fonts, page):
    """Draw the items of a layout, from back to front, on a page of that colour."""
    surface.fill(page)
    for item in layout.items + layout.overlay:
        x, y = round(item.x), round(item.y)
        w, h = max(1, round(item.x + item.w) - x), max(1, round(item.y + item.h) - y)
        if item.kind == "text":
            surface.blit(fonts.image(item.text, item.size, item.color), (x, y), (0, 0, w, h))
        elif item.kind == "outline":
            line = max(1, round(item.radius / 5))
            surface.blit(rounded(w, h, item.radius, item.color, line), (x, y))
        elif item.kind == "box" and item.radius:
            surface.blit(rounded(w, h, item.radius, item.color, 0), (x, y))
        elif item.kind == "box":
            surface.fill(item.color, (x, y, w, h))
