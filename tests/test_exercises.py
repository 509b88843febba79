"""The exercises' own tests: solutions pass, likely mistakes do not, unwritten ones are skipped."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from exercises import exercises, solutions, test_answers
from exercises.test_answers import *  # noqa: F403
from mdlm.sampling import fill, sample


@pytest.fixture
def answers():
    return solutions


def same_places(model, z, n, generator):
    """A corrector that redraws the same place in every text."""
    for _ in range(n):
        where = torch.zeros_like(z, dtype=torch.bool)
        where[:, 0] = True
        z = torch.where(where, model.mask_id, z)
        fill(model, z, where, 0.5, torch.rand(z.shape, generator=generator).double())
    return z


def later_blocks_at_once(model, z, block, steps, generator):
    """Takes several steps in the first block only."""
    z, u = z.clone(), torch.rand(z.shape, generator=generator).double()
    for start in range(0, z.shape[1], block):
        n = steps if start == 0 else 1
        for i in range(n):
            coin = torch.rand(z.shape, generator=generator) < 1 / (n - i)
            where = (z == model.mask_id) & coin
            where[:, :start], where[:, start + block :] = False, False
            if where.any():
                fill(model, z, where, 0.5, u)
    return z


def given_tokens_last(model, z, generator):
    """Fills a page of masks, and writes each given token in when its turn has come."""
    u, text = torch.rand(z.shape, generator=generator).double(), torch.full_like(z, model.mask_id)
    for place in range(z.shape[1]):
        where = torch.zeros_like(z, dtype=torch.bool)
        where[:, place] = True
        fill(model, text, where, 0.5, u)
        text[:, place] = torch.where(z[:, place] == model.mask_id, text[:, place], z[:, place])
    return text


def unwritten(*_):
    raise NotImplementedError


NAMES = [name for name, f in vars(solutions).items() if callable(f) and name != "fill"]
MISTAKES = {
    "test_1_cubic_schedule": dict(weight_cubic=lambda t: 3 * (1 - t) ** 2),
    "test_2_expected_calls": dict(
        expected_calls=lambda n, alpha: (len(alpha) - 1) * (1 - (1 - 1 / (len(alpha) - 1)) ** n)
    ),
    "test_3_drop_improbable": dict(drop_improbable=lambda p, e: torch.where(p < e, 0.0, p)),
    "test_4_bound_from_counts": dict(bound_from_counts=lambda m: m.mean() * len(m) / 2),
    "test_5_mixture_nats": dict(mixture_nats=lambda nats: -(-nats).exp().mean().log()),
    "test_6_left_to_right": dict(left_to_right=lambda m, z, g: sample(m, z, 3, g).tokens),
    "test_7_in_blocks": dict(in_blocks=lambda m, z, b, s, g: sample(m, z, s, g).tokens),
    "test_7_steps_count_in_every_block_and_given_tokens_stay": dict(in_blocks=later_blocks_at_once),
    "test_8_correct": dict(correct=same_places),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found(name):
    wrong = SimpleNamespace(**{**vars(solutions), **MISTAKES[name]})
    test = getattr(test_answers, name)
    arguments = (2, 4) if "blocks" in name else ()
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        test(wrong, *arguments)


def test_given_tokens_must_be_seen_from_the_first_call_on():
    with pytest.raises(AssertionError):
        test_answers.test_6_left_to_right(SimpleNamespace(left_to_right=given_tokens_last))


@pytest.mark.parametrize("name", MISTAKES)
def test_the_unwritten_is_skipped(name):
    test, arguments = getattr(test_answers, name), (2, 4) if "blocks" in name else ()
    with pytest.raises(pytest.skip.Exception):
        test(test_answers.Answers(SimpleNamespace(**dict.fromkeys(NAMES, unwritten))), *arguments)


def test_every_exercise_is_in_the_list():
    listed = Path(exercises.__file__).with_name("README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in listed and hasattr(exercises, name) for name in NAMES)


def test_the_command_that_learners_give_finds_the_tests():
    command = [sys.executable, "-m", "pytest", "exercises", "--collect-only", "-q"]
    root = Path(exercises.__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and "tests collected" in done.stdout, done.stdout
