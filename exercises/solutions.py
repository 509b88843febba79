"""One solution to each exercise."""

import torch

from mdlm.sampling import fill


def alpha_cubic(t):
    return (1 - t) ** 3


def weight_cubic(t):
    return 3 * (1 - t) ** 2 / (1 - (1 - t) ** 3)


def expected_calls(n_masks, alpha):
    # a token is unmasked in a step with the probability by which alpha grows there
    return (1 - (1 - alpha.diff()) ** n_masks).sum().item()


def drop_improbable(p, epsilon):
    keep = p >= epsilon
    keep.scatter_(-1, p.argmax(dim=-1, keepdim=True), True)
    p = torch.where(keep, p, 0.0)
    return p / p.sum(dim=-1, keepdim=True)


def bound_from_counts(mean_nats):
    # S_k / k is the mean over the k tokens, and every k counts once
    return mean_nats.sum()


def mixture_nats(nats):
    return -(torch.logsumexp(-nats, dim=0) - torch.tensor(len(nats)).log())


def left_to_right(model, z, generator):
    z = z.clone()
    u = torch.rand(z.shape, generator=generator, dtype=torch.float64)
    for place in range(z.shape[1]):
        where = torch.zeros_like(z, dtype=torch.bool)
        where[:, place] = z[:, place] == model.mask_id
        if where.any():
            fill(model, z, where, place / z.shape[1], u)
    return z


def in_blocks(model, z, block, steps, generator):
    z = z.clone()
    u = torch.rand(z.shape, generator=generator, dtype=torch.float64)
    for start in range(0, z.shape[1], block):
        in_block = torch.zeros_like(z, dtype=torch.bool)
        in_block[:, start : start + block] = True
        for i in range(steps):  # alpha goes from i / steps to (i + 1) / steps
            chance = 1 / (steps - i)
            coin = torch.rand(z.shape, generator=generator, dtype=torch.float64)
            where = (z == model.mask_id) & in_block & (coin < chance)
            if where.any():
                fill(model, z, where, i / steps, u)
    return z


def correct(model, z, n, generator):
    z, rows = z.clone(), torch.arange(len(z))
    for _ in range(n):
        place = torch.randint(z.shape[1], (len(z),), generator=generator)
        where = torch.zeros_like(z, dtype=torch.bool)
        where[rows, place] = True
        z[where] = model.mask_id
        u = torch.rand(z.shape, generator=generator, dtype=torch.float64)
        fill(model, z, where, 1 - 1 / z.shape[1], u)
    return z


def shuffled(x, generator):
    grid = x.view(9, 9)
    for _ in range(2):  # rows, then columns
        bands = torch.rand(3, generator=generator).argsort()
        rows = 3 * bands[:, None] + torch.rand(3, 3, generator=generator).argsort(dim=1)
        grid = grid[rows.flatten()].T
    name = torch.randperm(9, generator=generator)
    return ord("1") + name[grid.flatten() - ord("1")]
