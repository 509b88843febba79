"""Running the model: from settings to a `Record`. Imported late, as PyTorch takes seconds."""

import re
import time
from dataclasses import replace
from functools import cached_property, lru_cache, partial

import numpy as np
import torch

import mdlm.sampling
from files import UserError
from hardware import autocast
from mdlm.blocks import sample_blocks
from mdlm.sampling import adjust, template
from mdlm.twin import cache_error, sample_twin
from visual.record import MASKED, MOST_STEPS, SAMPLERS, Record, add_trajectory, leftwards, rivals
from visual.sudoku import checked

CONTEXTS = 4  # so many a text has at most, if it is written in blocks
END_OF_TEXT = "\n\n"  # as in blocks.ipynb
RIVALS = 5  # tokens shown of what the model predicts at a mask


def parse_prompt(prompt):
    r"""Texts to keep and numbers of masks: "_" is a mask, "\_" an underscore."""
    parts = re.findall(r"_+|(?:\\_|[^_])+", prompt)
    return [len(part) if part[0] == "_" else part.replace(r"\_", "_") for part in parts]


def begin(model, tokenizer, settings, title=""):
    """What there is of a run before it begins. Raises UserError for one that cannot be."""
    s, c = settings, model.config
    if s.grid:
        s = settings = replace(s, prompt=checked(s.prompt, s.grid), length=s.grid**2)
    record = blank(model, tokenizer, settings, title)
    length = s.length or record.longest * (c.block > 0)
    if not 0 < length <= record.longest:
        limit = f"{CONTEXTS} contexts of the model, or auto" if c.block else "the model's context"
        raise UserError(f"the length must be from 1 to {record.longest:,}, {limit}")
    if not 0 < s.steps <= MOST_STEPS:
        raise UserError(f"the number of steps must be from 1 to {MOST_STEPS:,}")
    if not 0 <= s.seed < 2**63:
        raise UserError("the seed must be from 0 to 2^63 - 1")
    adjust(torch.zeros(1, 2), temperature=s.temperature, top_p=s.top_p)
    z = template(tokenizer, parse_prompt(s.prompt) or [0], length)[0].numpy()  # (L,)
    record.add(np.where(z == tokenizer.mask_id, MASKED, z), 0.0, 1.0)
    return record


def blank(model, tokenizer, settings, title):
    """A record without rows."""
    c, name = model.config, "diffusion"
    if c.causal or c.block:
        name = "GPT" if c.causal else f"blocks of {c.block}"
    name += f", {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M"  # parameters
    heads = (c.n_layers, c.n_heads) if hasattr(model, "blocks") and not c.block else (0, 0)
    longest = c.context * (CONTEXTS if c.block else 1)  # in blocks, what is far back is not seen
    way = leftwards(tokenizer)
    return Record(tokenizer, settings, title, model, name, c.causal, longest, c.block, heads, way)


def corrupted(model, tokenizer, settings, title, ids, deepest=0.8, n_rows=64):
    """A record in which a real text (L,) loses its words as t rises, for the model to write again.

    It takes the first half of the clock.
    """
    record = replace(blank(model, tokenizer, settings, title), original=ids)
    moment = np.random.default_rng(settings.seed).random(len(ids))  # each token's own
    for t in np.linspace(0, deepest, n_rows):
        record.add(np.where(moment < t, MASKED, ids), 0.5 * t / deepest, t)
    return record


def continued(record, n, edits, settings, given=False):
    """A record that goes on from row n of another one, with other tokens, or masks, at some places.

    edits: {place: id or MASKED}; given: the tokens are no draws. In a finished text, what is masked
    again is written in the last quarter of the clock.
    """
    row = record.rows[n]
    text, chance = row.text.copy(), np.ones(len(row.text))
    for i, token in edits.items():
        text[i] = token
        chance[i] = {found: p for found, _, p in rivals(record, n, i)}.get(token, 1.0)
    left = (text == MASKED).mean()
    again = record.masked(n) == 0 and left > 0
    past = 0.75 if again else 1.0
    rows = [replace(old, time=past * old.time) for old in record.rows[: n + 1]]
    new = replace(record, settings=settings, rows=rows, layouts={}, done=left == 0, seconds=0.0)
    if edits:
        new.add(text, rows[-1].time, left if again else row.t, row.calls, chance)
        if given:
            new.rows[-1].since[list(edits)] = 0
    new.start = 2.0 if new.done else new.rows[-1].time
    return new


def examples(tokenizer, text, seed):
    """Three prompts from a real text: a beginning, a gap, and two lines with a lost middle."""
    lines = [line for line in text.split("\n") if 12 <= len(line.split()) <= 40]
    if len(lines) < 2:
        raise UserError("this model's validation text has no lines to choose from")

    def without(before, lost, after):
        masks = "_" * len(tokenizer.encode(" " + " ".join(lost)))
        return " ".join([*before, masks, *after])

    k = int(np.random.default_rng(seed).integers(len(lines) - 1))
    first, second = (line.replace("_", r"\_").split() for line in lines[k : k + 2])
    n, half = len(first) // 3, len(second) // 2
    gap = without(first[:n], first[n:-n], first[-n:])
    return " ".join(first[:5]), gap, without(first[:n], first[n:] + second[:half], second[half:])


class Look:
    """What a network said of the M masks of a text. Computed when somebody wants to see it."""

    def __init__(self, model, z, t, hidden, options):
        self.model, self.z, self.t, self.options = model, z.clone(), t, options  # z: (1, L)
        self.hidden = hidden[0][z[0] == model.mask_id]  # (M, C)
        self.rivals, self.chances = lru_cache(self.rivals), lru_cache(self.chances)

    @cached_property
    def best(self):
        """Of each mask: the likeliest token's id and its probability; the entropy in bits. (M,)"""
        with torch.inference_mode(), autocast(self.hidden.device):
            p = self.model.head(self.hidden).softmax(dim=-1)
            chance, token = p.max(dim=-1)
            bits = torch.special.entr(p).sum(dim=-1) / np.log(2)
            return tuple(x.cpu().numpy() for x in (token, chance, bits))

    def rivals(self, m):
        """What could be drawn at the m-th mask, with these settings: [(id, probability)]."""
        with torch.inference_mode(), autocast(self.hidden.device):
            p = adjust(self.model.head(self.hidden[m : m + 1]), **self.options).flatten()
        best = p.topk(min(RIVALS, len(p)))  # values, indices
        return [(int(i), float(q)) for q, i in zip(*best, strict=True) if q > 0]

    def chances(self, m, n):
        """The probabilities of the digits 1 to n at the m-th mask."""
        p = self.model.head(self.hidden[m : m + 1]).softmax(dim=-1)[0]
        return p[ord("1") : ord("1") + n].tolist()

    @cached_property
    def attention(self):
        """How much each token took from each other, in each head: (layers * heads, L, L)."""
        found, hooks = [], []
        for block in self.model.blocks:  # from what the layer got, as the network itself does it
            keep = lambda layer, x: found.append(layer.weights(*layer.heads(*x)[:2]))  # noqa: E731
            hooks.append(block.attention.register_forward_pre_hook(keep))
        try:
            with torch.inference_mode(), autocast(self.z.device):
                self.model.features(self.z, torch.tensor([self.t], device=self.z.device))
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat(found, dim=1)[0].float().cpu().numpy()


def write(record, show=lambda record: None):
    """Fill the masks in the last row of a record: row by row, from the sampler's own calls.

    `show` is called after each of them; what it raises ends the run. Returns the record; of a text
    that has ended before its masks did, another one without these masks.
    """
    model, s, first = record.model, record.settings, record.rows[-1]
    block, n_masked = record.block, max(1, record.masked(-1))
    options = dict(temperature=s.temperature, top_p=s.top_p)
    steps, parts = max(1, round(s.steps * first.t)), 1
    if block:  # so many steps in each of the parts
        steps = round(s.steps * block / (s.length or model.config.context))
        steps, parts = max(1, min(block, steps)), -(-record.length // block)
    calls, lost, last = first.calls, 0.0, None  # last: the time, places and p of the last call

    def add(text, alpha):
        """A new text; its tokens come from the last call's probabilities."""
        text = np.where(text == model.mask_id, MASKED, text)
        if (text == record.rows[-1].text).all():
            return
        before, places, p = last
        chance = np.ones(len(text))
        new = np.flatnonzero((text != MASKED) & np.isin(np.arange(len(text)), places))
        chance[new] = p[np.searchsorted(places, new), text[new]]
        alpha = min(alpha, before + 1 / steps / parts)  # a sampler may leave out idle steps
        moment, t = first.time + (1 - first.time) * alpha, first.t * (1 - alpha)
        record.add(text, moment, t, calls, chance)

    def watch(z, alpha_t, h, where, p, text=None, start=0):
        """What each network call shows: see `predict` in sampling.ipynb, and `sample_blocks`."""
        nonlocal calls, lost, last
        began, alpha = time.perf_counter(), float(torch.as_tensor(alpha_t).flatten()[0])
        whole = z
        if block:  # z is the block of the text that begins at `start`
            whole = text.clone()
            whole[:, start : start + block] = z
            alpha = 1 - float((whole == model.mask_id).sum()) / n_masked
        if last:
            add(whole[0].cpu().numpy(), alpha)
        record.rows[-1].look = Look(model, z, 1 - alpha, h, options)
        last = alpha, start + where[0].nonzero()[:, 0].cpu().numpy(), p.cpu().numpy()
        calls += 1
        show(record)
        lost += time.perf_counter() - began

    z = torch.from_numpy(np.where(first.text == MASKED, model.mask_id, first.text))[None]
    generator = torch.Generator().manual_seed(s.seed)
    if record.causal:
        cache_error(model)  # sample_twin begins with this check, which is no part of writing
        start = time.perf_counter()
        cache_error(model)
        lost = time.perf_counter() - start
        start = time.perf_counter()
        trajectory = sample_twin(model, z, generator=generator, **options)
        record.rows = add_trajectory(replace(record, rows=[]), trajectory).rows
    else:
        start, sampler = time.perf_counter(), getattr(mdlm.sampling, SAMPLERS[s.sampler])
        if block:
            end = () if s.length else record.tokenizer.encode(END_OF_TEXT)
            sampler = partial(sample_blocks, end=end, sampler=sampler)
        trajectory = sampler(model, z, steps, generator=generator, watch=watch, **options)
        text = trajectory.tokens[0].numpy()
        if last:
            behind = (0, record.length - len(text))  # where nothing is written any more
            add(np.pad(text, behind, constant_values=model.mask_id), 1.0)
        record.rows[-1].calls = calls
        if len(text) < record.length:
            record = ended(record, len(text))
    record.seconds, record.done = time.perf_counter() - start - lost, True
    return record


def ended(record, length):
    """A text that has ended by itself, as a record without the masks behind its end."""
    rows = []
    for row in record.rows:
        parts = {name: getattr(row, name)[:length] for name in ("text", "since", "probability")}
        time = row.time / record.rows[-1].time
        rows.append(replace(row, time=time, t=1 - time, **parts))
    return replace(record, rows=rows, layouts={})
