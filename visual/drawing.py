"""Fonts, and items drawn on a pygame surface."""

import importlib.util
import math
import unicodedata
from functools import cache, lru_cache
from pathlib import Path

import pygame
import pygame.freetype

from visual.items import direction, joins

SCRIPTS = {  # the first word of a character's name: what HarfBuzz calls its script
    "ARABIC": "Arab", "BENGALI": "Beng", "DEVANAGARI": "Deva", "GUJARATI": "Gujr",
    "GURMUKHI": "Guru", "HEBREW": "Hebr", "KANNADA": "Knda", "KHMER": "Khmr", "LAO": "Laoo",
    "MALAYALAM": "Mlym", "MYANMAR": "Mymr", "ORIYA": "Orya", "SINHALA": "Sinh", "SYRIAC": "Syrc",
    "TAMIL": "Taml", "TELUGU": "Telu", "THAI": "Thai", "TIBETAN": "Tibt",
}  # fmt: skip
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
    for name in [*",".join(FALLBACK_FONTS).split(","), *pygame.font.get_fonts()]:
        path = pygame.font.match_font(name)
        if path:
            yield Path(path)


def script_of(character):
    """The first word of a character's name, which for a letter is that of its script."""
    return unicodedata.name(character, "UNKNOWN").partition(" ")[0]


class Fonts:
    """Measures and renders text, each character in the first font that has it."""

    def __init__(self):
        pygame.font.init()
        pygame.freetype.init()  # it can say whether a font has a glyph
        self.paths = font_paths()
        self.fonts, self.coverage = [], []  # the best first; those that were needed so far
        self.scripts = {}  # for which script each font was last used
        self.missing = set()  # scripts that no font has
        self.first_with, self.width = cache(self.first_with), cache(self.width)
        self.height = cache(self.height)
        self.image = lru_cache(4000)(self.image)
        self.first_with("a")

    def first_with(self, character):
        """Number of the first font that has a character, or 0 if none has."""
        for i, font in enumerate(self.coverage):
            if font.get_metrics(character)[0] is not None:
                return i
        script = script_of(character)
        for path in self.paths if script not in self.missing else ():
            try:
                fonts = pygame.font.Font(str(path), 20), pygame.freetype.Font(str(path), 20)
                has_it = fonts[1].get_metrics(character)[0] is not None
            except (pygame.error, OSError):  # a format that this SDL cannot read or resize
                continue
            if has_it or not self.fonts:
                self.fonts.append(fonts[0])
                self.coverage.append(fonts[1])
            if has_it:
                self.paths = font_paths()
                return len(self.fonts) - 1
        if unicodedata.category(character)[0] in "LM":
            self.missing.add(script)
        return 0

    def font(self, number, size):
        """A font in a size. It is the same object for all sizes, as each keeps its file open."""
        font = self.fonts[number]
        if font.point_size != size:  # a change empties its cache of glyphs
            font.point_size = size
        return font

    def parts(self, text):
        """Cut a text where font or script change: (number of the font, script, text)s.

        They come in the order in which they are drawn from left to right.
        """
        parts = []
        for character in text:
            script = SCRIPTS.get(script_of(character), "Latn")
            number = self.first_with(character)
            if parts and (joins(character) or parts[-1][:2] == [number, script]):
                parts[-1][2] += character
            else:
                parts.append([number, script, character])
        return parts[::-1] if direction(text) == "R" else parts

    def shaped(self, number, script, text, size):
        """The font in which a part is measured and drawn."""
        font = self.font(number, size)
        if script != self.scripts.get(number, "Latn"):
            font.set_script(script)
            right = direction(text) == "R"
            font.set_direction(pygame.DIRECTION_RTL if right else pygame.DIRECTION_LTR)
            self.scripts[number] = script
        return font

    def width(self, text, size):
        """Pixels."""
        return sum(self.shaped(*part, size).size(part[2])[0] for part in self.parts(text))

    def height(self, size):
        """Pixels."""
        return self.font(0, size).get_height() + 1  # an underscore may stand one lower

    def image(self, text, size, color):
        """The text as a surface."""
        box = (max(1, self.width(text, size)), self.height(size))
        surface = pygame.Surface(box, pygame.SRCALPHA)
        x, ascent = 0, self.font(0, size).get_ascent()
        for part in self.parts(text):
            font = self.shaped(*part, size)
            width = font.size(part[2])[0]
            if width:  # SDL renders no text without width, such as a lone variation selector
                surface.blit(font.render(part[2], True, color), (x, ascent - font.get_ascent()))
            x += width
        return surface

    def lacking(self):
        """One line on the scripts for which there is no font, "" if there are fonts for all."""
        names = ", ".join(sorted(name.title() for name in self.missing))
        return f"no font here has {names}: install one, such as Noto Sans" if names else ""


@lru_cache(maxsize=2000)
def rounded(w, h, radius, color, line):
    """A box with smooth corners as a surface; `line` > 0: its outline only, that thick."""
    fine = 4  # drawn so many times larger, then shrunk
    surface = pygame.Surface((w * fine, h * fine), pygame.SRCALPHA)
    surface.fill((*color, 0))  # the colour also where it is transparent: no dark rims
    pygame.draw.rect(surface, color, surface.get_rect(), line * fine, round(radius * fine))
    return pygame.transform.smoothscale(surface, (w, h))


def place_of(item):
    """The pixels that an item may cover."""
    x, y = round(item.x), round(item.y)
    if item.kind != "line":
        return pygame.Rect(
            x, y, max(1, round(item.x + item.w) - x), max(1, round(item.y + item.h) - y)
        )
    area, thick = pygame.Rect(x, y, round(item.w), round(item.h)), math.ceil(item.radius) + 1
    area.normalize()
    return area.inflate(2 * thick, 2 * thick)


def bands(places):
    """Rectangles, one below the other, that cover all places."""
    found = []
    for place in sorted(places, key=lambda place: place.y):
        if found and place.y < found[-1].bottom:
            found[-1].union_ip(place)
        else:
            found.append(place.copy())
    return found


class Canvas:
    """A surface that draws a page, and of the next page only what is different there."""

    def __init__(self, surface, fonts):
        self.surface, self.fonts, self.page, self.shown = surface, fonts, None, {}

    def draw(self, layout, page):
        """Draw a layout on a page of that colour."""
        old, kept = self.shown, self.shown.get  # id: (item, its place)
        items = [item for item in layout.items if item.kind != "area"]
        self.shown = new = {id(item): kept(id(item)) or (item, place_of(item)) for item in items}
        dirty = [self.surface.get_rect()]
        if page == self.page:
            gone, come = dict(map(old.get, old.keys() - new)), dict(map(new.get, new.keys() - old))
            dirty = [gone[item] for item in gone.keys() - come]
            dirty = bands([*dirty, *(come[item] for item in come.keys() - gone)])
        self.page, places = page, [place for _, place in new.values()]
        for area in dirty:
            self.surface.set_clip(area)
            self.surface.fill(page)
            for k in area.collidelistall(places):
                self.draw_item(items[k], *places[k])
        self.surface.set_clip(None)

    def draw_item(self, item, x, y, w, h):
        surface = self.surface
        if item.kind == "text":
            image = self.fonts.image(item.text, item.size, item.color)
            surface.blit(image, (x, y), (0, 0, w, h))
        elif item.kind == "line":
            ends = (item.x, item.y), (item.x + item.w, item.y + item.h)
            pygame.draw.aaline(surface, item.color, *ends, max(1, round(item.radius)))
        elif item.kind == "outline":
            line = max(1, round(item.radius / 5))
            surface.blit(rounded(w, h, item.radius, item.color, line), (x, y))
        elif item.radius:
            surface.blit(rounded(w, h, item.radius, item.color, 0), (x, y))
        else:
            surface.fill(item.color, (x, y, w, h))
