"""The exercises' own tests: solutions pass, likely mistakes do not, unwritten ones are skipped."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from exercises import exercises, solutions, test_answers
from exercises.test_answers import *  # noqa: F403

SOURCE = Path(solutions.__file__).read_text(encoding="utf-8")
NAMES = [name for name, f in vars(solutions).items() if callable(f) and name != "fill"]
MISTAKES = [  # which test finds it, what stands in solutions.py, and what is wrong instead
    ("test_1_cubic_schedule", " / (1 - (1 - t) ** 3)", ""),
    ("test_2_expected_calls", "alpha.diff()", "alpha.diff().mean().expand(len(alpha) - 1)"),
    ("test_3_drop_improbable", "    keep.scatter_(-1, p.argmax(dim=-1, keepdim=True), True)\n", ""),
    ("test_3_drop_improbable", "    return p / p.sum(dim=-1, keepdim=True)", "    return p"),
    ("test_4_bound_from_counts", "mean_nats.sum()", "mean_nats.mean() * len(mean_nats) / 2"),
    ("test_5_mixture_nats", "-(torch.logsumexp(-nats, dim=0)", "-((-nats).exp().sum().log()"),
    ("test_6_left_to_right", "where[:, place] = z[:, place] ==", "where[:] = z =="),
    ("test_7_in_blocks", "in_block[:, start : start + block]", "in_block[:]"),
    ("test_7_steps_count_in_every_block_and_given_tokens_stay", "range(steps)",
     "range(1 if start else steps)"),
    ("test_8_correct", "place = torch.randint(z.shape[1], (len(z),), generator=generator)",
     "place = 0"),
    ("test_9_shuffled", "grid[rows.flatten()].T", "grid[rows.flatten()]"),
    ("test_9_shuffled", "3 * bands[:, None] +", "3 * bands +"),
]  # fmt: skip


def unwritten(*_):
    raise NotImplementedError


@pytest.fixture
def answers():
    return solutions


@pytest.mark.parametrize(("name", "right", "wrong"), MISTAKES)
def test_a_mistake_is_found_and_what_is_unwritten_is_skipped(name, right, wrong):
    assert SOURCE.count(right) == 1
    test, arguments, mistaken = getattr(test_answers, name), (2, 4) * ("in_blocks" in name), {}
    exec(SOURCE.replace(right, wrong), mistaken)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        test(SimpleNamespace(**mistaken), *arguments)
    with pytest.raises(pytest.skip.Exception):
        empty = SimpleNamespace(**dict.fromkeys(NAMES, unwritten))
        test(test_answers.Answers(empty), *arguments)


def test_every_exercise_is_in_the_list():
    listed = Path(exercises.__file__).with_name("README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in listed and hasattr(exercises, name) for name in NAMES)
