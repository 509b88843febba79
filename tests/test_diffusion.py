"""Forward process and losses, against exact enumeration on the language of toy.py."""

import math
from dataclasses import replace

import pytest
import torch

from conftest import make_model, noise
from mdlm import diffusion
from mdlm.diffusion import SCHEDULES, diffusion_loss, nelbo, next_token_nats, training_loss
from toy import MASK, cross_entropy_at, exact_nelbo, inconsistent_denoiser

X = (0, 2, 1)  # a text
MODEL = inconsistent_denoiser()


def assert_uniform(values, n):
    """Chi-square of numbers from 0 to n - 1, within four standard deviations."""
    counts = values.long().bincount(minlength=n).double()
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert len(counts) == n and chi_square < n - 1 + 4 * math.sqrt(2 * (n - 1))


def test_a_token_stays_with_probability_alpha():
    x, alpha_t = torch.arange(100_000).expand(4, -1), torch.tensor([0.0, 0.3, 0.8, 1.0])
    kept = diffusion.forward_process(x, alpha_t, 100_000, noise()) == x
    assert (kept.double().mean(dim=1) - alpha_t).abs().max() < 4 * 0.5 / math.sqrt(100_000)
    assert not kept[0].any() and kept[3].all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_falls_from_one_to_zero_with_the_weight_of_its_slope(schedule):
    t = torch.tensor([0.01, 0.3, 0.7, 0.99], dtype=torch.float64, requires_grad=True)
    alpha_t, weight = SCHEDULES[schedule](t)
    (slope,) = torch.autograd.grad(alpha_t.sum(), t)
    torch.testing.assert_close(weight, -slope / (1 - alpha_t))
    ends = SCHEDULES[schedule](torch.tensor([1e-9, 1.0]))[0]
    torch.testing.assert_close(ends, torch.tensor([1.0, 0.0]))


def trained(**changes):
    """What training minimises with other settings, as a function (x, t, generator)."""
    model = inconsistent_denoiser()
    model.config = replace(model.config, **changes)
    return lambda *given: training_loss(model, *given)


ESTIMATES = {  # each: (x, t, generator) -> nats of each text
    "plain": lambda *given: diffusion.plain_nelbo(MODEL, *given),
    **{s: lambda x, t, g, s=s: diffusion_loss(MODEL, x, t, s, g) for s in SCHEDULES},
    "counts": lambda x, t, g: nelbo(MODEL, x, diffusion.mask_counts(t, 3), g),
    "trained by counts": trained(rate_power=0.0),
    "trained by time": trained(loss="time", schedule="cosine", rate_power=0.0),
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_every_loss_has_the_exact_bound_as_its_mean(name):
    n, g = 200_000, noise(1)
    t = torch.rand(n, generator=g).clamp_min(1e-9)
    estimates = ESTIMATES[name](torch.tensor([X]).expand(n, -1), t, g).double()
    error = estimates.std().item() / math.sqrt(n)
    assert abs(estimates.mean().item() - exact_nelbo(MODEL, X)) < 4 * error < 0.1


def test_the_settings_choose_the_loss_and_a_twin_has_its_own():
    x, t = torch.tensor([X]).expand(50, -1), torch.rand(50, generator=noise())
    by_counts, by_cosine = (ESTIMATES[name](x, t, noise()) for name in ("counts", "cosine"))
    time = dict(loss="time", schedule="cosine")
    assert torch.equal(trained(rate_power=0.0)(x, t, noise()), by_counts)
    assert torch.equal(trained(**time, rate_power=0.0)(x, t, noise()), by_cosine)
    for power in (0.5, 2.0):  # the weight's mean over t is 1
        weight = (1 + power) * t**power
        torch.testing.assert_close(trained(rate_power=power)(x, t, noise()), weight * by_counts)
    twin, x = make_model(causal=True, loss="time"), torch.randint(0, 50, (4, 16))
    nats = training_loss(twin, x, torch.rand(4))
    for i in range(16):  # the chain rule
        start = torch.cat([torch.full((4, 1), twin.mask_id), x[:, :i]], dim=1)
        log_p = twin.head(twin.features(start)[:, -1]).log_softmax(dim=-1)
        nats = nats + log_p.gather(1, x[:, i : i + 1])[:, 0]
    torch.testing.assert_close(nats, torch.zeros(4), rtol=0, atol=1e-3)


def test_only_at_masks_is_the_same_number_as_everywhere():
    model, x, t = make_model(), torch.randint(299, (40, 16)), torch.rand(40, generator=noise())
    plain = diffusion.plain_nelbo(model, x, t, noise(2))
    torch.testing.assert_close(diffusion_loss(model, x, t, generator=noise(2)), plain)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_number_of_masks_is_that_number_and_every_set_is_as_likely(k):
    x, seen, model = torch.tensor([X]).expand(20_000, -1), [], inconsistent_denoiser()
    usual, model.features = model.features, lambda *given: (seen.append(given), usual(*given))[1]
    nats = nelbo(model, x, torch.full((20_000,), k), noise())
    masked, t = seen[0][0] == MASK, seen[0][1]
    assert (masked.sum(dim=1) == k).all()
    assert_uniform(masked.nonzero()[:, 1], 3)
    assert t.mean().item() == pytest.approx(k / 4, abs=0.01)  # the moment of the k-th of three
    expected = cross_entropy_at(model, X, k) * 3 / k
    assert abs(nats.mean().item() - expected) < 4 * nats.std().item() / math.sqrt(20_000) + 1e-6
    diffusion_loss(model, x[:2], torch.tensor([0.2, 0.9]), "polynomial", noise())
    torch.testing.assert_close(seen[1][1], torch.tensor([0.04, 0.81]))  # told 1 - alpha


def test_spread_times_leave_no_gap_and_come_in_any_order():
    times = torch.stack([diffusion.low_discrepancy_t(5, noise(seed)) for seed in range(3000)])
    assert ((times * 5).long().sort(dim=1).values == torch.arange(5)).all()  # one in each fifth
    counts = torch.stack([diffusion.spread_mask_counts(3, 5, noise(s)) for s in range(3000)])
    for place in (*(20 * times).T, *4 * (counts - 1).T):  # each uniform by itself
        assert_uniform(place // 4, 5)
    assert abs((times[:, 0] < times[:, 1]).sum().item() - 1500) < 4 * math.sqrt(750)
    assert diffusion.mask_counts(torch.tensor([0.0, 0.19, 0.21, 1.0]), 5).tolist() == [1, 1, 2, 5]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_losses_and_gradients_are_finite_at_both_ends(schedule):
    model, x = make_model(), torch.zeros(4, 16, dtype=torch.long)
    for t in (1e-30, 1e-7, 1 - 6e-8, 1.0):
        loss = diffusion_loss(model, x, torch.full((4,), t), schedule, noise())
        loss.sum().backward()
        assert loss.isfinite().all() and (t < 0.5) == (not loss.any())
        assert all(p.grad.isfinite().all() for p in model.parameters())
    assert next_token_nats(make_model(causal=True), x).isfinite().all()
