"""Watch a masked diffusion model write.

    python sample_visual.py                              a window, with your newest checkpoint
    python sample_visual.py --prompt "God made ____."    each _ is a mask to fill
    python sample_visual.py --text                       in the terminal instead
    python sample_visual.py --save out.gif               a file instead (.gif, .webp, .mp4)
    python sample_visual.py --save out.png --view order  six moments on one sheet
    python sample_visual.py --race                       against the autoregressive twin
    python sample_visual.py --save run.safetensors       the recording itself ...
    python sample_visual.py --replay run.safetensors     ... which needs no model to be shown

In the window, H shows every key; whatever has a key can be clicked as well.

The file reads from top to bottom. A run of the sampler is *recorded* (1), the recording is *laid
out* as positioned, coloured items by pure functions (2), and items are *drawn* (3). What a person
does becomes a *command*, and a command makes a new state (4). A *worker* runs the model, so that
the window never waits for it (5). Pictures, animations and the terminal are made of the same
items (6).
"""

import argparse
import contextlib
import gc
import importlib.util
import io
import json
import math
import os
import queue
import re
import shutil
import sys
import tempfile
import threading
import time
import unicodedata
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
import torch

from bpe_tokenizer import UserError, write_atomically
from mdlm.sampling import (
    adjust,
    noise_grid,
    sample,
    sample_confident,
    sample_first_hitting,
    sample_plain,
    sample_remask,
    start_from,
    template,
)
from mdlm.training import autocast, load_checkpoint, newest_checkpoint
from mdlm.twin import sample_twin

os.environ["PYGAME_HIDE_SUPPORT_PROMPT"] = "1"
import pygame
import pygame.freetype

HERE = Path(__file__).resolve().parent
SAMPLERS = {  # all are called alike and return a Trajectory
    "ancestral": sample,
    "plain": sample_plain,
    "first-hitting": sample_first_hitting,
    "confident": sample_confident,
    "remask": sample_remask,
}
VIEWS = {  # name: what it shows, in one line
    "text": "Colour: how probable the model found a token when it drew it.",
    "order": "Colour: the step in which a token appeared. Any order can happen.",
    "belief": "Under each mask: the model's first choice now, the brighter the surer.",
}
CANDIDATES = 5  # tokens kept of what the model believes at each mask


# ------------------------------------------------------------------------------------------------
# 1. The record: everything that one run produced


@dataclass(frozen=True)
class Settings:
    """What a run is asked to do. The window changes these for the next run."""

    steps: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    sampler: str = "ancestral"
    seed: int = 1
    length: int = 128  # tokens
    prompt: str = ""  # the text begins like this; each "_" in it is one mask
    kept: tuple = ()  # of (position, token id): tokens that are fixed anywhere else


@dataclass(frozen=True, eq=False)
class Record:
    """One run. L tokens, T steps; S of them change something; K candidates at each mask."""

    title: str
    settings: Settings
    names: tuple  # (V,) every token as readable text
    pieces: tuple  # (L,) what each finished token shows
    last: np.ndarray  # (L,) the token that ends the characters which this one begins
    probability: np.ndarray  # (L,) what the sampler gave each finished token (given: 1)
    n_steps: int  # T
    change: np.ndarray  # (S,) steps after which the text is another one, rising from 0
    states: np.ndarray  # (S, L) the token ids after those steps; MASKED where there is none
    calls: np.ndarray  # (T + 1,) passes through the network after each step
    seconds: float  # what sampling took
    belief_step: np.ndarray  # (R,) the steps, rising, whose states the model was asked about
    belief_token: np.ndarray  # (R, L, K) ids of the most probable tokens there
    belief_probability: np.ndarray  # (R, L, K)
    live: bool = False  # still being sampled: what a masked token will be is not known

    @cached_property
    def since(self):
        """(S, L) the step after which the token that stands there, or the mask, appeared."""
        new = self.states[1:] != self.states[:-1]
        first = np.zeros((1, len(self.pieces)), np.int64)
        since = np.concatenate([first, np.where(new, self.change[1:, None], 0)])
        return np.maximum.accumulate(since)

    @cached_property
    def takes_back(self):
        """Whether the sampler replaced a token by another one."""
        return bool(((self.states != MASKED) & (self.states != self.states[-1])).any())

    def row(self, at):
        """Which of the states is that after `at` steps."""
        return int(np.searchsorted(self.change, at, side="right")) - 1

    def masked(self, at):
        """How many masks there are after `at` steps."""
        return int((self.states[self.row(at)] == MASKED).sum())

    def n_drawn(self):
        """How many tokens were not given."""
        return int((self.states[0] == MASKED).sum())

    @property
    def lanes(self):
        """The runs to be shown: this one. A `Race` has two."""
        return (self,)

    def lane_at(self, lane, at):
        """The step in which `lane` is when the timeline stands at `at`."""
        return lane.n_steps if lane.live else at


@dataclass(frozen=True, eq=False)
class Race:
    """What two models made of the same settings, on one clock: the seconds that each took."""

    lanes: tuple  # of Record: the diffusion model, its twin
    n_steps = 480  # ticks of the clock, from the start until the slower one is done

    @property
    def title(self):
        return self.lanes[0].title

    @property
    def settings(self):
        return self.lanes[0].settings

    @property
    def live(self):
        return any(lane.live for lane in self.lanes)

    @property
    def seconds(self):
        """What the slower one took."""
        return max(lane.seconds for lane in self.lanes)

    def lane_at(self, lane, at):
        """The last step that `lane` has done when the clock stands at tick `at`."""
        if lane.live:
            return lane.n_steps
        if lane.seconds == 0:
            return 0
        calls = lane.calls[-1] * at / self.n_steps * self.seconds / lane.seconds  # done by now
        return int(np.searchsorted(lane.calls, calls + 1e-9, side="right")) - 1


def lane_of(record, i):
    """Token number i, counted through all lanes -> (lane, number of the token in it)."""
    for lane in record.lanes:
        if i < len(lane.pieces):
            break
        i -= len(lane.pieces)
    return lane, i


MASKED = -1
ARRAYS = (  # name, kind, dimensions of what is saved as an array
    ("last", "i", 1),
    ("probability", "f", 1),
    ("change", "i", 1),
    ("states", "i", 2),
    ("calls", "f", 1),
    ("belief_step", "i", 1),
    ("belief_token", "i", 3),
    ("belief_probability", "f", 3),
)
NO_BELIEF = {
    "belief_step": np.zeros(0, np.int64),
    "belief_token": np.zeros((0, 0, 0), np.int64),
    "belief_probability": np.zeros((0, 0, 0)),
}


def text_pieces(parts):
    """A list of bytes, one for each token -> (pieces, last): what each token shows.

    A character may be spelled by several tokens. It is shown by the token with its first byte;
    `last` says up to which token one must wait for that. A token that only goes on with another's
    character shows "·"; bytes that are no UTF-8 show as U+FFFD.
    """
    owner = [i for i, part in enumerate(parts) for _ in part]  # of each byte
    data = b"".join(parts)
    pieces, last, at = ["" for _ in parts], list(range(len(parts))), 0
    while at < len(data):
        lead = data[at]
        n = 1 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
        try:
            character = data[at : at + n].decode("utf-8")
        except UnicodeDecodeError:
            character, n = "\ufffd", 1
        pieces[owner[at]] += character
        last[owner[at]] = max(last[owner[at]], owner[at + n - 1])
        at += n
    return tuple(piece or "·" for piece in pieces), last


def calls_after(change, n_steps, total):
    """Passes through the network after each of 0..T steps. (T + 1,)

    A sampler runs the network either in those steps only in which something appears, or in all.
    """
    busy = np.zeros(n_steps + 1)
    busy[change[1:]] = 1
    if busy.sum() == total:
        return busy.cumsum()
    return np.linspace(0, total, n_steps + 1)


def make_record(trajectory, tokenizer, settings=None, title="", seconds=0.0, row=0):
    """Text number `row` of a `Trajectory` as a `Record`, so far without beliefs."""
    tokens, mask, n_steps = trajectory.tokens[row], trajectory.mask_id, trajectory.n_steps
    pieces, last = text_pieces([tokenizer.token_bytes[i] for i in tokens])
    change = np.unique(np.concatenate([[0], trajectory.step[row].numpy()]))
    if trajectory.states is not None:  # a token may have come and gone in any step
        change = np.arange(n_steps + 1)
    states = torch.stack([trajectory.state(int(step))[row] for step in change])
    return Record(
        title=title,
        settings=settings or Settings(steps=n_steps, length=len(tokens)),
        names=token_names(tokenizer),
        pieces=pieces,
        last=np.array(last, np.int64),
        probability=trajectory.probability[row].double().numpy(),
        n_steps=n_steps,
        change=change,
        states=torch.where(states == mask, MASKED, states).numpy(),
        calls=calls_after(change, n_steps, trajectory.network_calls),
        seconds=seconds,
        **NO_BELIEF,
    )


def live_record(title, settings, names, change, states, calls):
    """What there is of a text while it is being sampled, after so many passes.

    change: (S,) the passes that changed something, from 0; states: (S, L) the text after them.
    """
    return Record(
        title=title,
        settings=settings,
        names=names,
        pieces=tuple("" if i == MASKED else names[i] for i in states[-1]),
        last=np.arange(states.shape[1]),
        probability=np.ones(states.shape[1]),
        n_steps=max(1, calls),
        change=change,
        states=states,
        calls=np.arange(max(1, calls) + 1.0),
        seconds=0.0,
        **NO_BELIEF,
        live=True,
    )


def token_names(tokenizer):
    """Every token as readable text, in the order of the ids."""
    return tuple(tokenizer.show(i) for i in range(tokenizer.vocab_size))


def starting_text(settings, tokenizer):
    """The text that a run starts from: what is given, and masks elsewhere. (1, L) token ids.

    Raises UserError if the prompt does not fit.
    """
    if settings.length < 1:
        raise UserError(f"the length must be at least 1 token, not {settings.length}")
    prompt = re.sub(" (_+)", r"\1", settings.prompt)  # a token brings its own space
    parts = re.findall("_+|[^_]+", prompt)
    parts = [len(part) if part[0] == "_" else part for part in parts]
    z = template(tokenizer, parts, settings.length)
    for position, token in settings.kept:
        if position < settings.length and z[0, position] == tokenizer.mask_id:
            z[0, position] = token
    return z


class Watched:
    """A model with somebody looking over its shoulder: `look(z)` is called before each pass."""

    def __init__(self, model, look):
        self.model, self.look = model, look

    def __getattr__(self, name):
        return getattr(self.model, name)

    def features(self, z, t=None):
        self.look(z)
        return self.model.features(z, t)


def check_settings(settings, model, tokenizer):
    """Raise UserError for settings that no run can have, before it begins."""
    if not 0 <= settings.seed < 2**63:
        raise UserError(f"the seed must be from 0 to 2^63 - 1, not {settings.seed}")
    if settings.steps > 100_000:
        raise UserError(f"steps must be at most 100000, not {settings.steps}")
    noise_grid(settings.steps, "linear")
    adjust(torch.zeros(1, 2), temperature=settings.temperature, top_p=settings.top_p)
    start_from(model, starting_text(settings, tokenizer))


def record_run(model, tokenizer, settings, title="", look=lambda z: None):
    """Sample one text. `look(z)` sees each text (1, L) that goes through the network.

    Returns a `Record`. Raises UserError for settings that make no sense.
    """
    check_settings(settings, model, tokenizer)
    z = starting_text(settings, tokenizer)
    knobs = dict(
        temperature=settings.temperature,
        top_p=settings.top_p,
        generator=torch.Generator().manual_seed(settings.seed),
    )
    start = time.perf_counter()
    if model.config.causal:
        trajectory = sample_twin(model, z, **knobs)
    else:
        trajectory = SAMPLERS[settings.sampler](Watched(model, look), z, settings.steps, **knobs)
    return make_record(trajectory, tokenizer, settings, title, time.perf_counter() - start)


@torch.no_grad()
def with_beliefs(model, record, progress=lambda fraction: None, most=256, tokens_at_once=2048):
    """The record (or the race), with what the model would put under each mask after each step.

    The model is run again on the recorded states: at most `most` of them, evenly spread, and
    `tokens_at_once` tokens at a time. `progress(fraction)` is called before each pass. These are
    the model's own probabilities, whatever the temperature of the run. The twin has none: it
    knows what comes next, not what stands under a mask.
    """
    if isinstance(record, Race):
        first, twin = record.lanes
        return Race((with_beliefs(model, first, progress, most, tokens_at_once), twin))
    if model.config.causal:
        return record
    device = next(model.parameters()).device
    rows = np.arange(len(record.change))
    if len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(int)]
    steps, states = record.change[rows], record.states[rows]
    states = np.where(states == MASKED, model.mask_id, states)  # (R, L)
    t = (1 - noise_grid(record.n_steps, "linear")[steps]).float()  # (R,)
    tokens, probabilities = [], []
    size = max(1, tokens_at_once // len(record.pieces))
    for i in range(0, len(steps), size):
        progress(i / len(steps))
        z = torch.from_numpy(states[i : i + size]).to(device)
        with autocast(device):
            log_p = model(z, t[i : i + size].to(device))  # (size, L, V)
        best = log_p.float().topk(CANDIDATES)
        tokens.append(best.indices.cpu().numpy())
        probabilities.append(best.values.exp().double().cpu().numpy())
    return replace(
        record,
        belief_step=steps,
        belief_token=np.concatenate(tokens),
        belief_probability=np.concatenate(probabilities),
    )


def candidates(record, i, at):
    """What the model would put at position i after `at` steps: a list of (name, probability)."""
    s = np.searchsorted(record.belief_step, at, side="right") - 1
    if s < 0:
        return []
    pairs = zip(record.belief_token[s, i], record.belief_probability[s, i], strict=True)
    return [(record.names[token], float(p)) for token, p in pairs]


def record_bytes(record):
    """The record as the bytes of a .safetensors file: arrays, and the rest as JSON beside them."""
    arrays = {name: np.ascontiguousarray(getattr(record, name)) for name, _, _ in ARRAYS}
    rest = {
        "settings": asdict(record.settings),
        **{name: getattr(record, name) for name in ("title", "pieces", "names")},
        **{name: getattr(record, name) for name in ("n_steps", "seconds")},
    }
    return safetensors.numpy.save(arrays, {"format": "mdlm-record", "record": json.dumps(rest)})


def load_record(path):
    """Inverse of `record_bytes`, from a file. Raises UserError if it is no such file."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") != "mdlm-record":
            raise ValueError("it is something else")
        rest = json.loads(metadata["record"])
        kept = tuple((int(i), int(token)) for i, token in rest["settings"].pop("kept"))
        record = Record(
            **arrays,
            settings=Settings(**rest.pop("settings"), kept=kept),
            pieces=tuple(rest.pop("pieces")),
            names=tuple(rest.pop("names")),
            **rest,
        )
        check_record(record)
        return record
    except FileNotFoundError:
        raise UserError(f"{path}: no such recording") from None
    except (
        safetensors.SafetensorError,
        OSError,
        LookupError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:
        line = " ".join(str(error).split())
        raise UserError(f"{path}: not a recording, or a damaged one ({line})") from None


def check_record(record):
    """Raise ValueError if the parts of a record do not fit together."""
    for name, kind, dimensions in ARRAYS:
        array = getattr(record, name)
        if array.dtype.kind != kind or array.ndim != dimensions:
            raise ValueError(f"{name} has the wrong kind or shape")
    L, T, belief = len(record.pieces), record.n_steps, record.belief_token
    if not all(isinstance(text, str) for text in (record.title, *record.pieces, *record.names)):
        raise ValueError("a token is not a text")
    for field in fields(Settings):
        if type(getattr(record.settings, field.name)) is not type(field.default):
            raise ValueError(f"its setting {field.name} is of the wrong kind")
    if type(T) is not int or T < 1 or not isinstance(record.seconds, int | float):
        raise ValueError("a number is of the wrong kind")
    if L == 0 or not len(record.last) == len(record.probability) == record.states.shape[1] == L:
        raise ValueError("its lists differ in length")
    if len(record.states) != len(record.change) or len(record.calls) != T + 1:
        raise ValueError("its steps differ in number")
    if record.change[0] != 0 or (np.diff(record.change) <= 0).any() or record.change[-1] > T:
        raise ValueError("a step is out of range")
    if record.states.min() < MASKED or record.states.max() >= len(record.names):
        raise ValueError("a token is out of range")
    if record.last.min() < 0 or record.last.max() >= L:
        raise ValueError("a token is out of range")
    if record.belief_probability.shape != belief.shape or len(record.belief_step) != len(belief):
        raise ValueError("the beliefs do not fit together")
    if belief.size and (
        belief.shape[1] != L or belief.min() < 0 or belief.max() >= len(record.names)
    ):
        raise ValueError("a belief is out of range")


# ------------------------------------------------------------------------------------------------
# 2. Layout: pure functions from a record and a state to positioned, coloured items


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


# -- the text


class Spot(NamedTuple):
    """A token, or as much of it as stands on one line. x, w in pixels."""

    token: int
    text: str
    line: int
    x: float
    w: float
    starts: bool = True  # nothing touches it on its left: it begins a word or a line
    ends: bool = True


class Run(NamedTuple):
    """A part of a token that stays on one line."""

    token: int
    text: str
    gap: bool  # a space comes before it
    ends_line: bool
    w: float


def visible(character):
    """A character as something that one can see."""
    if character in "\n\t\r":
        return {"\n": "↵", "\t": "⇥", "\r": "↤"}[character]
    if unicodedata.category(character) in ("Cc", "Cs"):
        return f"\\x{ord(character):02x}"
    return character


def token_runs(token, piece, fonts, size):
    """Cut a token's text at line breaks. A leading space becomes a gap."""
    gap = len(piece) > 1 and piece[0] == " " and not piece[1].isspace()
    runs = []
    for part in re.findall(r"[^\n]+|\n", piece[1:] if gap else piece):
        text = "".join(map(visible, part))
        if unicodedata.combining(text[0]):
            text = "◌" + text  # a mark with nothing to stand on
        w = max(fonts.width(text, size), fonts.width("·", size))
        runs.append(Run(token, text, gap and not runs, part == "\n", w))
    return runs


def words_of(runs):
    """Group runs into words: lists that a line break should not tear apart."""
    word = []
    for run in runs:
        if run.gap and word:
            yield word
            word = []
        word.append(run)
        if run.ends_line:
            yield word
            word = []
    if word:
        yield word


def split_run(run, width, fonts, size):
    """A run that is wider than a line -> runs that are not (except for single characters)."""
    parts, text = [], ""
    for character in run.text:
        whole = unicodedata.combining(character) or character == "\u200d"
        if text and not whole and fonts.width(text + character, size) > width:
            parts.append(text)
            text = ""
        text += character
    parts.append(text)
    least = fonts.width("·", size)
    return [
        Run(
            run.token,
            part,
            run.gap and i == 0,
            run.ends_line and i == len(parts) - 1,
            min(width, max(least, fonts.width(part, size))),
        )
        for i, part in enumerate(parts)
    ]


def break_lines(pieces, width, fonts, size):
    """Set the text in lines of `width` pixels. Returns (list of Spot, number of lines)."""
    space = fonts.width(" ", size)
    runs = [run for i, piece in enumerate(pieces) for run in token_runs(i, piece, fonts, size)]
    spots, x, line = [], 0.0, 0
    for word in words_of(runs):
        total = sum(run.w for run in word)
        if word[0].gap and x > 0:
            x += space
        if x > 0 and x + total > width and (total <= width or x + word[0].w > width):
            x, line = 0.0, line + 1
        for whole in word:
            parts = [whole] if whole.w <= width else split_run(whole, width, fonts, size)
            for run in parts:
                if x > 0 and x + run.w > width:
                    x, line = 0.0, line + 1
                touches = spots and spots[-1].line == line and not (run.gap and run is parts[0])
                if touches:
                    spots[-1] = spots[-1]._replace(ends=False)
                spots.append(Spot(run.token, run.text, line, x, run.w, starts=not touches))
                x += run.w
                if run.ends_line:
                    x, line = 0.0, line + 1
    return spots, 1 + max((spot.line for spot in spots), default=0)


def live_grid(pieces, width, fonts, size):
    """Tokens in equal cells: so nothing moves while it is not known how long they will be."""
    gap = fonts.width(" ", size)
    cell = min(width, fonts.width("abcdef", size))
    columns = max(1, int((width + gap) / (cell + gap)))
    spots = []
    for i, piece in enumerate(pieces):
        text = shorten(fonts, "".join(map(visible, piece.removeprefix(" "))), size, cell)
        spots.append(Spot(i, text, i // columns, i % columns * (cell + gap), cell))
    return spots, -(-len(pieces) // columns)


def line_height(fonts, size):
    """Pixels from one line of text to the next."""
    return math.ceil(fonts.height(size) * 1.42)


@lru_cache(maxsize=256)
def set_text(pieces, live, width, height, largest, smallest, fonts):
    """The text in the largest letters with which it fits into the panel.

    Returns (size, spots, number of lines). In the smallest letters it may not fit all the same.
    """
    setter = live_grid if live else break_lines

    def attempt(size):
        spots, n_lines = setter(pieces, width, fonts, size)
        return size, spots, n_lines, n_lines * line_height(fonts, size) <= height

    low, high = smallest, max(smallest, largest)
    best = attempt(low)
    while low < high:
        middle = (low + high + 1) // 2
        tried = attempt(middle)
        if tried[-1]:
            best, low = tried, middle
        else:
            high = middle - 1
    return best[:3]


def flash_of(record, i, at):
    """How fresh a token is: 1 when it has just appeared, soon 0, which a given token always is."""
    since = record.since[record.row(at), i]
    fade = 3 if record.live else max(1.0, record.n_steps / 16)  # in steps
    return max(0.0, 1 - (at - since) / fade) ** 2 if since > 0 else 0.0


class Look(NamedTuple):
    """How a token looks: its text (None: the final one), ink, and paper (None: the page's)."""

    text: str | None
    ink: tuple
    paper: tuple | None


def token_look(record, i, at, view, theme):
    """How token i looks after `at` steps."""
    s = record.row(at)
    token, since = record.states[s, i], record.since[s, i]
    if token == MASKED:
        guess = candidates(record, i, at)[:1] if view == "belief" else []
        if not guess:
            return Look("", theme.ink, theme.mask)
        name, p = guess[0]
        # 15 % of the way at p = 0: something to see, however unsure the model is
        return Look(shown_name(name), mix(theme.mask, theme.ink, 0.15 + 0.85 * p), theme.mask)
    final = token == record.states[-1, i]
    text = None if final else shown_name(record.names[token])  # some samplers take tokens back
    character = slice(i, record.last[i] + 1)
    if final and (record.states[s, character] != record.states[-1, character]).any():
        text = "\ufffd"  # a part of its character is missing
    flash = flash_of(record, i, at)
    paper = mix(theme.page, theme.accent, 0.55 * flash) if flash > 0.01 else None
    if since == 0 or record.live:
        return Look(text, theme.ink, paper)
    if view == "order":
        paper = mix(viridis(since / record.n_steps), (255, 255, 255), 0.6 * flash)
        return Look(text, readable_on(paper), paper)
    if view == "belief":
        return Look(text, mix(theme.ink, theme.page, 0.25), paper)
    ink = probability_color(record.probability[i], theme) if final else theme.faint
    return Look(text, mix(ink, theme.ink, flash), paper)


def shown_name(name):
    """A candidate's name as it looks in a text: without its leading space."""
    return "".join(map(visible, name.removeprefix(" ") or name))


def fitted_text(style, text, box, size, color, part):
    """A text in box (x, y, w, h): somewhat smaller, and cut off, if it is too wide."""
    x, y, w, h = box
    smallest = max(1, round(size * 0.65))
    while style.fonts.width(text, size) > w and size > smallest:
        size -= 1
    while text and style.fonts.width(text, size) > w:
        text = text[:-1]
    item = style.text(x, y, text, color, size, part)
    return [item._replace(y=y + (h - item.h) / 2)] if text else []


BLEED = 4  # units by which the box of a token reaches beyond its word


def lay_out_panel(record, at, state, box, style, before=0):
    """The text of one run after `at` steps in box (x, y, w, h).

    `before`: how many tokens the panels to the left have. Returns (items, number of lines that do
    not fit).
    """
    theme, fonts = style.theme, style.fonts
    row = record.row(at)
    zoom, inset = style.unit * state.zoom, style.px(BLEED)
    x, y, w, h = box[0] + inset, box[1], box[2] - 2 * inset, box[3]
    largest, smallest = round(30 * zoom), max(9, round(13 * zoom))
    size, spots, n_lines = set_text(
        record.pieces, record.live, int(w), int(h), largest, smallest, fonts
    )
    pitch, glyph = line_height(fonts, size), fonts.height(size)
    bleed = min(inset, fonts.width(" ", size) // 3)  # two boxes never meet in one space
    if glyph > h:
        return [], n_lines
    room = int((h - glyph) // pitch) + 1
    first = min(state.scroll, max(0, n_lines - room))
    kept = {position for position, _ in state.settings.kept} if not record.live else set()
    items, hair = [], max(1, round(size / 16))
    for spot in spots:
        if not first <= spot.line < first + room:
            continue
        i, left, top = spot.token, x + spot.x, y + (spot.line - first) * pitch
        look = token_look(record, i, at, state.view, theme)
        start = left - bleed if spot.starts else left
        end = left + spot.w + bleed if spot.ends else left + spot.w - hair
        place = (start, top, max(1, end - start), glyph)
        shape = dict(radius=size / 5, command=f"fix {before + i}")
        if look.paper is None:
            items.append(Item("area", *place, part="token", **shape))
        else:
            items.append(Item("box", *place, look.paper, part="token", **shape))
        inside = (left, top, spot.w, glyph)
        if look.text is None:
            word = style.text(left, top, spot.text, look.ink, size, "word")
            items.append(word._replace(w=spot.w))
        else:
            items += fitted_text(style, look.text, inside, size, look.ink, "word")
        if record.since[row, i] == 0 and record.states[row, i] != MASKED:  # given
            rule = (left, top + glyph - hair, spot.w, hair, theme.accent)
            items.append(Item("box", *rule, part="given"))
        if i in kept:
            items.append(Item("outline", *place, theme.accent, part="kept", radius=size / 5))
        if before + i == state.cursor:
            items.append(Item("outline", *place, theme.ink, part="cursor", radius=size / 5))
    return items, n_lines - room


# -- everything around it: rows, each a function of the width that returns (items, height)


def flow(groups, width, gap, leading):
    """Set groups of items, each laid out at (0, 0), in lines like words. Returns (items, h)."""
    items, x, y, tallest = [], 0, 0, 0
    for group in groups:
        w = max(item.x + item.w for item in group)
        if x > 0 and x + w > width:
            x, y = 0, y + tallest + leading
            tallest = 0
        items += moved(group, x, y)
        tallest = max([tallest] + [item.y + item.h for item in group])
        x += w + gap
    return [item for item in items if item.x + item.w <= width + 0.5], y + tallest


def button(style, text, command, on=False, part="button"):
    """A text that can be clicked, as a group of items."""
    theme, pad = style.theme, style.px(8)
    label = style.text(pad, style.px(4), text, theme.page if on else theme.faint, part=part)
    paper = (0, 0, label.w + 2 * pad, label.h + style.px(8))
    if not on:
        return [Item("area", *paper, part=part, command=command), label]
    return [Item("box", *paper, theme.ink, radius=style.px(7), part=part, command=command), label]


def fact(style, label, value, part="fact", color=None):
    """A faint label and a value, as a group of items."""
    first = style.text(0, 0, label, style.theme.faint, part=part)
    second = style.text(first.w + style.px(7), 0, value, color or style.theme.ink, part=part)
    return [first, second]


def header_row(record, state, style, width):
    """The title on the left; on the right the views, help and theme."""
    groups = [button(style, view, f"view {view}", view == state.view, "tab") for view in VIEWS]
    if state.controls:
        groups.append(button(style, "theme", "theme"))
        groups.append(button(style, "?", "help"))
    right, h = flow(groups, width, style.px(4), style.px(2))
    right_w = max((item.x + item.w for item in right), default=0)
    right = moved(right, width - right_w, 0)
    title = shorten(style.fonts, record.title, style.px(14), width - right_w - style.px(20))
    left = [style.text(0, style.px(4), title, style.theme.ink, part="title")] if title else []
    return left + right, h


def caption_row(record, state, style, width):
    """One line on what is to be seen, and the scale of its colours. Errors appear here, too."""
    theme, size = style.theme, style.px(13)
    text, color = VIEWS[state.view], theme.faint
    first = record.lanes[0]
    if state.view == "text" and first.takes_back and not record.live:
        text += " Grey: it will be taken back."
    if state.view == "belief" and not len(first.belief_step):
        text = "The model has not been asked what it believes."
    text = state.busy or text
    if state.message:
        text, color = state.message, theme.accent
    legend = [] if record.live else color_legend(state.view, style, size)
    legend_w = max((item.x + item.w for item in legend), default=0)
    if legend_w > width * 0.45:
        legend, legend_w = [], 0
    text = shorten(style.fonts, text, size, width - legend_w - style.px(16))
    items = moved(legend, width - legend_w, 0)
    if text:
        items.append(style.text(0, 0, text, color, size, "caption"))
    return items, style.fonts.height(size)


def color_legend(view, style, size):
    """The scale of a view's colours between its two ends, as a group of items."""
    theme = style.theme
    ends, color = {
        "text": (("0", "1"), lambda k: probability_color(k, theme)),
        "order": (("first", "last"), viridis),
        "belief": (("unsure", "sure"), lambda k: mix(theme.mask, theme.ink, 0.15 + 0.85 * k)),
    }[view]
    items = [style.text(0, 0, ends[0], theme.faint, size, "legend")]
    x, n, w, h = items[0].w + style.px(8), 24, style.px(4), style.px(8)
    top = (items[0].h - h) / 2
    for i in range(n):
        items.append(Item("box", x + i * w, top, w, h, color(i / (n - 1)), part="legend"))
    return [*items, style.text(x + n * w + style.px(8), 0, ends[1], theme.faint, size, "legend")]


@lru_cache(maxsize=32)
def histogram(steps, n_steps, n_bins):
    """How many tokens appear in each of `n_bins` equal parts of the run, as parts of the most."""
    counts = np.bincount((np.array(steps) - 1) * n_bins // n_steps, minlength=n_bins)
    return tuple(counts / max(1, counts.max()))


def play_buttons(state, style, height):
    """Play or pause, one step back, one step forward. Returns (items, width)."""
    items, x, w = [], 0, style.px(30)
    marks = [("❚❚" if state.playing else "▶", "play"), ("◂", "step -1"), ("▸", "step 1")]
    for mark, command in marks:
        text = style.text(
            0, height - style.px(24), mark, style.theme.ink, style.px(16), part="button"
        )
        items.append(Item("area", x, 0, w, height, part="button", command=command))
        items.append(text._replace(x=x + (w - text.w) / 2))
        x += w
    return items, x + style.px(10)


def histogram_bars(record, state, style, width, height):
    """When how many of the finished tokens appeared, as bars that stand on y = height."""
    theme = style.theme
    steps = record.since[-1][record.since[-1] > 0]
    n_bins = max(1, min(record.n_steps, int(width // style.px(5))))
    w, items = width / n_bins, []
    for i, part in enumerate(histogram(tuple(steps.tolist()), record.n_steps, n_bins)):
        middle, h = (i + 0.5) / n_bins, round(part * height)
        color = theme.line
        if middle * record.n_steps <= state.at:
            color = viridis(middle) if state.view == "order" else theme.faint
        if h > 0:
            bar = (i * w, height - h, max(1, w - style.px(1)), h, color)
            items.append(Item("box", *bar, part="histogram"))
    return items


def timeline_row(record, state, style, width):
    """Buttons, and the run from left to right: how much appears when, and where we are."""
    theme, hair, height = style.theme, style.px(2), style.px(44)
    items, x = play_buttons(state, style, height) if state.controls else ([], 0)
    bar_w, base = width - x - style.px(8), height - style.px(16)
    if bar_w < style.px(40):
        return [item for item in items if item.x + item.w <= width], height
    done = state.at / record.n_steps
    if record.live:
        lane = record.lanes[0]
        done = 1 - lane.masked(lane.n_steps) / max(1, lane.n_drawn())
    elif isinstance(record, Record):
        bars = histogram_bars(record, state, style, bar_w, base - style.px(6))
        items += moved(bars, x, style.px(1))
    items.append(Item("box", x, base, bar_w, hair, theme.line, part="timeline"))
    items.append(Item("box", x, base, bar_w * done, hair, theme.accent, part="timeline"))
    if not record.live:
        knob = style.px(12)
        place = (x + bar_w * done - knob / 2, base + hair / 2 - knob / 2, knob, knob)
        items.append(Item("box", *place, theme.accent, radius=knob / 2, part="knob"))
        items.append(Item("area", x, 0, bar_w, height, part="timeline", command="timeline"))
    return items, height


def status_row(record, state, style, width):
    """Where we are, in numbers."""
    if isinstance(record, Race):
        now = record.seconds * state.at / record.n_steps
        groups = [fact(style, "the clock, in seconds", f"{now:.2f}/{record.seconds:.2f}")]
        if state.controls:
            groups.append(knob_group(style, state, "speed", f"{state.speed:g}x"))
        return flow(groups, width, style.px(20), style.px(6))
    step = record.n_steps if record.live else math.floor(state.at)
    digits = len(str(record.n_steps))
    masked, drawn, calls = record.masked(step), record.n_drawn(), record.calls[step]
    if record.live:
        groups = [
            fact(style, "masked", f"{masked:>{len(str(drawn))}}"),
            fact(style, "network calls", f"{calls:.0f}"),
        ]
        return flow(groups, width, style.px(26), style.px(6))
    groups = [
        fact(style, "step", f"{step:>{digits}}/{record.n_steps}"),
        fact(style, "t", f"{1 - step / record.n_steps:.2f}"),
        fact(style, "masked", f"{masked:>{len(str(drawn))}}"),
        fact(style, "network calls", f"{calls:>{len(str(round(record.calls[-1])))}.0f}"),
    ]
    if record.seconds > 0 and drawn:
        groups.append(fact(style, "tokens/s", f"{drawn / record.seconds:.0f}"))
    if state.controls:
        groups.append(knob_group(style, state, "speed", f"{state.speed:g}x"))
    return flow(groups, width, style.px(20), style.px(6))


def knob_group(style, state, name, value):
    """A setting with its value, and marks to click for less and more."""
    theme, picked = style.theme, FIELDS[state.picked] == name
    label = style.text(0, 0, name.replace("_", "-"), theme.accent if picked else theme.faint)
    label = label._replace(part="knob " + name, command=f"pick {name}")
    less = style.text(label.w + style.px(4), 0, "‹", theme.faint, part="less " + name)
    less = less._replace(w=less.w + style.px(8), command=f"less {name}")
    shown = style.text(less.x + less.w, 0, value, theme.ink, part="knob " + name)
    more = style.text(shown.x + shown.w + style.px(8), 0, "›", theme.faint, part="more " + name)
    more = more._replace(x=more.x - style.px(4), w=more.w + style.px(8), command=f"more {name}")
    return [label, less, shown, more]


def settings_row(record, state, style, width):
    """The settings of the next run, or the prompt that is being typed."""
    theme = style.theme
    if state.draft is not None:
        return prompt_row(state, style, width)
    s = state.settings
    changed = replace(s, length=record.settings.length) != record.settings and not record.live
    groups = [[style.text(0, 0, "next run", theme.accent if changed else theme.faint)]]
    for name, value in [
        ("steps", f"{s.steps}"),
        ("temperature", f"{s.temperature:.1f}"),
        ("top_p", f"{s.top_p:.2f}"),
        ("sampler", s.sampler),
        ("seed", f"{s.seed}"),
    ]:
        groups.append(knob_group(style, state, name, value))
    quoted = "".join(map(visible, f"“{s.prompt}”")) if s.prompt else "none"
    group = fact(
        style, "prompt", shorten(style.fonts, quoted, style.px(14), style.px(230)), "prompt"
    )
    groups.append([item._replace(command="prompt") for item in group])
    if s.kept:
        release = fact(style, "release", f"{len(s.kept)} kept", "release")
        groups.append([item._replace(command="release") for item in release])
    run = style.text(0, 0, "▶ run", theme.accent, part="run", command="run")
    new = style.text(run.w + style.px(16), 0, "new seed", theme.accent, part="new", command="new")
    groups.append([run, new])
    return flow(groups, width, style.px(22), style.px(6))


def prompt_row(state, style, width):
    """The prompt that is being typed: its end, if it is too long to be seen as a whole."""
    theme, size = style.theme, style.px(14)
    label = style.text(0, 0, "prompt", theme.accent, part="prompt")
    room = width - label.w - style.px(8)
    shown = "".join(map(visible, state.draft)) + "▏"
    while len(shown) > 1 and style.fonts.width(shown, size) > room:
        shown = shown[1:]
    hint = "Enter: run    Esc: leave it    each _ is one mask"
    hint = shorten(style.fonts, hint, size, width)
    draft = style.text(label.w + style.px(8), 0, shown, theme.ink, part="draft")
    below = label.h + style.px(6)
    return [label, draft, style.text(0, below, hint, theme.faint, part="hint")], below + label.h


# -- what lies on top


def card(style, lines, bars, size):
    """Lines of text on a card, at (0, 0); bars: {line: (part of the width, colour)}."""
    theme, pad = style.theme, style.px(12)
    pitch = math.ceil(style.fonts.height(size) * 1.25)
    wide = max(style.fonts.width(text, size) for text, _ in lines) + 2 * pad
    tall = pitch * len(lines) + 2 * pad
    items = [
        Item("box", 0, 0, wide, tall, theme.card, radius=style.px(8), part="card"),
        Item("outline", 0, 0, wide, tall, theme.line, radius=style.px(8), part="card"),
    ]
    for i, (text, color) in enumerate(lines):
        top = pad + i * pitch
        if i in bars:
            w = max(1, (wide - 2 * pad) * bars[i])
            bar = (pad, top + pitch - style.px(3), w, style.px(2), theme.accent)
            items.append(Item("box", *bar, part="card"))
        items.append(style.text(pad, top, text, color, size, "card"))
    return items


def token_card(record, state, i, style):
    """What there is to know about token i now, as a group of items at (0, 0)."""
    theme, size, bars = style.theme, style.px(14), {}
    lane, i = lane_of(record, i)
    record, at = lane, math.floor(record.lane_at(lane, state.at))
    s = record.row(at)
    token, since = record.states[s, i], record.since[s, i]
    if token == MASKED:
        lines = [("the model would write", theme.faint)]
        for name, p in candidates(record, i, at):
            bars[len(lines)] = p
            lines.append((f"{p:6.1%}  {quote(name)}", theme.ink))
        if len(lines) == 1:
            lines = [("masked", theme.faint)]
    elif since == 0:
        lines = [(quote(record.names[token]), theme.ink), ("given", theme.faint)]
    else:
        facts = f"step {since}, drawn with {record.probability[i]:.1%}"
        if token != record.states[-1, i]:
            facts = f"step {since}, taken back later"
        lines = [(quote(record.names[token]), theme.ink), (facts, theme.faint)]
        if state.controls:
            kept = any(position == i for position, _ in state.settings.kept)
            lines.append(
                ("kept; F or a click lets go" if kept else "F or a click keeps it", theme.faint)
            )
    return card(style, lines, bars, size)


def quote(name):
    """A token in quotes, at most 24 characters of it, so that its spaces can be seen."""
    text = "".join(map(visible, name))
    return f"“{text if len(text) <= 24 else text[:23] + '…'}”"


def put_beside(group, box, size, gap):
    """Move a group to below box (x, y, w, h), or above it; in any case inside the window."""
    w, h = max(item.x + item.w for item in group), max(item.y + item.h for item in group)
    if w > size[0] or h > size[1]:
        return []
    x = min(max(0, box[0]), size[0] - w)
    y = box[1] + box[3] + gap
    if y + h > size[1]:
        y = max(0, box[1] - gap - h)
    return moved(group, x, y)


def help_card(size, style):
    """All keys, on a card in the middle of the window: smaller letters until it fits."""
    theme = style.theme
    rows = [(keys.replace(" ", "  "), meaning) for keys, _, meaning in BINDINGS]
    rows.append(("mouse", "click on anything; hover over a token to know it"))
    longest = max(len(keys) for keys, _ in rows)
    lines = [("keys", theme.accent)]
    lines += [(f"{keys:<{longest}}   {meaning}", theme.ink) for keys, meaning in rows]
    for letters in range(style.px(15), 5, -1):
        group = card(style, lines, {}, letters)
        if group[0].w <= size[0] - 4 and group[0].h <= size[1] - 4:
            break
    else:
        return []
    veil = Item("box", 0, 0, *size, theme.page, part="veil", command="help")
    return [veil, *moved(group, (size[0] - group[0].w) // 2, (size[1] - group[0].h) // 2)]


# -- the page


def page_rows(record, state, style, width, gap, room):
    """The rows around the text, {name: (items, height)}: those that fit into `room` pixels."""
    rows = {
        "header": header_row(record, state, style, width),
        "caption": caption_row(record, state, style, width),
        "timeline": timeline_row(record, state, style, width),
        "status": status_row(record, state, style, width),
    }
    if state.controls:
        rows["settings"] = settings_row(record, state, style, width)
    optional = ["settings", "status", "header", "caption", "timeline"]
    if state.draft is not None:  # what is being typed must be seen
        optional.remove("settings")
    for name in optional:
        if sum(h + gap for _, h in rows.values()) <= room:
            break
        rows.pop(name, None)
    return rows


def lay_out(record, state, size, fonts, scale=1.0):
    """Everything in a window of `size` (w, h) pixels, from back to front: a list of Item.

    `scale`: pixels in one point of the screen, 2 on many a laptop.
    """
    width, height = size
    unit = min(max(min(width / 1000, height / 700), 0.8 * scale), 1.5 * scale)
    style = Style(fonts, THEMES[state.theme], unit)
    margin = min(style.px(36), width // 12, height // 12)
    inner = width - 2 * margin
    gap = style.px(12)
    room = height - 2 * margin - 5 * line_height(fonts, style.px(13))  # for five lines of text
    rows = page_rows(record, state, style, inner, gap, room)

    items, top, bottom = [], margin, height - margin
    for name in ("header", "caption"):
        if name in rows:
            row, h = rows[name]
            items += moved(row, margin, top)
            top += h + (style.px(6) if name == "header" else style.px(20))
    for name in ("settings", "status", "timeline"):
        if name in rows:
            row, h = rows[name]
            bottom -= h
            items += moved(row, margin, bottom)
            bottom -= gap
    bleed = min(margin, style.px(BLEED))
    panel = (margin - bleed, top, inner + 2 * bleed, bottom - top - style.px(6))
    text, hidden = lay_out_lanes(record, state, panel, style)
    items += text
    if hidden > 0 and state.controls:
        w, h = style.px(4), max(style.px(12), panel[3] * 0.15)
        y = panel[1] + (panel[3] - h) * min(1.0, state.scroll / hidden)
        bar = (width - margin / 2 - w / 2, y, w, min(h, panel[3]), style.theme.faint)
        items.append(Item("box", *bar, str(hidden), radius=w / 2, part="scroll"))

    token = hovered(items, state)
    boxes = [item for item in items if item.part == "token" and item.command == f"fix {token}"]
    if boxes and not record.live and not state.help:
        group = token_card(record, state, token, style)
        items += put_beside(group, boxes[0][1:5], size, style.px(6))
    if state.help:
        items += help_card(size, style)
    return items


def lay_out_lanes(record, state, box, style):
    """The panels of all lanes in box (x, y, w, h), beside each other, or one above the other.

    Returns what `lay_out_panel` does.
    """
    x, y, w, h = box
    n, gap = len(record.lanes), style.px(28)
    beside = w > style.px(640)
    items, hidden, before = [], 0, 0
    for number, lane in enumerate(record.lanes):
        at = record.lane_at(lane, state.at)
        if beside:
            wide = (w - (n - 1) * gap) / n
            panel = [x + number * (wide + gap), y, wide, h]
        else:
            tall = (h - (n - 1) * gap) / n
            panel = [x, y + number * (tall + gap), w, tall]
        if n > 1:
            row, tall = lane_row(number, lane, at, record, style, panel[2])
            items += moved(row, panel[0] + min(style.px(BLEED), panel[2]), panel[1])
            panel[1] += tall + style.px(12)
            panel[3] -= tall + style.px(12)
        text, more = lay_out_panel(lane, at, state, panel, style, before)
        items += text
        hidden, before = max(hidden, more), before + len(lane.pieces)
    return items, hidden


def lane_row(number, lane, at, race, style, width):
    """Over each panel of a race: who it is, and how far."""
    theme = style.theme
    name = ("diffusion: all places at once", "twin: from left to right")[number]
    step = math.floor(at)
    calls = lane.calls[step]
    done = not lane.live and lane.seconds > 0 and step == lane.n_steps
    groups = [[style.text(0, 0, name, theme.accent if done else theme.ink, part="lane")]]
    if lane.live:
        groups.append(fact(style, "masked", f"{lane.masked(step)}"))
    else:
        groups.append(fact(style, "calls", f"{calls:>{len(str(round(lane.calls[-1])))}.0f}"))
    if lane.seconds > 0:
        now = lane.seconds * calls / max(1, lane.calls[-1])
        groups.append(fact(style, "seconds", f"{now:.2f}"))
    return flow(groups, width, style.px(20), style.px(4))


def hovered(items, state):
    """The token under the mouse, else the one under the keyboard's cursor; None if neither."""
    if state.mouse is not None:
        item = item_at(items, *state.mouse)
        if item is not None and item.part == "token":
            return int(item.command.split()[1])
    return state.cursor


def hidden_lines(items):
    """How many lines of the text do not fit: as far as one can scroll."""
    return sum(int(item.text) for item in items if item.part == "scroll")


def item_at(items, x, y):
    """The topmost item at a point that does something, or None."""
    for item in reversed(items):
        inside = item.x <= x < item.x + item.w and item.y <= y < item.y + item.h
        if inside and (item.command or item.part == "card"):
            return item
    return None


# ------------------------------------------------------------------------------------------------
# 3. Drawing: pygame


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
    for names in FALLBACK_FONTS:
        for name in names.split(","):
            path = pygame.font.match_font(name)
            if path:
                yield Path(path)


class Fonts:
    """Measures and renders text, each character in the first font that has it."""

    def __init__(self):
        pygame.font.init()
        pygame.freetype.init()  # it can say whether a font has a glyph
        self.more_paths = font_paths()
        self.paths, self.coverage = [], []
        self.opened, self.widths, self.images, self.which = {}, {}, {}, {}
        self.first_with("a")

    def first_with(self, character):
        """Number of the first font that has a character, or 0 if none has."""
        if character not in self.which:
            self.which[character] = self.search(character)
        return self.which[character]

    def search(self, character):
        for i, font in enumerate(self.coverage):
            if font.get_metrics(character)[0] is not None:
                return i
        for path in self.more_paths:
            try:
                font = pygame.freetype.Font(str(path), 20)
                pygame.font.Font(str(path), 20)
            except (pygame.error, OSError):  # a format that this SDL cannot read: try the next
                continue
            self.paths.append(path)
            self.coverage.append(font)
            if font.get_metrics(character)[0] is not None:
                return len(self.paths) - 1
        return 0

    def font(self, number, size):
        """An opened font."""
        if (number, size) not in self.opened:
            self.opened[number, size] = pygame.font.Font(str(self.paths[number]), size)
        return self.opened[number, size]

    def parts(self, text):
        """Cut a text where the font changes: a list of (number of the font, text)."""
        parts = []
        for character in text:
            joins = unicodedata.combining(character) or character in "\u200d\ufe0f"
            number = parts[-1][0] if joins and parts else self.first_with(character)
            if parts and parts[-1][0] == number:
                parts[-1] = (number, parts[-1][1] + character)
            else:
                parts.append((number, character))
        return parts

    def width(self, text, size):
        """Pixels."""
        if (text, size) not in self.widths:
            parts = self.parts(text)
            self.widths[text, size] = sum(self.font(n, size).size(part)[0] for n, part in parts)
        return self.widths[text, size]

    def height(self, size):
        """Pixels."""
        return self.font(0, size).get_height() + 1  # an underscore may stand one lower

    def image(self, text, size, color):
        """The text as a surface; the last few thousand are kept."""
        key = (text, size, color)
        if key not in self.images:
            if len(self.images) > 4000:
                self.images.clear()
            self.images[key] = self.render(text, size, color)
        return self.images[key]

    def render(self, text, size, color):
        surface = pygame.Surface(
            (max(1, self.width(text, size)), self.height(size)), pygame.SRCALPHA
        )
        x, ascent = 0, self.font(0, size).get_ascent()
        for number, part in self.parts(text):
            font = self.font(number, size)
            surface.blit(font.render(part, True, color), (x, ascent - font.get_ascent()))
            x += font.size(part)[0]
        return surface


@lru_cache(maxsize=2000)
def rounded(w, h, radius, color, line):
    """A box with smooth corners as a surface; `line` > 0: its outline only, that thick."""
    fine = 4  # drawn so many times larger, then shrunk
    surface = pygame.Surface((w * fine, h * fine), pygame.SRCALPHA)
    surface.fill((*color, 0))  # the colour also where it is transparent: no dark rims
    pygame.draw.rect(surface, color, surface.get_rect(), line * fine, round(radius * fine))
    return pygame.transform.smoothscale(surface, (w, h))


def draw_items(surface, items, fonts, page):
    """Draw the items, from back to front, on a page of that colour."""
    surface.fill(page)
    for item in items:
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


# ------------------------------------------------------------------------------------------------
# 4. Controls: keys and clicks become commands, a command makes a new state


@dataclass(frozen=True)
class State:
    """All that the window shows besides the record."""

    settings: Settings = Settings()  # of the next run
    at: float = 0.0  # where we are in the run, in steps
    playing: bool = True
    speed: float = 1.0
    view: str = "text"
    theme: str = "dark"
    zoom: float = 1.0  # of the text
    scroll: int = 0  # lines
    help: bool = False
    mouse: tuple | None = None  # where it is, in pixels
    dragging: bool = False  # the timeline
    cursor: int | None = None  # the token that the keyboard points at
    picked: int = 0  # the setting that the keyboard changes, one of FIELDS
    draft: str | None = None  # the prompt while it is being typed
    ignore: str = ""  # a character that is about to arrive, but is no part of it
    busy: str = ""  # what the worker is doing
    message: str = ""
    request: str = ""  # what the program shall do: "run" or "quit"
    controls: bool = True  # whether there is somebody to control it


SECONDS = 8  # a whole run at speed 1
FIELDS = ("steps", "temperature", "top_p", "sampler", "seed", "speed")
BINDINGS = (  # keys, their commands, what they do
    ("Space", "play", "play, pause"),
    ("Left Right", "step -1, step 1", "one step back, forward"),
    ("Home End", "seek 0, seek 1", "to the start, the end"),
    (", .", "less speed, more speed", "slower, faster"),
    ("1 2 3", "view text, view order, view belief", "text, order, belief"),
    ("Tab", "view next", "the next of these views"),
    ("[ ]", "cursor -1, cursor 1", "point at a token"),
    ("F", "fix", "keep that token in the next runs, or let it go"),
    ("X", "release", "let go of all tokens"),
    ("P", "prompt", "type a prompt; each _ in it is a mask to fill"),
    ("Up Down", "pick -1, pick 1", "choose a setting of the next run"),
    ("- +", "less, more", "change it"),
    ("Enter N", "run, new", "run with these settings; with a new seed"),
    ("PageUp PageDown", "scroll -5, scroll 5", "scroll, when the text is long (or the wheel)"),
    ("Ctrl+ Ctrl-", "zoom 1.1, zoom 0.909", "larger, smaller letters (or Ctrl and the wheel)"),
    ("T", "theme", "dark, light"),
    ("H ? Esc", "help, help, escape", "this help; close it"),
    ("Q", "quit", "quit"),
)
KEYS = {"=": "more", "Ctrl=": "zoom 1.1"}  # + without Shift on many keyboards
for keys, commands, _ in BINDINGS:
    KEYS |= zip(keys.split(), commands.split(", "), strict=True)
NAMED_KEYS = {
    pygame.K_SPACE: "Space",
    pygame.K_LEFT: "Left",
    pygame.K_RIGHT: "Right",
    pygame.K_UP: "Up",
    pygame.K_DOWN: "Down",
    pygame.K_HOME: "Home",
    pygame.K_END: "End",
    pygame.K_PAGEUP: "PageUp",
    pygame.K_PAGEDOWN: "PageDown",
    pygame.K_TAB: "Tab",
    pygame.K_RETURN: "Enter",
    pygame.K_KP_ENTER: "Enter",
    pygame.K_ESCAPE: "Esc",
    pygame.K_BACKSPACE: "Backspace",
}


def key_of(event):
    """The name of a pressed key, as in BINDINGS. Characters as the keyboard's layout has them."""
    if event.key in NAMED_KEYS:
        return NAMED_KEYS[event.key]
    if event.mod & (pygame.KMOD_CTRL | pygame.KMOD_META):
        return "Ctrl" + pygame.key.name(event.key).upper().strip("[]")
    return event.unicode.upper()


def commands_of(event, state, items, scale=1.0):
    """The commands of one event of pygame's. `items`: what is on the screen."""
    if event.type == pygame.KEYDOWN:
        key = key_of(event)
        if state.draft is None:
            # the character of the key that opens the prompt follows as a text: not part of it
            own = f" {event.unicode}" if key == "P" else ""
            return [KEYS[key] + own] if key in KEYS else []
        typing = {"Enter": "accept", "Esc": "escape", "Backspace": "erase", "CtrlV": "paste"}
        return [typing[key]] if key in typing else []
    if event.type == pygame.TEXTINPUT:
        return [f"type {event.text}"]
    if event.type in (pygame.QUIT, pygame.WINDOWCLOSE):
        return ["quit"]
    if event.type == pygame.WINDOWLEAVE:
        return ["hover"]
    if event.type == pygame.MOUSEWHEEL and pygame.key.get_mods() & pygame.KMOD_CTRL:
        return [f"zoom {1.1**event.y:g}"]
    if event.type == pygame.MOUSEWHEEL:
        return [f"scroll {-event.y}"]
    if event.type not in (pygame.MOUSEMOTION, pygame.MOUSEBUTTONDOWN, pygame.MOUSEBUTTONUP):
        return []
    x, y = event.pos[0] * scale, event.pos[1] * scale
    if event.type == pygame.MOUSEMOTION:
        move = [f"hover {x:g} {y:g}"]
        return [*move, f"seek {along_timeline(items, x):g}"] if state.dragging else move
    if event.button != 1:
        return []
    if event.type == pygame.MOUSEBUTTONUP:
        return ["drop"]
    item = item_at(items, x, y)
    if item is None or not item.command:
        return []
    if item.command == "timeline":
        return ["drag", f"seek {along_timeline(items, x):g}"]
    return [item.command]


def along_timeline(items, x):
    """Where x lies on the timeline: 0 at its left end, 1 at its right."""
    bars = [item for item in items if item.command == "timeline"]
    return min(max((x - bars[0].x) / bars[0].w, 0.0), 1.0) if bars else 0.0


def handle(state, command, record):
    """The state after a command, which is a verb and perhaps an argument. Pure."""
    verb, _, argument = command.partition(" ")
    if verb not in ("hover", "drop", "quit"):
        state = replace(state, message="")
    if verb == "hover":
        return replace(state, mouse=tuple(map(float, argument.split())) or None)
    if verb in ("play", "step", "seek", "drag", "drop"):
        return handle_playback(state, verb, argument, record)
    if verb in ("prompt", "type", "erase", "accept", "escape"):
        return handle_prompt(state, verb, argument)
    if verb in ("pick", "less", "more"):
        return handle_setting(state, verb, argument)
    if verb in ("cursor", "fix", "release"):
        return handle_token(state, verb, argument, record)
    if verb == "view":
        views = list(VIEWS)
        following = views[(views.index(state.view) + 1) % len(views)]
        return replace(state, view=following if argument == "next" else argument)
    if verb == "theme":
        return replace(state, theme="light" if state.theme == "dark" else "dark")
    if verb == "help":
        return replace(state, help=not state.help)
    if verb == "scroll":
        return replace(state, scroll=max(0, state.scroll + int(argument)))
    if verb == "zoom":
        return replace(state, zoom=min(max(state.zoom * float(argument), 0.5), 3.0))
    if verb == "new":
        settings = replace(state.settings, seed=state.settings.seed + 1)
        return replace(state, settings=settings, request="run")
    return replace(state, request=verb)  # run, quit


def handle_playback(state, verb, argument, record):
    """Play, pause, step, and the timeline."""
    if verb == "play":
        again = not state.playing and state.at >= record.n_steps
        return replace(state, playing=not state.playing, at=0.0 if again else state.at)
    if verb == "step":
        at = min(max(math.floor(state.at) + int(argument), 0), record.n_steps)
        return replace(state, at=float(at), playing=False)
    if verb == "seek":
        return replace(state, at=float(argument) * record.n_steps, playing=False)
    return replace(state, dragging=verb == "drag")


def handle_prompt(state, verb, argument):
    """Typing a prompt."""
    if verb == "prompt":
        return replace(state, draft=state.settings.prompt, ignore=argument, help=False)
    if verb == "escape":
        return replace(state, draft=None, help=False, cursor=None)
    if state.draft is None:
        return state
    ignore, state = state.ignore, replace(state, ignore="")
    if verb == "type":
        return state if argument == ignore else replace(state, draft=state.draft + argument)
    if verb == "erase":
        return replace(state, draft=state.draft[:-1])
    settings = replace(state.settings, prompt=state.draft)
    return replace(state, settings=settings, draft=None, request="run")


def handle_setting(state, verb, argument):
    """Choosing a setting of the next run, and changing it."""
    if verb == "pick" and argument in FIELDS:
        return replace(state, picked=FIELDS.index(argument))
    if verb == "pick":
        return replace(state, picked=(state.picked + int(argument)) % len(FIELDS))
    name, sign = argument or FIELDS[state.picked], 1 if verb == "more" else -1
    if name == "speed":
        return replace(state, speed=min(max(state.speed * 2.0**sign, 0.125), 16.0))
    value = getattr(state.settings, name)
    if name == "steps":  # the next power of two
        value = 2 ** (
            math.floor(math.log2(value)) + 1 if sign > 0 else math.ceil(math.log2(value)) - 1
        )
        value = min(max(round(value), 1), 4096)
    elif name == "temperature":
        value = min(max(round(value + 0.1 * sign, 1), 0.1), 3.0)
    elif name == "top_p":
        value = min(max(round(value + 0.05 * sign, 2), 0.05), 1.0)
    elif name == "sampler":
        names = list(SAMPLERS)
        value = names[(names.index(value) + sign) % len(names)]
    else:
        value = max(0, value + sign)
    return replace(state, settings=replace(state.settings, **{name: value}))


def handle_token(state, verb, argument, record):
    """Pointing at a token, and keeping it for the next runs."""
    L = sum(len(lane.pieces) for lane in record.lanes)
    if verb == "cursor":
        cursor = -1 if state.cursor is None and argument == "1" else state.cursor or 0
        return replace(state, cursor=(cursor + int(argument)) % L)
    kept = dict(state.settings.kept)
    if verb == "release":
        return replace(state, settings=replace(state.settings, kept=()))
    i = int(argument) if argument else state.cursor
    if i is None or i >= L:
        return replace(state, message="Point at a token first: [ and ] do that.")
    lane, i = lane_of(record, i)
    row = lane.row(record.lane_at(lane, state.at))
    if i in kept:
        del kept[i]
    elif record.live or lane.states[row, i] == MASKED:
        return replace(state, message="A token can be kept when it has appeared.")
    elif lane.since[row, i] == 0:
        return replace(state, message="It is part of the prompt: P changes that.")
    else:
        kept[i] = int(lane.states[row, i])
    settings = replace(state.settings, kept=tuple(sorted(kept.items())))
    return replace(state, settings=settings)


def advance(state, record, seconds):
    """The state a moment later."""
    if not state.playing or record.live or state.dragging:
        return state
    at = state.at + seconds * state.speed * record.n_steps / SECONDS
    if at >= record.n_steps:
        return replace(state, at=float(record.n_steps), playing=False)
    return replace(state, at=at)


# ------------------------------------------------------------------------------------------------
# 5. The worker: sampling that the window does not wait for


class Stopped(Exception):
    """Somebody wants something else."""


class Worker:
    """Runs the model in a thread. `news` is a queue of (kind, value):

    "live": a Record of what there is so far; "record": the finished Record; "beliefs": the same
    with beliefs; "busy": what is being done, "" when nothing is; "error": a line for the user.
    """

    def __init__(self, model, tokenizer, title, twin=None):
        self.model, self.tokenizer, self.title, self.twin = model, tokenizer, title, twin
        self.names = token_names(tokenizer)
        self.news = queue.SimpleQueue()
        self.orders = queue.SimpleQueue()  # Settings; None: that was all
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def run(self, settings):
        """Start a run; one that is under way is given up."""
        self.orders.put(settings)

    def close(self):
        """Stop at the next pass through the network."""
        self.orders.put(None)
        self.thread.join(timeout=2)

    def work(self):
        while (settings := self.orders.get()) is not None:
            with contextlib.suppress(Stopped):
                self.sample(settings)
            self.news.put(("busy", ""))

    def stop_if_asked(self):
        if not self.orders.empty():
            raise Stopped

    def sample(self, settings):
        """One run and its beliefs."""
        try:
            look = Watcher(self, settings).look
            record = record_run(self.model, self.tokenizer, settings, self.title, look)
            if self.twin is not None:
                self.news.put(("busy", "The twin writes."))
                twin = record_run(self.twin, self.tokenizer, settings)
                record = Race((record, twin))
            self.news.put(("record", record))
            self.news.put(("beliefs", with_beliefs(self.model, record, self.report_beliefs)))
        except (UserError, RuntimeError) as error:  # PyTorch: out of memory, for example
            self.news.put(("error", str(error).split("\n")[0]))

    def report_beliefs(self, fraction):
        self.stop_if_asked()
        self.news.put(("busy", f"Asking the model what it believes: {fraction:.0%}."))


class Watcher:
    """Follows one run for the window: which token appeared in which pass."""

    def __init__(self, worker, settings):
        self.worker, self.settings, self.calls = worker, settings, 0
        self.change, self.states = [], []

    def look(self, z):
        """`z` (1, L) is about to go through the network."""
        worker = self.worker
        worker.stop_if_asked()
        if z.shape != (1, self.settings.length):  # a sampler that looks at a part of the text
            return
        z = z[0].cpu().numpy()
        z = np.where(z == worker.tokenizer.mask_id, MASKED, z)
        if not self.states or (z != self.states[-1]).any():
            self.change.append(self.calls)
            self.states.append(z)
        change, states = np.array(self.change), np.stack(self.states)
        record = live_record(worker.title, self.settings, worker.names, change, states, self.calls)
        if worker.twin is not None:
            waiting = live_record("", self.settings, worker.names, change[:1], states[:1], 0)
            record = Race((record, waiting))
        self.calls += 1
        worker.news.put(("live", record))
        done = (states[-1] != MASKED).sum()
        worker.news.put(("busy", f"Sampling: {done} of {len(z)} tokens."))


def receive(worker, record, state):
    """Take in what the worker has to say. Returns (record, state)."""
    while not worker.news.empty():
        kind, value = worker.news.get()
        if kind == "busy":
            state = replace(state, busy=value)
        elif kind == "error":
            state = replace(state, message=value)
        elif kind == "live":
            record = value
        elif kind == "record":
            record = value
            state = replace(state, at=0.0, playing=True, cursor=None, scroll=0)
        elif kind == "beliefs":
            record = value
    return record, state


# ------------------------------------------------------------------------------------------------
# 6. Outputs


def picture(record, state, size, fonts, scale=1.0):
    """One frame as a surface, without any window."""
    surface = pygame.Surface(size)
    items = lay_out(record, state, size, fonts, scale)
    draw_items(surface, items, fonts, THEMES[state.theme].page)
    return surface


def animation(record, state, size, fonts, n_frames):
    """The whole run as a generator of n_frames surfaces."""
    for i in range(n_frames):
        at = record.n_steps * i / max(1, n_frames - 1)
        yield picture(record, replace(state, at=at), size, fonts)


def contact_sheet(record, state, size, fonts, columns=2, n=6):
    """`n` moments of the run on one surface."""
    rows = -(-n // columns)
    sheet = pygame.Surface((size[0] * columns, size[1] * rows))
    for i, surface in enumerate(animation(record, state, size, fonts, n)):
        sheet.blit(surface, (i % columns * size[0], i // columns * size[1]))
    return sheet


def to_image(surface):
    """A pygame surface -> a Pillow image."""
    from PIL import Image

    return Image.frombytes("RGB", surface.get_size(), pygame.image.tobytes(surface, "RGB"))


def animated_image(surfaces, kind, fps, hold=2000):
    """Surfaces -> the bytes of an animated "gif" or "webp" that shows the last for `hold` ms."""
    from PIL import Image

    images = [to_image(surface) for surface in surfaces]
    durations = [round(1000 / fps)] * (len(images) - 1) + [hold]
    options = {"lossless": True, "method": 4} if kind == "webp" else {}
    if kind == "gif":  # one palette for all: it must not flicker
        some = images[:: max(1, len(images) // 6)] + images[-1:]
        sheet = Image.new("RGB", (images[0].width, images[0].height * len(some)))
        for i, image in enumerate(some):
            sheet.paste(image, (0, i * image.height))
        palette = sheet.quantize(256, method=Image.Quantize.MEDIANCUT)
        images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        kind,
        save_all=True,
        append_images=images[1:],
        duration=durations,
        loop=0,
        **options,
    )
    return buffer.getvalue()


def video(surfaces, size, fps):
    """Surfaces of even width and height -> the bytes of an MP4 file."""
    import imageio_ffmpeg

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        writer = imageio_ffmpeg.write_frames(
            str(path), size, fps=fps, macro_block_size=2, output_params=["-crf", "18"]
        )
        writer.send(None)
        surface = None
        for surface in surfaces:
            writer.send(pygame.image.tobytes(surface, "RGB"))
        for _ in range(2 * fps):  # hold the last for two seconds
            writer.send(pygame.image.tobytes(surface, "RGB"))
        writer.close()
        return path.read_bytes()


OUTPUTS = (".gif", ".webp", ".mp4", ".png", ".safetensors")


def check_output(path):
    """Raise UserError, before any work is done, if we cannot make a file of that name."""
    path = Path(path)
    if path.suffix.lower() not in OUTPUTS:
        raise UserError(f"{path}: the name must end with one of {', '.join(OUTPUTS)}")
    if path.suffix.lower() == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise UserError(f"{path}: for .mp4, install imageio-ffmpeg: pip install imageio-ffmpeg")
    if path.is_dir():
        raise UserError(f"{path}: is a folder, not a file")
    if path.parent.exists() and not path.parent.is_dir():
        raise UserError(f"{path}: {path.parent} is a file, not a folder")


def save(path, record, state, size, at=None, n_frames=80, fps=12):
    """Write the run to a file of the kind that its name says.

    `at`: for .png, that moment of the run from 0 to 1, instead of six moments on one sheet.
    Raises UserError if the file cannot be written.
    """
    check_output(path)
    kind = Path(path).suffix.lower()
    if kind == ".safetensors":
        write_atomically(path, record_bytes(record))
        return
    fonts, state = Fonts(), replace(state, controls=False)
    if kind == ".png":
        if at is None:
            surface = contact_sheet(record, state, size, fonts)
        else:
            surface = picture(record, replace(state, at=at * record.n_steps), size, fonts)
        buffer = io.BytesIO()
        to_image(surface).save(buffer, "png", optimize=True)
        data = buffer.getvalue()
    elif kind == ".mp4":
        size = (size[0] // 2 * 2, size[1] // 2 * 2)
        data = video(animation(record, state, size, fonts, n_frames), size, fps)
    else:
        data = animated_image(animation(record, state, size, fonts, n_frames), kind[1:], fps)
    write_atomically(path, data)


def show_inline(
    trajectory,
    tokenizer,
    model=None,
    view="text",
    row=0,
    theme="light",
    size=(800, 480),
    n_frames=60,
):
    """A recorded `Trajectory` as an animation that a notebook displays.

    `row`: which text of the batch. The belief view needs the model. Returns an IPython Image.
    """
    from IPython.display import Image

    record = make_record(trajectory, tokenizer, row=row)
    if model is not None and view == "belief":
        record = with_beliefs(model, record)
    state = State(view=view, theme=theme, controls=False)
    surfaces = animation(record, state, size, Fonts(), n_frames)
    alt = tokenizer.decode(trajectory.tokens[row].tolist())
    return Image(animated_image(surfaces, "gif", 10), format="gif", alt=alt)


class Cells:
    """The fonts of a terminal: everything is measured in cells."""

    def width(self, text, size):
        """Cells that a terminal uses for a text."""
        return sum(map(self.cell, text))

    @staticmethod
    def cell(character):
        if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Me"):
            return 0
        return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def text_frame(record, at, view, theme, columns, colors):
    """The text after `at` steps as lines for a terminal."""
    cells = Cells()
    spots, n_lines = break_lines(record.pieces, columns, cells, 1)
    lines, ends, row = [""] * n_lines, [0] * n_lines, record.row(at)
    for spot in spots:
        look = token_look(record, spot.token, at, view, theme)
        shown = spot.text if look.text is None else look.text
        if record.states[row, spot.token] == MASKED and not (colors and shown):
            shown = "▁" * int(spot.w)
        shown = shorten(cells, shown, 1, spot.w)
        shown += " " * int(spot.w - cells.width(shown, 1))
        if colors:
            ink = look.ink if shown.strip("▁") else mix(theme.page, theme.ink, 0.4)
            paper = look.paper if shown.strip("▁") else None
            shown = f"\x1b[38;2;{ink[0]};{ink[1]};{ink[2]}m{shown}\x1b[0m"
            if paper is not None:
                shown = f"\x1b[48;2;{paper[0]};{paper[1]};{paper[2]}m{shown}"
        lines[spot.line] += " " * int(spot.x - ends[spot.line]) + shown
        ends[spot.line] = spot.x + spot.w
    return lines


def terminal_facts(record, step):
    """Where a run is after `step` steps, in one line."""
    line = f"step {step}/{record.n_steps}  t {1 - step / record.n_steps:.2f}"
    line += f"  masked {record.masked(step)}  network calls {record.calls[step]:.0f}"
    if record.seconds:
        line += f"  {record.seconds * record.calls[step] / max(1, record.calls[-1]):.2f} s"
    return line


def play_in_terminal(record, state, out, seconds=SECONDS):
    """Animate the run in a terminal; into a file or a pipe, print five moments of it."""
    if hasattr(out, "reconfigure"):
        out.reconfigure(errors="replace")  # some terminals cannot show some characters
    window, theme = shutil.get_terminal_size((80, 24)), THEMES[state.theme]
    columns = max(8, min(96, window.columns - 2))
    if not out.isatty():
        for i in range(5):
            at = math.floor(record.n_steps * i / 4)
            for lane in record.lanes:
                now = math.floor(record.lane_at(lane, at))
                print(terminal_facts(lane, now), file=out)
                lines = text_frame(lane, now, state.view, theme, columns, False)
                print("\n".join(lines), end="\n\n", file=out)
        return
    if os.name == "nt":
        os.system("")  # makes the Windows console understand what follows
    colors, n_frames, height = "NO_COLOR" not in os.environ, max(2, int(seconds * 12)), 0
    for i in range(n_frames):
        at = record.n_steps * i / (n_frames - 1)
        lines = []
        for lane in record.lanes:
            now = record.lane_at(lane, at)
            text = text_frame(lane, now, state.view, theme, columns, colors)
            lines += text[: max(1, window.lines // len(record.lanes) - 3)]
            lines += ["", terminal_facts(lane, math.floor(now))]
        back = f"\x1b[{height}A" if height else ""
        out.write(back + "".join(f"\r\x1b[K{line}\n" for line in lines))
        out.flush()
        height = len(lines)
        time.sleep(seconds / n_frames)


# ------------------------------------------------------------------------------------------------
# 7. The window, and the command line


def find_display():
    """Raise UserError on a machine without a display."""
    if os.name == "nt":  # pixels of the screen, not ones that Windows scales up
        os.environ.setdefault("SDL_WINDOWS_DPI_AWARENESS", "permonitorv2")
    wanted = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"))
    if wanted or not sys.platform.startswith("linux"):  # else SDL would draw where nobody sees it
        with contextlib.suppress(pygame.error):
            pygame.display.init()
            return
    raise UserError("no display here: use --save out.gif (or .png, .webp, .mp4), or --text")


def open_window(size):
    """A window that can be resized and has all the pixels that the screen has."""
    window = pygame.Window("masked diffusion", size, resizable=True, allow_high_dpi=True)
    window.minimum_size = (360, 260)
    pygame.key.set_repeat(350, 40)
    pygame.key.start_text_input()
    return window


def show(window, record, state, worker=None):
    """Run the window until it is closed. Without a worker there is only the record to watch.

    Returns what was shown at the end: (record, state).
    """
    fonts, clock, drawn, items = Fonts(), pygame.Clock(), None, []
    gc.freeze()  # PyTorch's many objects stay: to look through them would make a frame late
    while state.request != "quit":
        surface = window.get_surface()
        size = surface.get_size()
        scale = size[0] / window.size[0]
        for event in pygame.event.get():
            for command in commands_of(event, state, items, scale):
                if command == "paste":
                    command = f"type {pygame.scrap.get_text().strip()}"
                state = handle(state, command, record)
        if state.request == "run":
            state = replace(state, request="")
            if worker is None:
                state = replace(state, message="This is a recording: there is no model to run.")
            else:
                worker.run(state.settings)
        if worker is not None:
            record, state = receive(worker, record, state)
        state = advance(state, record, min(0.1, clock.get_time() / 1000))
        items = lay_out(record, state, size, fonts, scale)
        state = replace(state, scroll=min(state.scroll, hidden_lines(items)))
        if (size, items) != drawn:
            draw_items(surface, items, fonts, THEMES[state.theme].page)
            window.flip()
            drawn = (size, items)
        clock.tick(60)
    return record, state


def parse_size(text):
    """ "1000x700" -> (1000, 700)."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or not all(200 <= int(n) <= 8000 for n in match.groups()):
        raise UserError(f"the size must be like 1000x700 and at least 200x200, not {text}")
    return int(match[1]), int(match[2])


def parse_arguments(argv=None):
    """Command line -> options."""
    defaults = Settings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?", help="a trained model (default: the newest)")
    run = parser.add_argument_group("the run")
    run.add_argument("--prompt", default="", help="how the text begins; each _ in it is one mask")
    run.add_argument("--steps", type=int, default=defaults.steps, help="(default: %(default)s)")
    run.add_argument("--temperature", type=float, default=1.0, help="below 1: safer words")
    run.add_argument("--top-p", type=float, default=1.0, help="below 1: no improbable words")
    run.add_argument("--sampler", choices=SAMPLERS, default=defaults.sampler)
    run.add_argument("--seed", type=int, default=defaults.seed, help="(default: %(default)s)")
    run.add_argument("--length", type=int, help="in tokens (default: the model's context)")
    run.add_argument(
        "--race",
        nargs="?",
        const="",
        metavar="TWIN",
        help="against an autoregressive twin (default: the newest)",
    )
    run.add_argument("--replay", metavar="FILE", help="show a recording instead of a new run")
    look = parser.add_argument_group("what it looks like")
    look.add_argument("--view", choices=VIEWS, default="text")
    look.add_argument("--theme", choices=THEMES, default="dark")
    look.add_argument("--size", default="1000x700", help="in pixels (default: %(default)s)")
    out = parser.add_argument_group("without a window")
    out.add_argument("--save", metavar="FILE", help="write " + ", ".join(OUTPUTS) + " instead")
    out.add_argument("--at", type=float, help="for .png: only this moment of the run, 0 to 1")
    out.add_argument("--frames", type=int, default=80, help="of an animation (default: 80)")
    out.add_argument("--text", action="store_true", help="animate in the terminal instead")
    return parser.parse_args(argv)


def load_model(arguments):
    """(model, tokenizer, title) of the checkpoint that was asked for, or the newest one."""
    path = arguments.checkpoint or newest_checkpoint(HERE / "checkpoints")
    model, tokenizer, _ = load_checkpoint(path)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    return model, tokenizer, f"{Path(path).stem}, {size:.1f} million parameters"


def load_twin(arguments, model, tokenizer):
    """The model to race against: the twin that was asked for, or the newest one."""
    path = arguments.race or newest_checkpoint(HERE / "checkpoints", twin=True)
    twin, its_tokenizer, _ = load_checkpoint(path)
    if not twin.config.causal or model.config.causal:
        raise UserError("a race needs a diffusion model, and a twin: see twin.ipynb")
    if its_tokenizer.to_json() != tokenizer.to_json() or twin.config.context < model.config.context:
        raise UserError(f"{path}: the twin of another model (tokenizer or context differ)")
    return twin


def warm_up(model, tokenizer):
    """Run a model once, as the first run is slower: the clock of a race should not count that."""
    record_run(model, tokenizer, Settings(steps=4, length=model.config.context))


def headless_record(arguments, settings, model, tokenizer, title, twin=None):
    """The run that --save or --text shows, saying on stderr what takes time."""

    def say(text):
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    say("sampling")
    record = record_run(model, tokenizer, settings, title)
    if twin is not None:
        say("the twin writes")
        record = Race((record, record_run(twin, tokenizer, settings)))
    if arguments.view == "belief" or str(arguments.save).endswith(".safetensors"):
        say("asking the model what it believes")
        record = with_beliefs(model, record)
    say("")
    return record


def run(arguments):
    """Do what the command line says. Raises UserError for what cannot be done."""
    size = parse_size(arguments.size)
    if arguments.save:
        check_output(arguments.save)
    if arguments.at is not None and not 0 <= arguments.at <= 1:
        raise UserError(f"--at must be from 0 to 1, not {arguments.at}")
    if arguments.frames < 1:
        raise UserError(f"--frames must be at least 1, not {arguments.frames}")
    if arguments.race is not None and arguments.replay:
        raise UserError("a recording is of one model: --race and --replay exclude each other")
    if arguments.race is not None and str(arguments.save).endswith(".safetensors"):
        raise UserError("a race cannot be recorded; save it as .gif, .webp, .mp4 or .png")
    headless = arguments.save or arguments.text
    if not headless:
        find_display()
    if arguments.replay:
        record, worker = load_record(arguments.replay), None
        settings = record.settings
    else:
        model, tokenizer, title = load_model(arguments)
        names = ("steps", "temperature", "top_p", "sampler", "seed", "prompt")
        given = {name: getattr(arguments, name) for name in names}
        length = model.config.context if arguments.length is None else arguments.length
        settings = Settings(**given, length=length)
        check_settings(settings, model, tokenizer)
        twin = None
        if arguments.race is not None:
            twin = load_twin(arguments, model, tokenizer)
            title += ", against its twin"
            for racer in (model, twin):
                warm_up(racer, tokenizer)
        if headless:
            record = headless_record(arguments, settings, model, tokenizer, title, twin)
        else:
            worker = Worker(model, tokenizer, title, twin)
            z = starting_text(settings, tokenizer).numpy()
            z = np.where(z == tokenizer.mask_id, MASKED, z)
            record = live_record(title, settings, worker.names, np.zeros(1, np.int64), z, 0)
            if twin is not None:
                record = Race((record, record))
            worker.run(settings)
    state = State(settings=settings, view=arguments.view, theme=arguments.theme)
    if arguments.save:
        save(arguments.save, record, state, size, arguments.at, arguments.frames)
        print(f"{arguments.save}: {Path(arguments.save).stat().st_size / 1e3:,.0f} kB")
    if arguments.text:
        play_in_terminal(record, state, sys.stdout)
    if not headless:
        try:
            show(open_window(size), record, state, worker)
        finally:
            if worker is not None:
                worker.close()
            pygame.quit()


def main(argv=None):
    """Command line. Returns the exit code: 2 for a user's mistake, which gets one line."""
    try:
        run(parse_arguments(argv))
    except UserError as error:
        print(f"sample_visual.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
