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
    z = z.clone()
    for start in range(0, z.shape[1], block):
        part, n = z[:, : start + block], steps if start == 0 else 1
        z[:, : start + block] = solutions.in_blocks(model, part, block, n, generator)
    return z


MISTAKES = {
    "test_1_cubic_schedule": dict(weight_cubic=lambda t: 3 * (1 - t) ** 2),
    "test_2_expected_calls": dict(expected_calls=lambda n, steps: min(n, steps)),
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


@pytest.mark.parametrize("name", MISTAKES)
def test_the_unwritten_is_skipped(name):
    test, arguments = getattr(test_answers, name), (2, 4) if "blocks" in name else ()
    with pytest.raises(pytest.skip.Exception):
        test(test_answers.Answers(exercises), *arguments)


def test_every_exercise_is_in_the_list():
    listed = Path(exercises.__file__).with_name("README.md").read_text(encoding="utf-8")
    names = [n for n, f in vars(exercises).items() if callable(f)]
    assert names and all(f"`{name}`" in listed and hasattr(solutions, name) for name in names)


def test_the_command_that_learners_give_finds_the_tests():
    command = [sys.executable, "-m", "pytest", "exercises", "--collect-only", "-q"]
    root = Path(exercises.__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and "tests collected" in done.stdout, done.stdout
