"""Running the model: a whole run at once, or in a thread, so that the window never waits for it."""

import queue
import re
import threading
import time
import traceback
from dataclasses import replace
from functools import cache, partial

import numpy as np
import torch

import mdlm.sampling
from files import UserError
from mdlm.sampling import adjust, template
from mdlm.twin import cache_error, sample_twin
from visual.record import MASKED, MOST_STEPS, SAMPLERS, Record, race, record_trajectory

CANDIDATES = 5  # tokens kept of what the model predicts at each mask


def parse_prompt(prompt):
    r"""Texts to keep and numbers of masks: "_" is a mask, "\_" an underscore."""
    parts = re.findall(r"_+|(?:\\_|[^_])+", prompt)
    return [len(part) if part[0] == "_" else part.replace(r"\_", "_") for part in parts]


def waiting_record(model, tokenizer, settings, title=""):
    """What there is of a run before it begins. Raises UserError for one that cannot be."""
    s, context = settings, model.config.context
    if not 0 < s.length <= context:
        raise UserError(f"the length must be from 1 to {context}, the model's context")
    if not 0 < s.steps <= MOST_STEPS:
        raise UserError(f"the number of steps must be from 1 to {MOST_STEPS:,}")
    if not 0 <= s.seed < 2**63:
        raise UserError("the seed must be from 0 to 2^63 - 1")
    adjust(torch.zeros(1, 2), temperature=s.temperature, top_p=s.top_p)
    z = template(tokenizer, parse_prompt(s.prompt) or [0], s.length).numpy()
    text = np.where(z == tokenizer.mask_id, MASKED, z)  # (1, L)
    start = np.zeros(1, np.int64)
    return Record(tokenizer, settings, start, text, np.zeros(2), title=title, live=True)


def record_run(model, tokenizer, settings, title="", publish=lambda record: None):
    """Sample one text: a `Record`. `publish` gets a live one after each network call.

    What the model predicts comes from the sampler's own calls; only the output layer runs again,
    and only when somebody wants to see it.
    """
    live, features, lost = waiting_record(model, tokenizer, settings, title), model.features, 0.0
    z = torch.from_numpy(np.where(live.texts == MASKED, tokenizer.mask_id, live.texts))

    def watched(z, *more, **options):  # stands in for model.features: (B, L) -> (B, L, C)
        nonlocal live, lost
        h, start = features(z, *more, **options), time.perf_counter()
        if z.shape[1] != settings.length:  # a sampler that looks at a part of the text
            return h
        text, calls = z[0].cpu().numpy(), int(live.calls[-1]) + 1
        text = np.where(text == tokenizer.mask_id, MASKED, text)
        if (text != live.texts[-1]).any():
            change, texts = np.append(live.change, calls - 1), np.vstack([live.texts, text])
            live = replace(live, change=change, texts=texts)
        hidden = h[0, torch.from_numpy(text == MASKED)]  # (M, C) at the masks
        live.predictions[text.tobytes()] = cache(partial(best_tokens, model, hidden))
        live = replace(live, calls=np.arange(calls + 1))
        publish(live)
        lost += time.perf_counter() - start
        return h

    options = dict(
        temperature=settings.temperature,
        top_p=settings.top_p,
        generator=torch.Generator().manual_seed(settings.seed),
    )
    try:
        start = time.perf_counter()
        if model.config.causal:
            cache_error(model)  # sample_twin begins with this check, which is no part of writing
            lost = 2 * (time.perf_counter() - start)
            trajectory = sample_twin(model, z, **options)
        else:
            model.features = watched
            sampler = getattr(mdlm.sampling, SAMPLERS[settings.sampler])
            trajectory = sampler(model, z, settings.steps, **options)
        seconds = time.perf_counter() - start - lost
    finally:
        vars(model).pop("features", None)
    rest = dict(title=title, seconds=seconds, predictions=live.predictions)
    return record_trajectory(trajectory, tokenizer, settings, **rest)


@torch.no_grad()
def best_tokens(model, hidden):
    """hidden: (M, C), of the last layer -> ids and probabilities of the best, (M, K) each."""
    best = model.head(hidden.float()).softmax(dim=-1).topk(CANDIDATES)
    return best.indices.tolist(), best.values.tolist()


class Stopped(Exception):
    """Somebody wants something else."""


class Worker:
    """Runs a model, and its twin if there is one. In a thread it keeps three attributes up to date:

    record: what there is of the run; busy: what is being done, "" when nothing is; message: a line
    for the user.
    """

    def __init__(self, model, tokenizer, title="", twin=None):
        self.model, self.tokenizer, self.title, self.twin = model, tokenizer, title, twin
        self.record, self.busy, self.message = None, "", ""
        self.orders = queue.SimpleQueue()  # Settings; None: that was all
        self.thread = threading.Thread(target=self.work, daemon=True, name="sampling")

    def run(self, settings):
        """Start a run in the thread; one that is under way is given up.

        Raises UserError, and leaves that one alone, if the new one is not possible.
        """
        self.record = self.waiting(settings)
        self.orders.put(settings)
        if not self.thread.is_alive():
            self.thread.start()

    def close(self):
        """Stop at the next network call (the twin, once begun, writes to its end)."""
        self.orders.put(None)
        self.thread.join(timeout=2)

    def work(self):
        while (settings := self.orders.get()) is not None:
            try:
                self.record = self.sample(settings)
            except Stopped:
                pass
            except Exception as error:  # the window lives on
                if not isinstance(error, UserError | RuntimeError):  # out of memory, for example
                    traceback.print_exc()
                self.message = str(error).split("\n")[0]
            self.busy = ""

    def sample(self, settings):
        """One run, or one race, as a `Record`."""
        self.record = self.waiting(settings)
        record = record_run(self.model, self.tokenizer, settings, self.title, self.publish)
        if self.twin is None:
            return record
        self.busy = "The twin writes."
        return race(record, record_run(self.twin, self.tokenizer, settings))

    def publish(self, live):
        """Show what there is so far, unless somebody wants something else by now."""
        if not self.orders.empty():
            raise Stopped
        self.record = replace(live, twin=self.record.twin)
        masked, L = live.masked(live.n_steps), live.texts.shape[1]
        self.busy = f"Sampling: {L - masked} of {L} tokens."

    def waiting(self, settings):
        """What there is of a run, or of a race, before it begins."""
        first = waiting_record(self.model, self.tokenizer, settings, self.title)
        twin = self.twin and waiting_record(self.twin, self.tokenizer, settings)
        return replace(first, twin=twin)
