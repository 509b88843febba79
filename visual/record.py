"""A run of a sampler, as it is shown: every text on the way. Nothing here runs a model."""

import codecs
import math
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np

MASKED = -1
MOST_STEPS = 4096
SAMPLERS = {  # name: its function in mdlm.sampling. All are called alike, and return a Trajectory
    "ancestral": "sample",
    "plain": "sample_plain",
    "first-hitting": "sample_first_hitting",
    "confident": "sample_confident",
    "remask": "sample_remask",
}


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


@dataclass(frozen=True, eq=False)
class Record:
    """One run of T steps that wrote L tokens; S different texts were seen on the way."""

    tokenizer: object  # with `show(id)`, and `token_bytes`, which spell each token
    settings: Settings
    change: np.ndarray  # (S,) the steps, rising from 0, after which the text is another one
    texts: np.ndarray  # (S, L) the token ids after those steps; MASKED where there is none
    calls: np.ndarray  # (T + 1,) network calls made up to each step
    probability: np.ndarray | None = None  # (L,) of each last token when it was drawn (given: 1)
    predictions: dict = field(default_factory=dict)  # see `candidates`
    title: str = ""
    seconds: float = 0.0  # what sampling took
    live: bool = False  # still being sampled: a step is a network call, and the end is not known
    twin: object = None  # in a race: the twin's `Record` on the same clock, its ticks being steps

    @property
    def lanes(self):
        """The runs to be shown beside each other."""
        return (self,) if self.twin is None else (self, self.twin)

    @property
    def n_steps(self):
        return len(self.calls) - 1

    @cached_property
    def since(self):
        """(S, L) the step after which the token that stands there, or the mask, appeared."""
        since = np.zeros(self.texts.shape, np.int64)
        since[1:] = np.where(self.texts[1:] != self.texts[:-1], self.change[1:, None], 0)
        return np.maximum.accumulate(since)

    def row(self, at):
        """Which of the S texts is that after `at` steps."""
        return int(np.searchsorted(self.change, at, side="right")) - 1

    def masked(self, at):
        """How many masks there are after `at` steps."""
        return int((self.texts[self.row(at)] == MASKED).sum())


@lru_cache(maxsize=64)
def pieces(record, row):
    """(L,) what each token of that text shows; "·" if it ends within a character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    spelled = [b"_" if i == MASKED else record.tokenizer.token_bytes[i] for i in record.texts[row]]
    parts = [decoder.decode(part, final=i == len(spelled)) for i, part in enumerate(spelled, 1)]
    return tuple(part or "·" for part in parts)


def candidates(record, i, at):
    """What the model would put at the mask at place i after `at` steps: (name, probability) pairs.

    The best first; none where the network was not run on that text. `record.predictions` maps each
    text that the network saw, as bytes, to a function without arguments. It returns the ids and
    probabilities of the best tokens at the text's M masks, (M, K) each.
    """
    text = record.texts[record.row(at)]
    if text[i] != MASKED or text.tobytes() not in record.predictions:
        return []
    ids, probabilities = record.predictions[text.tobytes()]()
    m = int((text[:i] == MASKED).sum())
    return list(zip(map(record.tokenizer.show, ids[m]), probabilities[m], strict=True))


def facts(record, lane, at):
    """Where a lane of the record is, as (label, value) pairs that do not change their width."""
    step, n_steps = math.floor(at), lane.n_steps
    calls, total = lane.calls[min(step, n_steps)], max(1, lane.calls[-1])
    masked = ("masked", f"{lane.masked(step):>{len(str(lane.masked(0)))}}")
    made = ("network calls", f"{calls:>{len(f'{total:.0f}')}.0f}")
    if lane.live:  # neither the steps nor the time of the whole run are known
        return [masked, made]
    seconds = ("seconds", f"{lane.seconds * calls / total:.2f}")
    if record.twin is not None:
        return [made, seconds]
    steps = f"{step:>{len(str(n_steps))}}/{n_steps}"
    return [("step", steps), ("t", f"{1 - step / n_steps:.2f}"), masked, made, seconds]


def record_trajectory(trajectory, tokenizer, settings=None, row=0, **rest):
    """Text number `row` of a `Trajectory` as a `Record`; rest: what else it shall hold."""
    change = np.unique(np.append(trajectory.step[row].numpy(), 0))
    if trajectory.states is not None:  # a token may have come and gone in any step
        change = np.arange(trajectory.n_steps + 1)
    texts = np.stack([trajectory.state(int(step))[row].numpy() for step in change])
    return Record(
        tokenizer=tokenizer,
        settings=settings or Settings(steps=trajectory.n_steps, length=texts.shape[1]),
        change=change,
        texts=np.where(texts == trajectory.mask_id, MASKED, texts),
        calls=np.append(0, trajectory.calls[row].numpy().cumsum()),
        probability=trajectory.probability[row].numpy(),
        **rest,
    )


def race(record, twin, ticks=480):
    """Two runs as a race: a `Record` with a `twin`, both on one clock that stops with the slower.

    Their steps become ticks of that clock. A network call takes its share of a run's seconds.
    """
    lanes, clock = [], max(record.seconds, twin.seconds)
    for lane in (record, twin):
        call = lane.seconds / clock * ticks / max(1, lane.calls[-1])
        done = np.ceil(lane.calls * call - 1e-6).astype(int)  # (T + 1,) the tick that ends a step
        step = np.searchsorted(done, np.arange(ticks + 1), side="right") - 1  # at each tick
        change = done[lane.change]
        seen = np.append(change[1:] > change[:-1], True)  # the last of the texts in one tick
        lanes.append(
            replace(lane, change=change[seen], texts=lane.texts[seen], calls=lane.calls[step])
        )
    return replace(lanes[0], twin=lanes[1])
