"""A run of a sampler, recorded: everything it produced, so that it can be shown again and again.

`record_run` makes a `Record`, `with_beliefs` adds what the model would have put under each mask,
`record_bytes` and `load_record` take it to the disk and back. A `Race` is two of them on one clock.
"""

import json
import math
import re
import time
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property

import numpy as np
import safetensors
import safetensors.numpy
import torch

from bpe_tokenizer import UserError
from mdlm.sampling import (
    adjust,
    check_length,
    noise_grid,
    sample,
    sample_confident,
    sample_first_hitting,
    sample_plain,
    sample_remask,
    template,
)
from mdlm.training import autocast
from mdlm.twin import sample_twin
from saving import DAMAGE

SAMPLERS = {  # all are called alike and return a Trajectory
    "ancestral": sample,
    "plain": sample_plain,
    "first-hitting": sample_first_hitting,
    "confident": sample_confident,
    "remask": sample_remask,
}
CANDIDATES = 5  # tokens kept of what the model believes at each mask


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


def waiting_record(title, settings, tokenizer):
    """What there is of a text before the first pass: what is given, and masks."""
    z = starting_text(settings, tokenizer).numpy()
    z = np.where(z == tokenizer.mask_id, MASKED, z)
    return live_record(title, settings, token_names(tokenizer), np.zeros(1, np.int64), z, 0)


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
    check_length(model, settings.length)
    noise_grid(settings.steps)
    adjust(torch.zeros(1, 2), temperature=settings.temperature, top_p=settings.top_p)
    starting_text(settings, tokenizer)


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
    t = (1 - noise_grid(record.n_steps)[steps]).float()  # (R,)
    tokens, probabilities = [], []
    size = max(1, tokens_at_once // len(record.pieces))
    for i in range(0, len(steps), size):
        progress(i / len(steps))
        z = torch.from_numpy(states[i : i + size]).to(device)
        with autocast(device):
            log_p = model(z, t[i : i + size].to(device))  # (size, L, V)
        best = log_p.float().topk(CANDIDATES)
        tokens.append(best.indices.cpu().numpy())
        probabilities.append(best.values.exp().cpu().double().numpy())
    return replace(
        record,
        belief_step=steps,
        belief_token=np.concatenate(tokens),
        belief_probability=np.concatenate(probabilities),
    )


def candidates(record, i, at):
    """What the model would put at position i after `at` steps: a list of (name, probability)."""
    s = np.searchsorted(record.belief_step, at, side="right") - 1
    if s < 0 or record.states[record.row(record.belief_step[s]), i] != MASKED:
        return []  # when the model was asked, the place was not masked: it has been since
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
    except DAMAGE as error:
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
    if not (math.isfinite(record.seconds) and record.seconds >= 0):
        raise ValueError("its time is not a time")
    if record.settings.sampler not in SAMPLERS or record.settings.steps < 1:
        raise ValueError("a setting is out of range")
    if not (np.isfinite(record.calls) & (record.calls >= 0)).all():
        raise ValueError("a number of calls is none")
    for values in (record.probability, record.belief_probability):
        if not ((values >= 0) & (values <= 1 + 1e-6)).all():  # what is no number is neither
            raise ValueError("a probability is not between 0 and 1")
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
    if len(belief) and (
        belief.shape[1] != L
        or not belief.size
        or belief.min() < 0
        or belief.max() >= len(record.names)
    ):
        raise ValueError("a belief is out of range")
