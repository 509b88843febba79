"""Forward process and losses, against exact enumeration on the language of toy.py."""

import math
from dataclasses import replace

import pytest
import torch

from conftest import make_model
from mdlm import diffusion
from mdlm.diffusion import SCHEDULES, diffusion_loss, nelbo, training_loss
from toy import MASK, cross_entropy_at, exact_nelbo, inconsistent_denoiser

X = (0, 2, 1)  # a text
MODEL = inconsistent_denoiser()


def noise(seed=0):
    return torch.Generator().manual_seed(seed)


def chi_square(counts):
    """How far counts are from being equal, in standard deviations of chi-square."""
    counts = torch.as_tensor(counts).double()
    chi = ((counts - counts.mean()) ** 2 / counts.mean()).sum().item()
    return (chi - (len(counts) - 1)) / math.sqrt(2 * (len(counts) - 1))


def test_a_token_stays_with_probability_alpha():
    x, alpha_t = torch.arange(100_000).expand(4, -1), torch.tensor([0.0, 0.3, 0.8, 1.0])
    z_t = diffusion.forward_process(x, alpha_t, 100_000, noise())
    assert ((z_t == x) | (z_t == 100_000)).all()
    kept = (z_t == x).double().mean(dim=1)
    assert (kept - alpha_t).abs().max() < 4 * 0.5 / math.sqrt(100_000)
    assert kept[0] == 0 and kept[3] == 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_falls_from_one_to_zero_and_its_weight_is_its_own(schedule):
    t = torch.tensor([0.01, 0.3, 0.7, 0.99], dtype=torch.float64, requires_grad=True)
    alpha_t, weight = SCHEDULES[schedule](t)
    (slope,) = torch.autograd.grad(alpha_t.sum(), t)
    torch.testing.assert_close(weight, -slope / (1 - alpha_t))
    ends = SCHEDULES[schedule](torch.tensor([1e-9, 1.0]))[0]
    torch.testing.assert_close(ends, torch.tensor([1.0, 0.0]))


def with_settings(**changes):
    """A toy model whose training minimises another loss."""
    model = inconsistent_denoiser()
    model.config = replace(model.config, **changes)
    return model


ESTIMATES = {  # each: (x, t, generator) -> nats of each text
    "plain": lambda *given: diffusion.plain_nelbo(MODEL, *given),
    "linear": lambda x, t, g: diffusion_loss(MODEL, x, t, "linear", g),
    "cosine": lambda x, t, g: diffusion_loss(MODEL, x, t, "cosine", g),
    "polynomial": lambda x, t, g: diffusion_loss(MODEL, x, t, "polynomial", g),
    "counts": lambda x, t, g: nelbo(MODEL, x, diffusion.mask_counts(t, 3), g),
    "training, counts": lambda *given: training_loss(MODEL, *given),
    "training, time": lambda *given: training_loss(with_settings(loss="time"), *given),
    "training, cosine": lambda *given: training_loss(
        with_settings(loss="time", schedule="cosine"), *given
    ),
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_every_loss_has_the_exact_bound_as_its_mean(name):
    n, g = 200_000, noise(1)
    t = torch.rand(n, generator=g).clamp_min(1e-9)
    estimates = ESTIMATES[name](torch.tensor([X]).expand(n, -1), t, g).double()
    error = estimates.std().item() / math.sqrt(n)
    assert abs(estimates.mean().item() - exact_nelbo(MODEL, X)) < 4 * error < 0.1


def test_the_settings_choose_the_loss_that_is_trained():
    x, t = torch.tensor([X]).expand(50, -1), torch.rand(50, generator=noise())
    timed = with_settings(loss="time", schedule="polynomial")
    assert torch.equal(
        training_loss(timed, x, t, noise()), diffusion_loss(MODEL, x, t, "polynomial", noise())
    )
    by_counts = nelbo(MODEL, x, diffusion.mask_counts(t, 3), noise())
    assert torch.equal(training_loss(MODEL, x, t, noise()), by_counts)
    twin = make_model(causal=True, loss="time")
    x = torch.arange(32).view(2, 16)
    assert torch.equal(training_loss(twin, x, torch.rand(2)), diffusion.next_token_nats(twin, x))


def test_only_at_masks_is_the_same_number_as_everywhere():
    model, x, t = make_model(), torch.randint(299, (40, 16)), torch.rand(40, generator=noise())
    plain = diffusion.plain_nelbo(model, x, t, noise(2))
    fast = diffusion_loss(model, x, t, generator=noise(2))
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_number_of_masks_is_that_number_and_every_set_is_as_likely(k):
    x, seen = torch.tensor([X]).expand(20_000, -1), []
    model = inconsistent_denoiser()
    usual, model.features = model.features, lambda z, t: (seen.append(z), usual(z))[1]
    nats = nelbo(model, x, torch.full((20_000,), k), noise())
    masked = seen[0] == MASK
    assert (masked.sum(dim=1) == k).all() and chi_square(masked.sum(dim=0)) < 4
    expected = cross_entropy_at(model, X, k) * 3 / k
    assert abs(nats.mean().item() - expected) < 4 * nats.std().item() / math.sqrt(20_000) + 1e-6


def test_each_loss_tells_the_network_its_noise_level():
    model, times = make_model(time_conditioning=True), []
    usual, x = model.features, torch.zeros(3, 16, dtype=torch.long)
    model.features = lambda z, t: (times.append((z, t)), usual(z, t))[1]
    t = torch.tensor([0.2, 0.5, 0.9])
    diffusion_loss(model, x, t, "polynomial", noise())
    torch.testing.assert_close(times[0][1], t**2)  # the share of masks, 1 - alpha
    nelbo(model, x.repeat(1000, 1), torch.full((3000,), 4), noise())
    assert times[1][1].mean().item() == pytest.approx(4 / 17, abs=0.01)  # of the fourth of 16
    assert ((times[1][0] == model.mask_id).sum(dim=1) == 4).all()


def test_a_twin_pays_for_each_token_given_those_before():
    twin, x = make_model(causal=True), torch.randint(0, 50, (4, 16), generator=noise())
    by_hand = torch.zeros(4)
    for i in range(16):
        start = torch.cat([torch.full((4, 1), twin.mask_id), x[:, :i]], dim=1)
        log_p = twin.head(twin.features(start)[:, -1]).log_softmax(dim=-1)
        by_hand -= log_p.gather(1, x[:, i : i + 1])[:, 0]
    torch.testing.assert_close(diffusion.next_token_nats(twin, x), by_hand, rtol=1e-4, atol=1e-4)


def test_spread_times_leave_no_gap_and_come_in_any_order():
    times = torch.stack([diffusion.low_discrepancy_t(5, noise(seed)) for seed in range(3000)])
    assert ((times * 5).long().sort(dim=1).values == torch.arange(5)).all()  # one in each fifth
    for place in times.T:  # each uniform by itself
        assert chi_square((place * 20).long().bincount(minlength=20)) < 4
    assert abs((times[:, 0] < times[:, 1]).sum().item() - 1500) < 4 * math.sqrt(750)


def test_numbers_of_masks_are_uniform_from_one_to_all():
    counts = torch.stack([diffusion.spread_mask_counts(3, 5, noise(seed)) for seed in range(3000)])
    for place in counts.T:
        assert chi_square(place.bincount(minlength=6)[1:]) < 4
    assert diffusion.mask_counts(torch.tensor([0.0, 0.19, 0.21, 1.0]), 5).tolist() == [1, 1, 2, 5]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_losses_and_gradients_are_finite_at_both_ends(schedule):
    model, x = make_model(), torch.zeros(4, 16, dtype=torch.long)
    for t in (1e-30, 1e-7, 1 - 6e-8, 1.0):
        loss = diffusion_loss(model, x, torch.full((4,), t), schedule, noise())
        loss.sum().backward()
        assert loss.isfinite().all() and (t < 0.5) == (not loss.any())
        assert all(p.grad.isfinite().all() for p in model.parameters())
