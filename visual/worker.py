"""The model at work in a thread, so that the window never waits for it."""

import queue
import threading
import traceback
from dataclasses import replace
from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np

from files import UserError
from visual.controls import lane_of
from visual.record import MASKED, Record, on_one_clock
from visual.sudoku import puzzle

DATA = Path(__file__).resolve().parent.parent / "data"


def waiting(length):
    """A page of masks, while there is no model yet."""
    record = Record(None, None)
    record.add(np.full(length, MASKED), 0.0, 1.0)
    return record


class Stopped(Exception):
    """Somebody wants something else."""


class Worker:
    """Runs a model, and those that race it. In a thread it keeps these up to date:

    lanes: the `Record`s to be shown beside each other; busy: what is being done, "" when nothing
    is; message: a line for the user; error: why there is no model; settings: None until there is.
    """

    def __init__(self, load, settings):
        self.load, self.asked = load, settings  # load: settings -> model, tokenizer, ..., see open
        self.lanes, self.kept, self.past = (waiting(settings.length or 128),), None, []
        self.busy, self.message, self.error, self.settings = "Loading PyTorch.", "", None, None
        self.numbers = count(1)  # of the examples
        self.orders = queue.SimpleQueue()  # functions to call; None: that was all
        self.thread = threading.Thread(target=self.work, daemon=True, name="sampling")

    def open(self):
        """Load what is needed. Raises UserError."""
        self.model, self.tokenizer, self.title, rivals, *settings = self.load(self.asked)
        self.models = [self.model, *rivals]
        if len(settings) > 1:  # two runs side by side
            self.kept = self.begin(settings[0])[0]
        self.settings = settings[-1]

    def work(self):
        """What the thread does: load, then sample what is ordered."""
        try:
            self.open()
            self.run(self.settings)
        except Exception as error:
            if not isinstance(error, UserError):
                traceback.print_exc()
            self.error = error if isinstance(error, UserError) else UserError(str(error))
            return
        while (order := self.orders.get()) is not None:
            try:
                order()
            except Stopped:
                pass
            except Exception as error:  # the window lives on
                if not isinstance(error, UserError | RuntimeError):  # out of memory, for example
                    traceback.print_exc()
                self.message = str(error).split("\n")[0]
            self.busy = ""

    def close(self):
        """Stop at the next network call (the twin, once begun, writes to its end)."""
        self.orders.put(None)
        if self.thread.is_alive():
            self.thread.join(timeout=2)

    def begin(self, settings):
        """The lanes of a new run before it begins. Raises UserError if it is not possible."""
        from visual.sampler import begin

        lanes = [begin(model, self.tokenizer, settings, self.title) for model in self.models]
        return lanes if self.kept is None else [self.kept, *lanes]

    def run(self, settings):
        """Order a run; one that is under way is given up, unless the new one is not possible."""
        self.order(self.begin(settings))

    def go_on(self, state, lanes, ids=(), given=False):
        """Order the rest of a run from this moment on: with another seed, and with masks, or with
        these tokens, in the place of what is selected."""
        from visual.sampler import continued

        record = lane_of(lanes, max(state.selected, default=0))[0]
        n, places = record.at(state.at), sorted(lane_of(lanes, i)[1] for i in state.selected)
        edits = dict(zip(places, map(int, ids or [MASKED] * len(places)), strict=True))
        if record.causal:
            raise UserError("a GPT cannot fill gaps: only its end can change")
        if not edits and not record.masked(n):
            raise UserError("nothing is masked here: go back on the timeline first")
        settings = replace(state.settings, length=record.length)
        self.order([continued(record, n, edits, settings, given)])

    def corrupt(self, settings):
        """Order a run in which a real text is masked, and written again."""
        from visual.sampler import corrupted

        if settings.grid:
            raise UserError("only a text can lose its words: erase cells instead")
        lines = self.real_text.splitlines(keepends=True)
        k, L = self.another(settings) * 7919 % len(lines), self.model.config.context
        L = min(settings.length or L, L)
        ids = np.array(self.tokenizer.encode("".join(lines[k : k + L]))[:L])
        self.order([corrupted(self.model, self.tokenizer, settings, self.title, ids)])

    def example(self, k, settings):
        """The settings with the k-th of some example prompts, each time another one."""
        from visual.sampler import examples

        number = self.another(settings)
        if settings.grid:
            return replace(settings, prompt=puzzle(number) * (k > 0))
        return replace(settings, prompt=examples(self.tokenizer, self.real_text, number)[k])

    def another(self, settings):
        """The number of another example. (Another seed would be another setting.)"""
        return settings.seed + next(self.numbers)

    @cached_property
    def real_text(self):
        """The validation text of the model's corpus. Raises UserError if it is not here."""
        from corpus import load_parts

        return load_parts(self.model.config.corpus, DATA)[1]

    def store(self, kind, lanes, state, size):
        """Order a "picture" of what is shown, or an "animation" of it, as a file in this folder."""
        from visual.files import save

        def work():
            self.busy = f"Saving {path}."
            save(path, lanes, state, size, min(1.0, state.at))
            self.message = f"saved as {path.resolve()}"

        if self.busy:
            raise UserError("wait until the text is there")
        names = (Path(f"text-{n}.{'png' if kind == 'picture' else 'gif'}") for n in count(1))
        path = next(name for name in names if not name.exists())
        self.orders.put(work)

    def undo(self):
        """Show what was shown before, finished."""
        if not self.past:
            raise UserError("nothing to undo")
        self.lanes = tuple(replace(lane, start=2.0) for lane in self.past.pop())
        self.orders.put(lambda: None)  # what is under way is given up

    def order(self, lanes):
        """Show these lanes and let the thread write what is missing in them."""
        if all(lane.done for lane in self.lanes):
            self.past = [*self.past[-20:], self.lanes]
        self.lanes = tuple(lanes)
        if len(lanes) > 1:  # they are shown when it is known how fast each is
            self.lanes = tuple(replace(lane, rows=lane.rows[:1], done=False) for lane in lanes)
        self.orders.put(lambda: self.foresee(self.sample(lanes)))

    def sample(self, lanes):
        """Write what is missing in the lanes, and show them. Returns them on one clock."""
        from visual.sampler import write

        lanes = tuple(lane if lane.done else write(lane, self.publish) for lane in lanes)
        lanes = on_one_clock(lanes) if len(lanes) > 1 else lanes
        if lanes != self.lanes:
            self.lanes = lanes
        self.busy = ""
        return lanes

    def foresee(self, lanes):
        """Compute what the model predicted, so that whoever wants to see it need not wait."""
        for row in [row for lane in lanes for row in lane.rows if row.look]:
            self.give_way()
            if len(row.look.best[2]):
                row.bits = float(row.look.best[2].mean())

    def publish(self, record):
        """Say how far a run is."""
        self.give_way()
        masked, L = record.masked(-1), record.length
        self.busy = f"Sampling: {L - masked} of {L} tokens."

    def give_way(self):
        if not self.orders.empty():
            raise Stopped
