"""Sudoku: counts and posteriors are exact, and a tiny network comes close to the truth."""

import itertools
import math

import numpy as np
import pytest
import torch

from conftest import ROOT, noise
from mdlm.diffusion import spread_mask_counts
from mdlm.model import DiffusionTransformer
from mdlm.sampling import sample, sample_confident, sample_first_hitting
from mdlm.sudoku import (
    BOXES,
    ONE,
    TOKENIZER,
    PerfectNetwork,
    draw_grids,
    draw_with_puzzles,
    first_row_grids,
    is_valid,
    learn,
    make_puzzle,
    nats_at,
    solution_nats,
    split_classes,
    units,
)
from saving import load_checkpoint
from settings import settings

MASK = TOKENIZER.mask_id


@pytest.fixture(scope="module")
def small():
    return first_row_grids(4)


@pytest.fixture(scope="module")
def classes():
    return first_row_grids(6)


def chi_square(x, n_kinds):
    """(chi-square of the rows of x (N, L) against uniform, how many standard deviations that is)"""
    counts = x.unique(dim=0, return_counts=True)[1].double()
    expected = len(x) / n_kinds
    value = (counts**2).sum().item() / expected - len(x)
    return (value - (n_kinds - 1)) / math.sqrt(2 * (n_kinds - 1))


def by_search(size):
    """The grids as a program without ideas finds them: cell by cell, all digits tried."""
    height, width = BOXES[size]

    def box(row, column):
        return row // height, column // width

    def fill(grid):
        if len(grid) == size * size:
            yield grid
            return
        row, column = divmod(len(grid), size)
        for digit in range(1, size + 1):
            taken = {
                other
                for i, other in enumerate(grid)
                if row == i // size
                or column == i % size
                or box(row, column) == box(i // size, i % size)
            }
            if digit not in taken:
                yield from fill((*grid, digit))

    return list(fill(()))


def test_there_are_as_many_grids_as_others_have_counted(small, classes):
    assert len(classes) == 39_168 and len(classes) * math.factorial(6) == 28_200_960
    assert len(np.unique(classes, axis=0)) == len(classes)
    assert is_valid(torch.from_numpy(classes).long() + ONE - 1).all()
    found = by_search(4)
    assert len(found) == 288
    assert {tuple(g) for g in small.tolist()} == {g for g in found if g[:4] == (1, 2, 3, 4)}


def test_the_rules_are_those_of_sudoku(classes):
    assert units(9).shape == (27, 9) and units(6)[12].tolist() == [0, 1, 2, 6, 7, 8]
    assert (units(9).flatten().bincount() == 3).all()  # each cell is in a row, a column and a box
    x = draw_grids(classes, 50, noise())
    for i, j in itertools.combinations(range(0, 36, 7), 2):
        y = x.clone()
        y[:, [i, j]] = x[:, [j, i]]
        assert (is_valid(y) == (x[:, i] == x[:, j])).all()
    x[:, 5] = MASK
    assert not is_valid(x).any()


def test_all_grids_are_drawn_equally_often(small, classes):
    x = draw_grids(small, 28_800, noise())
    assert len(x.unique(dim=0)) == 288 and abs(chi_square(x, 288)) < 4
    x = draw_grids(classes, 60_000, noise(1))
    assert is_valid(x).all()
    for cells in ([0, 7], [14, 35], [0, 1]):  # no unit or one: 36 or 30 kinds of pairs
        same = any({*cells} <= {*unit} for unit in units(6).tolist())
        assert abs(chi_square(x[:, cells], 30 if same else 36)) < 4 or not same
    names = x[:, :6]  # the first row: all 720 orders
    assert abs(chi_square(names, 720)) < 4


def test_a_tenth_of_the_classes_is_held_out_under_any_name(classes):
    train, held_out = split_classes(classes)
    assert len(held_out) == 3_916 and len(train) + len(held_out) == len(classes)
    first = (held_out[:, :6] == np.arange(1, 7)).all() and (train[:, :6] == np.arange(1, 7)).all()
    assert first and not {*map(bytes, held_out)} & {*map(bytes, train)}
    assert (split_classes(classes)[1] == held_out).all()


def test_posteriors_are_those_of_brute_force(small):
    everything = torch.tensor(by_search(4)) + ONE - 1  # (288, 16)
    exact, generator = PerfectNetwork(small), noise()
    for grid in everything[::4]:
        z = grid.clone()
        n_masks = torch.randint(17, (1,), generator=generator)
        z[torch.randperm(16, generator=generator)[:n_masks]] = MASK
        fits = everything[((z == MASK) | (everything == z)).all(dim=1)]
        assert exact.count(z) == len(fits)
        shares = torch.nn.functional.one_hot(fits - ONE, 4).double().mean(dim=0)
        assert torch.allclose(exact.features(z[None])[0].softmax(-1).double(), shares, atol=1e-6)


def test_counts_of_6_x_6_are_those_of_all_drawn_grids(classes):
    """A solution more or less would show in how often a puzzle's cells come with its digits."""
    exact, x = PerfectNetwork(classes), draw_grids(classes, 200_000, noise())
    assert exact.count(torch.full((36,), MASK)) == 28_200_960
    for cells in ([0, 1, 2], [0, 13, 35], [0, 7, 14, 21]):
        z = torch.full((36,), MASK)
        z[cells] = x[0, cells]
        expected = exact.count(z) / 28_200_960
        found = (x[:, cells] == x[0, cells]).all(dim=1).double().mean().item()
        assert abs(found - expected) < 5 * math.sqrt(expected / len(x))


def test_a_contradiction_has_no_solution_and_every_digit_is_as_good(classes):
    exact, z = PerfectNetwork(classes), torch.full((36,), MASK)
    z[0] = z[5] = ONE  # twice in a row
    assert exact.count(z) == 0
    assert torch.allclose(exact.features(z[None])[0].softmax(-1), torch.full((36, 6), 1 / 6))


def test_the_perfect_networks_bound_is_the_entropy_and_its_grids_are_valid(small, classes):
    exact, n = PerfectNetwork(small), 2000
    x, k = draw_grids(small, n, noise()), spread_mask_counts(n, 16, noise(1))
    nats = nats_at(exact, x, k)[k.argsort()].double()  # neighbours have the same number of masks
    error = nats.diff().std().item() / math.sqrt(2 * n)
    assert abs(nats.mean() - math.log(288)) < 4 * error < 0.25
    masks = torch.full((1152, 16), MASK)
    for written in (sample_first_hitting(exact, masks, generator=noise()),
                    sample_confident(exact, masks, 16, noise(), "margin")):  # fmt: skip
        assert is_valid(written.tokens).all() and abs(chi_square(written.tokens, 288)) < 4
    at_once = is_valid(sample(exact, masks, 1, noise()).tokens).double().mean().item()
    assert at_once < 0.01
    assert is_valid(
        sample_first_hitting(PerfectNetwork(classes), torch.full((5, 36), MASK)).tokens
    ).all()


def test_puzzles_have_one_solution_and_any_further_digit_taken_gives_more(classes):
    exact, generator = PerfectNetwork(classes), noise()
    for x in draw_grids(classes, 5, generator):
        z = make_puzzle(exact, x, 8, generator)  # as few as can be
        assert exact.count(z) == 1 and ((z == x) | (z == MASK)).all()
        for cell in (z != MASK).nonzero()[:, 0]:
            fewer = z.clone()
            fewer[cell] = MASK
            assert exact.count(fewer) > 1
        assert (make_puzzle(exact, x, 20, generator) != MASK).sum() == 20


def test_a_gpt_reads_the_puzzle_before_its_solution(small):
    texts = draw_with_puzzles(small, 500, noise())
    puzzle, equals, x = texts.split([16, 1, 16], dim=1)
    assert (equals == ord("=")).all() and is_valid(x).all()
    blank = puzzle == ord(".")
    assert (blank | (puzzle == x)).all() and {*blank.sum(dim=1).tolist()} == {*range(1, 17)}
    config = settings("small", vocab_size=257, context=33, n_layers=1, d_model=32, causal=True)
    model = DiffusionTransformer(config)
    nats = solution_nats(model, texts, None)
    with torch.no_grad():
        p = model.head(model.features(torch.cat([torch.full((500, 1), MASK), texts], 1)[:, :-1]))
        whole = torch.nn.functional.cross_entropy(p.mT, texts, reduction="none")
    assert torch.allclose(nats, whole[:, 17:].sum(dim=1), rtol=1e-4)


@pytest.mark.slow
def test_a_tiny_network_learns_the_288_grids(small):
    """As in the notebook: the bound comes within 5 % of the entropy, and all grids are alike."""
    config = settings(
        "small", vocab_size=257, context=16, n_layers=6, d_model=64, n_heads=4, batch_size=256,
        muon_lr=0.02, steps=600, warmup=20, ema=0.98, compile=False,
    )  # fmt: skip
    model = learn(config, lambda n, generator: draw_grids(small, n, generator))
    x, k = draw_grids(small, 1152, noise()), spread_mask_counts(1152, 16, noise(1))
    excess = (nats_at(model, x, k) - nats_at(PerfectNetwork(small), x, k)).mean().item()
    assert excess < 0.05 * math.log(288)
    written = sample_first_hitting(model, torch.full((2000, 16), MASK), generator=noise()).tokens
    valid = is_valid(written)
    assert valid.double().mean() > 0.8 and abs(chi_square(written[valid], 288)) < 5


def test_the_included_model_is_as_good_as_its_card_says(classes):
    path = ROOT / "checkpoints" / "sudoku.safetensors"
    model, tokenizer, metadata = load_checkpoint(path, DiffusionTransformer)
    assert path.stat().st_size < 3_000_000 and tokenizer == TOKENIZER
    _, held_out = split_classes(classes)
    exact, generator, n = PerfectNetwork(classes), noise(3), 288
    x, k = draw_grids(held_out, n, generator), spread_mask_counts(n, 36, generator)
    excess = nats_at(model, x, k) - nats_at(exact, x, k)
    last = metadata["history"][-1]
    error = math.hypot(excess.std().item() / math.sqrt(n), last["nats_error"])
    assert abs(math.log(28_200_960) + excess.mean().item() - last["nats"]) < 4 * error < 1
    puzzles = torch.stack([make_puzzle(exact, grid, 14, generator) for grid in x[:20]])
    solved = sample_confident(model, puzzles, 36, generator, "margin").tokens == x[:20]
    assert solved.all(dim=1).sum() >= 18
