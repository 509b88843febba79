"""The model at work in a thread, so that the window never waits for it."""

import queue
import threading
import traceback
from dataclasses import replace

import numpy as np

from files import UserError
from visual.record import MASKED, Record, on_one_clock


def waiting(length):
    """A page of masks, while there is no model yet."""
    record = Record(None, None)
    record.add(np.full(length, MASKED), 0.0, 1.0)
    return record


class Stopped(Exception):
    """Somebody wants something else."""


class Worker:
    """Runs a model, and its twin if there is one. In a thread it keeps these up to date:

    lanes: the `Record`s to be shown beside each other; busy: what is being done, "" when nothing
    is; message: a line for the user; error: why there is no model; settings: None until there is.
    """

    def __init__(self, load, settings):
        self.load, self.asked = load, settings  # load: settings -> model, tokenizer, ..., see open
        self.lanes, self.kept, self.past = (waiting(settings.length or 128),), None, []
        self.busy, self.message, self.error, self.settings = "Loading PyTorch.", "", None, None
        self.orders = queue.SimpleQueue()  # functions to call; None: that was all
        self.thread = threading.Thread(target=self.work, daemon=True, name="sampling")

    def open(self):
        """Load what is needed. Raises UserError."""
        self.model, self.tokenizer, self.title, self.twin, self.settings = self.load(self.asked)

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

        models = [self.model] if self.twin is None else [self.model, self.twin]
        return [begin(model, self.tokenizer, settings, self.title) for model in models]

    def run(self, settings):
        """Order a run; one that is under way is given up, unless the new one is not possible."""
        if self.settings is None:
            raise UserError("the model is still being loaded")
        self.order(self.begin(settings))

    def order(self, lanes):
        """Show these lanes and let the thread write what is missing in them."""
        self.lanes = tuple(lanes)
        if len(lanes) > 1:  # they are shown when it is known how fast each is
            self.lanes = tuple(replace(lane, rows=lane.rows[:1], done=False) for lane in lanes)
        self.orders.put(lambda: self.foresee(self.sample(lanes)))

    def sample(self, lanes):
        """Write what is missing in the lanes, and show them. Returns them on one clock."""
        from visual.sampler import write

        for lane in lanes:
            if not lane.done:
                own = lane.causal == self.model.config.causal
                write(self.model if own else self.twin, lane, self.publish)
        if len(lanes) > 1:
            self.lanes = lanes = on_one_clock(lanes)
        self.busy = ""
        return lanes

    def foresee(self, lanes):
        """Compute what the model predicted, so that whoever wants to see it need not wait."""
        for row in [row for lane in lanes for row in lane.rows if row.look]:
            self.give_way()
            row.look.best  # noqa: B018 (it is kept)

    def publish(self, record):
        """Say how far a run is."""
        self.give_way()
        masked, L = record.masked(-1), record.length
        self.busy = f"Sampling: {L - masked} of {L} tokens."

    def give_way(self):
        if not self.orders.empty():
            raise Stopped
