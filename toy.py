"""A language so small that everything about it can be known: 3 tokens, texts of 3 tokens, 27 texts.

The learning guide and the tests check the mathematics of masked diffusion on it, by adding up all
cases instead of sampling some. `ExactDenoiser` has the interface of the real network and is the
best network there can be: it knows the conditional distribution of every token given any others.
"""

import itertools
import math

import torch
import torch.nn.functional as F

from mdlm.diffusion import subs
from settings import Config

L, MASK = 3, 3  # the tokens are 0, 1, 2, and the mask is 3
TEXTS = list(itertools.product(range(3), repeat=L))  # all 27 texts
STATES = list(itertools.product(range(4), repeat=L))  # all 64 texts with masks in them


def some_language(seed=3):
    """A probability for each of the 27 texts, float64 (27,)."""
    noise = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(27, generator=noise, dtype=torch.float64)).softmax(0)


class TableDenoiser:
    """A network that looks its answers up: table[z] is log p (3, 3) for each place and token."""

    mask_id, config = MASK, Config(context=L)

    def __init__(self, table):
        self.table = table  # (4, 4, 4, 3, 3)

    def parameters(self):
        yield self.table

    def features(self, z, t=None):
        return self.table[z[:, 0], z[:, 1], z[:, 2]].float()  # (B, 3, 3)

    def head(self, h):
        return h

    def __call__(self, z, t=None):
        return subs(self.features(z), z, MASK)  # (B, 3, 4)


class ExactDenoiser(TableDenoiser):
    """Knows p(x^l = v | the visible tokens) of a language exactly. joint: (27,) probabilities."""

    def __init__(self, joint):
        table = torch.zeros(4, 4, 4, L, 3, dtype=torch.float64)
        for z in STATES:
            fits = torch.tensor(
                [all(a in (b, MASK) for a, b in zip(z, x, strict=True)) for x in TEXTS]
            )
            for place, v in itertools.product(range(L), range(3)):
                has = torch.tensor([x[place] == v for x in TEXTS])
                table[z][place, v] = ((joint * fits * has).sum() / (joint * fits).sum()).log()
        super().__init__(table)


def inconsistent_denoiser(seed=5):
    """Conditionals drawn at random: those of no language at all, as a real network's are."""
    noise = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 4, 4, L, 3, generator=noise, dtype=torch.float64)
    return TableDenoiser(logits.log_softmax(-1))


@torch.no_grad()
def tabulate(network):
    """The answers of a network (B, L) -> log p (B, L, 3 or more) to all 64 states, as a table."""
    log_p = network(torch.tensor(STATES))[..., :3].double()
    return TableDenoiser(log_p.view(4, 4, 4, L, 3))


def cross_entropy_at(model, x, k):
    """Sum of -log p over the masks, averaged over all ways to mask k tokens of x, in nats."""
    total = []
    for masked in itertools.combinations(range(L), k):
        z = tuple(MASK if place in masked else v for place, v in enumerate(x))
        total.append(-sum(model.table[z][place, x[place]].item() for place in masked))
    return sum(total) / len(total)


def chance_of_masks(k, mask_rate):
    """Probability that k of the L tokens are masked, each with probability mask_rate."""
    return math.comb(L, k) * mask_rate**k * (1 - mask_rate) ** (L - k)


def exact_nelbo(model, x):
    """The continuous-time NELBO of the text x, in nats: every number of masks equally likely."""
    return sum(cross_entropy_at(model, x, k) / k for k in range(1, L + 1))


def exact_nelbo_in_steps(model, x, steps):
    """The NELBO of the text x for a sampler with that many steps, in nats. alpha_t = 1 - t."""
    total = 0.0
    for i in range(1, steps + 1):
        s, t = (i - 1) / steps, i / steps
        unmasked = (t - s) / t  # the share of the masks that this step unmasks
        for k in range(1, L + 1):
            total += unmasked * chance_of_masks(k, t) * cross_entropy_at(model, x, k)
    return total


def orders(model, x):
    """-log p of the text x in each of the 6 orders of its tokens, in nats."""
    values = []
    for order in itertools.permutations(range(L)):
        z, nats = [MASK] * L, 0.0
        for place in order:
            nats -= model.table[tuple(z)][place, x[place]].item()
            z[place] = x[place]
        values.append(nats)
    return values


def all_branches(states, choices):
    """{text: probability} after a step: `choices(z)` lists (token, probability) for each place."""
    new = {}
    for z, weight in states.items():
        for combination in itertools.product(*choices(z)):
            text = tuple(v for v, _ in combination)
            new[text] = new.get(text, 0.0) + weight * math.prod(q for _, q in combination)
    return {z: weight for z, weight in new.items() if weight > 0}


def exact_sampler(model, steps, eta=0.0, start=(MASK,) * L):
    """{text: probability} of ancestral sampling in that many steps (of remasking, if eta > 0).

    start: what is given, and masks.
    """
    states = {start: 1.0}
    for alpha_t, alpha_s in itertools.pairwise(i / steps for i in range(steps + 1)):
        sigma = min(eta, (1 - alpha_s) / alpha_t) if alpha_t else 0.0
        chance = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)

        def choices(z, sigma=sigma, chance=chance):
            p = model.table[z].exp().tolist()
            return [
                [(MASK, 1 - chance), *((v, chance * p[place][v]) for v in range(3))]
                if z[place] == MASK
                else [(z[place], 1 - sigma), (MASK, sigma)]
                if start[place] == MASK
                else [(z[place], 1.0)]
                for place in range(L)
            ]

        states = all_branches(states, choices)
    return states


def exact_groups(model, sizes, start=(MASK,) * L):
    """{text: probability} if the masks of `start` are filled in random order, so many at a time."""
    total = dict.fromkeys(TEXTS, 0.0)
    every = list(itertools.permutations(place for place in range(L) if start[place] == MASK))
    for order in every:
        states, rest = {start: 1.0}, list(order)
        for size in sizes:
            now, rest = rest[:size], rest[size:]

            def choices(z, now=now):
                p = model.table[z].exp().tolist()
                return [
                    [(v, p[place][v]) for v in range(3)] if place in now else [(z[place], 1.0)]
                    for place in range(L)
                ]

            states = all_branches(states, choices)
        for text, weight in states.items():
            total[text] += weight / len(every)
    return total


def total_variation(one, other):
    """Half the sum of the absolute differences of two {text: probability}: 0 (same) to 1."""
    return sum(abs(one.get(x, 0.0) - other.get(x, 0.0)) for x in TEXTS) / 2


# Blocks: the same tables, asked for one block at a time, with masks behind it.


class BlockTable(TableDenoiser):
    """A table as a denoiser of blocks, with the interface of `BlockDenoiser`: it reads by heart."""

    def __init__(self, table, block):
        super().__init__(table)
        self.config = Config(context=6, block=block)  # all of a text's 3 tokens may be remembered

    def read(self, x, past=None, start=0):
        return x if past is None else torch.cat([past, x], dim=1)

    def write(self, z, past=None, start=0):
        text = F.pad(self.read(z, past), (0, L - start - z.shape[1]), value=MASK)  # (B, 3)
        return super().features(text)[:, start : start + z.shape[1]]

    def features(self, z, t=None, x=None):
        starts = range(0, L, self.config.block)
        parts = [self.write(z[:, a : a + self.config.block], x[:, :a], a) for a in starts]
        return torch.cat(parts, dim=1)  # (B, 3, 3)


def places_of_blocks(block):
    """The places of each block of a text of 3 tokens, a list of ranges."""
    return [range(start, min(L, start + block)) for start in range(0, L, block)]


def exact_block_nelbo(model, x, block):
    """The NELBO of the text x, in nats, if it is written in blocks of so many tokens."""
    total = 0.0
    for places in places_of_blocks(block):
        for k in range(1, len(places) + 1):
            ways = list(itertools.combinations(places, k))
            for masked in ways:
                hidden = {*masked, *range(places.stop, L)}
                z = tuple(MASK if place in hidden else v for place, v in enumerate(x))
                nats = -sum(model.table[z][place, x[place]].item() for place in masked)
                total += nats / k / len(ways)
    return total


def exact_block_sampler(model, block):
    """{text: probability} if blocks are written from left to right, each in random order."""
    states = {(MASK,) * L: 1.0}
    for places in places_of_blocks(block):
        every, mixed = list(itertools.permutations(places)), {}
        for order in every:
            branch = states
            for now in order:

                def choices(z, now=now):
                    p = model.table[z].exp().tolist()
                    drawn = [(v, p[now][v]) for v in range(3)]
                    return [drawn if place == now else [(z[place], 1.0)] for place in range(L)]

                branch = all_branches(branch, choices)
            for text, weight in branch.items():
                mixed[text] = mixed.get(text, 0.0) + weight / len(every)
        states = mixed
    return states
