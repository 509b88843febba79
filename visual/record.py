"""What happened: a run of a sampler, text by text. Nothing here runs a model, or draws."""

import codecs
import re
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from visual.items import direction

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
    """What a run is asked to do. (What the command does by itself is in sample_visual.DEFAULTS.)"""

    steps: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    sampler: str = "ancestral"
    seed: int = 1
    length: int = 128  # tokens; 0: the text ends by itself
    prompt: str = ""  # the text begins like this; each "_" in it is one mask
    grid: int = 0  # the text is a Sudoku of this size


@dataclass(eq=False)
class Row:
    """The text of a run from one moment on, until the next one."""

    text: np.ndarray  # (L,) token ids; MASKED where there is none
    time: float  # where it begins on the clock of what is shown, 0 to 1
    t: float  # the noise level, 1 - alpha_t
    calls: int  # network calls made up to then
    since: np.ndarray  # (L,) the row in which the token that stands there, or the mask, appeared
    probability: np.ndarray  # (L,) that each token had when it was drawn (given: 1)
    look: object = None  # a `Look`, once the network has seen this text
    bits: float | None = None  # the mean entropy of what it said about the masks, once computed


@dataclass(eq=False)
class Record:
    """A run that wrote, or is writing, L tokens. Rows are added while it is under way."""

    tokenizer: object  # with `show(id)`, and `token_bytes`, which spell each token
    settings: Settings
    title: str = ""
    model: object = None  # which writes it
    name: str = ""  # of its kind of model, and its size
    causal: bool = False  # written from left to right: there are no masks to be shown
    longest: int = 0  # how many tokens a text may have
    block: int = 0  # written in blocks of so many tokens, from left to right; 0: all at once
    heads: tuple = (0, 0)  # the network's layers, and the attention heads in each
    leftwards: bool = False  # read from right to left
    original: object = None  # (L,) the real text, as ids, if it is one that loses its words
    start: float = 0.0  # the moment from which it is played
    rows: list = field(default_factory=list)
    done: bool = False
    seconds: float = 0.0  # what sampling took
    layouts: dict = field(default_factory=dict)  # what `typesetting` keeps of it

    def add(self, text, time, t, calls=0, probability=1.0):
        """Another text, from now on; probability: (L,), that of the tokens that are new."""
        since, chance = np.zeros(len(text), int), np.ones(len(text))
        if self.rows:  # the tokens of the first one are given
            old = self.rows[-1]
            since = np.where(text == old.text, old.since, len(self.rows))
            chance = np.where(text == old.text, old.probability, probability)
        self.rows.append(Row(text, float(time), float(t), int(calls), since, chance))

    def at(self, time):
        """The number of the row at a moment of the clock."""
        return max(0, bisect_right(self.rows, time, key=lambda row: row.time) - 1)

    @property
    def edge(self):
        """The last moment of which something is known."""
        return 1.0 if self.done else self.rows[-1].time

    @property
    def grid(self):
        return self.settings.grid if self.settings else 0

    @property
    def length(self):
        return len(self.rows[0].text)

    def masked(self, n):
        """How many masks there are in row n."""
        return int((self.rows[n].text == MASKED).sum())


@lru_cache(maxsize=512)
def pieces(record, n):
    """(L,) what each token of row n shows: None for a mask, "·" if it ends within a character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    parts, text = [], record.rows[n].text
    for i, token in enumerate(text):
        last = bool(i + 1 == len(text) or text[i + 1] == MASKED)
        if token == MASKED:
            parts.append(None)
        else:
            spelled = decoder.decode(record.tokenizer.token_bytes[token], final=last)
            parts.append(re.sub("\ufffd+", "·", spelled) or "·")
    return tuple(parts)


def leftwards(tokenizer):
    """Whether most of the tokens are read from right to left."""
    spelled = [token for token in tokenizer.token_bytes if len(token) > 1]
    other = [token.decode("utf-8", "ignore") for token in spelled if not token.isascii()]
    return [direction(text) for text in other].count("R") > len(spelled) / 2


def place_among_masks(row, i):
    """Which of the M masks of a row stands at place i."""
    return int((row.text[:i] == MASKED).sum())


@lru_cache(maxsize=64)
def predictions(row, look):
    """What the model would write at the masks of a row: {place: (id, probability)}. `look`: that of
    the row, as it comes late; of a later block it says nothing."""
    places = np.flatnonzero(row.text == MASKED).tolist()
    return dict(zip(places, zip(*look.best[:2], strict=True), strict=False)) if look else {}


def asked(record, n, i):
    """The row with the text from which the model predicted what stands at place i in row n."""
    row = record.rows[n]
    return row if row.text[i] == MASKED else record.rows[max(0, row.since[i] - 1)]


def rivals(record, n, i):
    """What could have been written at place i in row n: [(id, name, probability)], the best first.

    At a mask, what the model predicts there now; at a token, what it predicted before it was drawn.
    """
    row, now = asked(record, n, i), record.rows[n]
    given = now.text[i] != MASKED and now.since[i] == 0
    if given or row.text[i] != MASKED or row.look is None:
        return []
    found = row.look.rivals(place_among_masks(row, i))
    return [(token, record.tokenizer.show(token), p) for token, p in found]


def companions(record, n, i):
    """The places whose tokens were drawn in the same network call as that at place i."""
    row = record.rows[n]
    together = (row.since == row.since[i]) & (row.text != MASKED) & (row.since > 0)
    return [int(j) for j in np.flatnonzero(together) if j != i] if together[i] else []


def facts(record, n, alone=True):
    """Where a run is in row n: (label, value) pairs that do not change their width."""
    row, total = record.rows[n], record.rows[-1].calls
    t = 0.0 if record.done and row is record.rows[-1] else row.t  # the last steps change nothing
    label, of = "step", record.length if record.causal else record.settings.steps
    now = round((1 - t) * of)
    if record.block:
        first = np.flatnonzero(row.text == MASKED).min(initial=record.length - 1)
        label, now, of = "block", 1 + first // record.block, -(-record.length // record.block)
    masked = f"{record.masked(n):>{len(str(record.length))}}"
    width = len(str(max(total, of, record.settings.steps)))
    made = ("network calls", f"{row.calls:>{width}}")
    if alone:
        return [(label, f"{now:>{len(str(of))}}/{of}"), ("t", f"{t:.2f}"), ("masked", masked), made]
    return [("seconds", f"{record.seconds * row.calls / max(1, total):.2f}"), made]


def add_trajectory(record, trajectory, row=0):
    """Text number `row` of a `Trajectory` becomes the rows of a record; `seconds` is not set."""
    calls, n_steps = trajectory.calls[row].numpy().cumsum(), trajectory.n_steps
    for step in range(n_steps + 1):
        text = trajectory.state(step)[row].numpy()
        text = np.where(text == trajectory.mask_id, MASKED, text)
        if not record.rows or (text != record.rows[-1].text).any():
            made, t = (calls[step - 1] if step else 0), 1 - step / n_steps
            record.add(text, step / n_steps, t, made, trajectory.probability[row].numpy())
    record.rows[-1].calls, record.done = int(calls[-1]), True
    return record


def on_one_clock(records):
    """Runs to be shown side by side: copies whose rows come when they came, by the second."""
    slowest, lanes = max(record.seconds for record in records) or 1.0, []
    for record in records:
        call = record.seconds / slowest / max(1, record.rows[-1].calls)  # its share of the clock
        rows = [replace(row, time=min(1.0, row.calls * call)) for row in record.rows]
        lanes.append(replace(record, rows=rows, layouts={}))
    return tuple(lanes)
