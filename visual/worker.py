"""Sampling in a thread, so that the window never waits for the model."""

import contextlib
import queue
import threading
import traceback
from dataclasses import replace

import numpy as np

from bpe_tokenizer import UserError
from visual.recording import MASKED, Race, live_record, record_run, token_names, with_beliefs


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
        self.thread = threading.Thread(target=self.work, daemon=True, name="sampling")
        self.thread.start()

    def run(self, settings):
        """Start a run; one that is under way is given up."""
        self.orders.put(settings)

    def close(self):
        """Stop at the next pass through the network (the twin, once begun, writes to its end)."""
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
        except Stopped:
            raise
        except (UserError, RuntimeError) as error:  # PyTorch: out of memory, for example
            self.news.put(("error", str(error).split("\n")[0]))
        except Exception as error:  # a bug: the window lives on, and the terminal has the details
            traceback.print_exc()
            self.news.put(("error", f"{type(error).__name__}: {error}".split("\n")[0]))

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
        else:  # a record: so far, finished, or with beliefs
            record = value
            if kind == "record":
                state = replace(state, at=0.0, playing=True, cursor=None, scroll=0)
    return record, state
