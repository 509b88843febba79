"""Fonts, and items drawn on a pygame surface."""

import importlib.util
import io
import math
import unicodedata
from functools import cache, lru_cache
from itertools import chain, pairwise
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
    "notosanscjksc,notosanscjkjp,sourcehansanssc,microsoftyahei,pingfangsc,hiraginosansgb,simsun,"
    "notosansdevanagari,nirmalaui,kohinoordevanagari,notosanshebrew,notosansarabic,segoeui,"
    "notocoloremoji,segoeuiemoji,applecoloremoji,notoemoji,segoeuisymbol,symbola,arialunicodems"
)


def font_paths():
    """Files of fonts, the best first; looked for one by one, as finding them takes time."""
    spec = importlib.util.find_spec("matplotlib")  # which brings DejaVu along, on every system
    if spec is not None and spec.origin:
        folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
        yield from filter(Path.exists, (folder / "DejaVuSansMono.ttf", folder / "DejaVuSans.ttf"))
    mono = pygame.font.match_font("dejavusansmono,menlo,consolas,cascadiamono,liberationmono")
    others = map(pygame.font.match_font, [*FALLBACK_FONTS.split(","), *pygame.font.get_fonts()])
    own = Path(pygame.font.__file__).parent / pygame.font.get_default_font()
    yield from map(Path, filter(None, chain([mono, own], others)))


def script_of(character):
    """The first word of a character's name, which for a letter is that of its script."""
    return unicodedata.name(character, "UNKNOWN").partition(" ")[0]


class Fonts:
    """Measures and renders text, each character in the first font that has it."""

    def __init__(self):
        pygame.font.init()
        pygame.freetype.init()  # it can say whether a font has a glyph
        self.paths = font_paths()
        self.files, self.coverage = [], []  # the best first; those that were needed so far
        self.missing = set()  # scripts that no font has
        self.first_with, self.font = cache(self.first_with), lru_cache(200)(self.font)
        self.width, self.height = cache(self.width), cache(self.height)
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
                pygame.font.Font(str(path), 20)
                font = pygame.freetype.Font(str(path), 20)
                has_it = font.get_metrics(character)[0] is not None
            except (pygame.error, OSError):  # a format that this SDL cannot read or resize
                continue
            if has_it or not self.files:
                self.files.append(path.read_bytes())
                self.coverage.append(font)
            if has_it:
                self.paths = font_paths()
                return len(self.files) - 1
        if unicodedata.category(character)[0] in "LM":
            self.missing.add(script)
        return 0

    def font(self, number, size, script="Latn", right=False):
        """A font for a script. One for each size, as a change of size empties its cache of glyphs;
        from memory, as each would keep its file open."""
        font = pygame.font.Font(io.BytesIO(self.files[number]), size)
        if script != "Latn":
            font.set_script(script)
            font.set_direction(pygame.DIRECTION_RTL if right else pygame.DIRECTION_LTR)
        return font

    def parts(self, text, size):
        """Cut a text where font or script change: [(font, text)], from left to right."""
        parts = []
        for character in text:
            script = SCRIPTS.get(script_of(character), "Latn")
            number = self.first_with(character)
            if parts and (joins(character) or parts[-1][:2] == [number, script]):
                parts[-1][2] += character
            else:
                parts.append([number, script, character])
        parts = parts[::-1] if direction(text) == "R" else parts
        return [
            (self.font(number, size, script, direction(part) == "R"), part)
            for number, script, part in parts
        ]

    def width(self, text, size):
        """Pixels."""
        return sum(font.size(part)[0] for font, part in self.parts(text, size))

    def height(self, size):
        """Pixels."""
        return self.font(0, size).get_height() + 1  # an underscore may stand one lower

    def image(self, text, size, color):
        """The text as a surface."""
        box = (max(1, self.width(text, size)), self.height(size))
        surface = pygame.Surface(box, pygame.SRCALPHA)
        x, ascent = 0, self.font(0, size).get_ascent()
        for font, part in self.parts(text, size):
            width = font.size(part)[0]
            if width:  # SDL renders no text without width, such as a lone variation selector
                surface.blit(font.render(part, True, color), (x, ascent - font.get_ascent()))
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


def box_of(item):
    """x, y, w, h in whole pixels."""
    x, y = round(item.x), round(item.y)
    return x, y, max(1, round(item.x + item.w) - x), max(1, round(item.y + item.h) - y)


def place_of(items):
    """The pixels that some items may cover."""
    first, *others = [box_of(item) for item in items if item.kind != "area"] or [(0, 0, 0, 0)]
    thick = max((math.ceil(item.radius) + 1 for item in items if item.kind == "line"), default=0)
    return pygame.Rect(first).unionall(others).inflate(2 * thick, 2 * thick)


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
        old, new = self.shown, {}  # id: (a tuple of items, the pixels that they may cover)
        for items in (*layout.rows, *layout.words, layout.overlay):
            new[id(items)] = old.get(id(items)) or (items, place_of(items))
        changed = [(new.get(key) or old[key])[1] for key in new.keys() ^ old.keys()]
        dirty = bands(changed) if page == self.page else [self.surface.get_rect()]
        self.page, self.shown, shown = page, new, list(new.values())
        places = [place for _, place in shown]
        for area in dirty:
            self.surface.set_clip(area)
            self.surface.fill(page)
            for k in area.collidelistall(places):
                for item in shown[k][0]:
                    self.draw_item(item, *box_of(item))
        self.surface.set_clip(None)

    def draw_item(self, item, x, y, w, h):
        surface = self.surface
        if item.kind == "text":
            image = self.fonts.image(item.text, item.size, item.color)
            surface.blit(image, (x, y), (0, 0, w, h))
        elif item.kind == "line":
            thick = max(1, round(item.radius))
            for ends in pairwise((item.x + x, item.y + y) for x, y in item.points):
                pygame.draw.aaline(surface, item.color, *ends, thick)
        elif item.kind == "outline":
            line = max(1, round(item.radius / 5))
            surface.blit(rounded(w, h, item.radius, item.color, line), (x, y))
        elif item.kind == "box" and item.radius:
            surface.blit(rounded(w, h, item.radius, item.color, 0), (x, y))
        elif item.kind == "box":
            surface.fill(item.color, (x, y, w, h))
