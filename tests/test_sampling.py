"""Samplers, against the exact distribution of a tiny text: 3 places, 3 tokens, all enumerated."""

import math
from functools import partial
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mdlm.sampling
import mdlm.twin
from bpe_tokenizer import BPETokenizer, UserError
from mdlm.compressors import compressed_bpb
from mdlm.config import Config
from mdlm.diffusion import SCHEDULES, diffusion_loss, nelbo, next_token_nats
from mdlm.model import DiffusionTransformer
from mdlm.sampling import (
    adjust,
    call_numbers,
    distinct_pairs,
    draw,
    follow,
    longest_copies,
    noise_grid,
    remask_probabilities,
    sample,
    sample_confident,
    sample_first_hitting,
    sample_long,
    sample_plain,
    sample_remask,
    template,
)
from mdlm.twin import nats_along, sample_twin, step_with_cache
from toy import (
    MASK,
    TEXTS,
    ExactDenoiser,
    TableDenoiser,
    exact_groups,
    exact_nelbo,
    exact_sampler,
    inconsistent_denoiser,
    orders,
    some_language,
)

SAMPLERS = [sample_plain, sample, sample_first_hitting, sample_confident, sample_remask]
N = 20_000  # texts drawn for each test


LANGUAGE = some_language()
MODEL = ExactDenoiser(LANGUAGE)
JOINT = dict(zip(TEXTS, LANGUAGE.tolist(), strict=True))


def chi_square(sampler, expected):
    """Chi-square of N drawn texts against the expected probabilities; 26 degrees of freedom."""
    noise = torch.Generator().manual_seed(11)
    tokens = sampler(MODEL, torch.full((N, 3), MASK), generator=noise).tokens
    counts = (tokens * torch.tensor([9, 3, 1])).sum(1).bincount(minlength=27)
    expected = N * torch.tensor([expected[text] for text in TEXTS])
    return ((counts - expected) ** 2 / expected).sum().item()


FITS = 26 + 4 * math.sqrt(2 * 26)  # mean and four standard deviations of chi-square


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("sampler", [sample_plain, sample])
def test_ancestral_sampling_is_exact_for_its_grid(sampler, steps):
    assert chi_square(partial(sampler, steps=steps), exact_sampler(MODEL, steps)) < FITS


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_remasking_is_exact_for_its_grid(eta):
    assert chi_square(partial(sample_remask, steps=4, eta=eta), exact_sampler(MODEL, 4, eta)) < FITS


@pytest.mark.parametrize(("steps", "sizes"), [(1, [3]), (2, [2, 1]), (3, [1, 1, 1])])
def test_first_hitting_is_exact(steps, sizes):
    sampler = partial(sample_first_hitting, steps=steps)
    assert chi_square(sampler, exact_groups(MODEL, sizes)) < FITS


def test_only_one_token_at_a_time_gives_the_joint_distribution():
    assert chi_square(sample_first_hitting, JOINT) < FITS
    assert chi_square(partial(sample, steps=2), JOINT) > 10 * FITS  # tokens drawn independently
    assert chi_square(partial(sample, steps=4000), JOINT) < FITS


def test_confidence_is_biased_even_one_token_at_a_time():
    """It keeps a token because of what was drawn. The other rules choose the place before that."""
    assert chi_square(partial(sample_confident, steps=3, rule="confidence"), JOINT) > 10 * FITS
    assert chi_square(partial(sample_confident, steps=3, rule="margin"), JOINT) < FITS
    assert chi_square(partial(sample_confident, steps=3, rule="entropy"), JOINT) < FITS
    for rule in ("confidence", "margin", "entropy"):
        assert chi_square(partial(sample_confident, steps=2, rule=rule), JOINT) > 10 * FITS


@pytest.mark.parametrize("alpha_t,alpha_s", [(0.0, 0.1), (0.3, 0.4), (0.9, 1.0)])
@pytest.mark.parametrize("eta", [0.0, 0.2, 1.0])
def test_remasking_preserves_the_marginals(alpha_t, alpha_s, eta):
    sigma, chance = remask_probabilities(alpha_s, alpha_t, eta)
    assert 0 <= sigma <= 1 and 0 <= chance <= 1 + 1e-12
    assert math.isclose(alpha_t * (1 - sigma) + (1 - alpha_t) * chance, alpha_s)


@pytest.fixture
def model():
    torch.manual_seed(0)
    tiny = dict(n_layers=2, d_model=32, n_heads=2, context=16, vocab_size=300, compile=False)
    return DiffusionTransformer(Config(**tiny)).eval()


@pytest.mark.parametrize("steps", [3, 40])
def test_skipping_idle_steps_changes_no_token(model, steps):
    z = torch.full((20, 16), model.mask_id)
    z[:, 3:5] = 7
    plain = sample_plain(model, z, steps, torch.Generator().manual_seed(steps))
    u = torch.rand(
        z.shape, generator=torch.Generator().manual_seed(steps), dtype=torch.float64
    )  # what the plain sampler drew first
    alpha_t = noise_grid(steps)[(plain.step - 1).clamp(min=0)]
    with torch.no_grad():
        planned = follow(model, z, plain.step, alpha_t, u, steps)
    assert torch.equal(plain.tokens, planned.tokens)
    assert torch.equal(plain.step, planned.step)
    assert planned.network_calls < plain.network_calls or steps == 3


@pytest.mark.parametrize("steps", [4, 16, 100])
def test_number_of_network_calls(model, steps):
    z = torch.full((500, 16), model.mask_id)
    calls = sample(model, z, steps, torch.Generator().manual_seed(0)).network_calls
    expected = steps * (1 - (1 - 1 / steps) ** 16)
    assert abs(calls - expected) < 4 * 2 / math.sqrt(500)  # a text's calls vary by less than 2


def test_call_numbers():
    when = torch.tensor([[0, 9, 2, 9], [5, 5, 5, 5], [0, 0, 0, 0]])
    assert call_numbers(when).tolist() == [[0, 2, 1, 2], [1, 1, 1, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("n_masks", [0, 1, 9])
def test_samplers_keep_what_is_given_and_leave_no_mask(model, sampler, n_masks):
    z = torch.randint(299, (3, 16), generator=torch.Generator().manual_seed(0))
    z[:, 3 : 3 + n_masks] = model.mask_id
    result = sampler(model, z, 7, torch.Generator().manual_seed(0))
    assert (result.tokens != model.mask_id).all()
    given = z != model.mask_id
    assert torch.equal(result.tokens[given], z[given])
    assert torch.equal(result.state(0), z)
    assert torch.equal(result.state(7), result.tokens)
    assert (result.probability > 0).all() and (result.step[given] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_in_one_step_each_token_has_the_networks_probability(sampler, model, in_float32):
    for p in model.parameters():
        p.data *= 3  # far from uniform
    z = torch.full((4, 16), model.mask_id)
    z[:, 3], z[1:, 5] = 7, 9
    given = z != model.mask_id
    p = (model.head(model.features(z)).double() / 0.5).softmax(-1)
    result = sampler(model, z, 1, torch.Generator().manual_seed(0), temperature=0.5)
    expected = p.gather(-1, result.tokens[..., None])[..., 0].masked_fill(given, 1.0)
    torch.testing.assert_close(result.probability, expected, rtol=1e-4, atol=1e-7)
    greedy = sampler(model, z, 1, torch.Generator().manual_seed(1), top_k=1)
    assert torch.equal(greedy.tokens, torch.where(given, z, p.argmax(-1)))


class Watching:
    """A model that notes what it is asked, and at which time."""

    def __init__(self, model):
        self.model, self.asked = model, []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def features(self, z, t=None):
        self.asked.append((z.clone(), t.clone()))
        return self.model.features(z, t)


@torch.no_grad()
def test_the_network_is_told_the_right_time(model):
    def asked(function):
        watching = Watching(model)
        return function(watching), watching.asked

    def noise():
        return torch.Generator().manual_seed(0)

    masks = torch.full((6, 16), model.mask_id)
    for sampler in (sample_plain, sample_remask):
        _, calls = asked(lambda m, sampler=sampler: sampler(m, masks, 4, noise()))
        assert [t.unique().tolist() for _, t in calls] == [[1.0], [0.75], [0.5], [0.25]]
    for schedule in SCHEDULES:
        result, calls = asked(lambda m, s=schedule: sample(m, masks[:1], 8, noise(), s))
        before = [step - 1 for step in sorted(set(result.step[0].tolist()))]
        told = torch.cat([t for _, t in calls]).double()
        expected = 1 - noise_grid(8, schedule)[before]
        torch.testing.assert_close(told, expected, atol=1e-6, rtol=0)
    _, calls = asked(lambda m: sample_confident(m, masks, 4, noise()))
    assert [t.unique().tolist() for _, t in calls] == [[1.0], [0.75], [0.5], [0.25]]
    _, calls = asked(lambda m: nats_along(m, torch.arange(16), torch.arange(16)[None]))
    assert [t.tolist() for _, t in calls] == [[1 - i / 16] for i in range(16)]
    many = torch.full((500, 16), model.mask_id)
    _, calls = asked(lambda m: sample_first_hitting(m, many, generator=noise()))
    for n, (_, t) in enumerate(calls):  # 1 - t is the smallest but n of 16 uniform moments
        assert abs(t.mean() - (1 - (n + 1) / 17)) < 4 * 0.13 / 500**0.5
    _, calls = asked(lambda m: sample_first_hitting(m, many, 4, noise()))
    for n, (_, t) in enumerate(calls):  # of four moments, the smallest: when the call begins
        assert abs(t.mean() - (1 - (4 * n + 1) / 17)) < 4 * 0.13 / 500**0.5
    x, t = torch.randint(299, (4, 16)), torch.tensor([0.2, 0.5, 0.7, 0.9])
    alpha_t = SCHEDULES["cosine"][0](t)
    _, calls = asked(lambda m: diffusion_loss(m, x, t, "cosine"))
    torch.testing.assert_close(calls[0][1], 1 - alpha_t)
    k = torch.arange(1, 17).repeat(400)
    _, [(z, t)] = asked(lambda m: nelbo(m, x[:1].expand(len(k), -1), k, noise()))
    assert torch.equal((z == model.mask_id).sum(1), k)
    assert (t.view(400, 16).mean(0) - torch.arange(1, 17) / 17).abs().max() < 4 * 0.13 / 20


def test_long_texts_go_on_from_all_that_fits(monkeypatch):
    model, asked = SimpleNamespace(config=SimpleNamespace(context=16), mask_id=299), []

    def counting(_, z, steps, *__, **___):
        asked.append(z)
        assert steps == 7
        return SimpleNamespace(tokens=torch.where(z == 299, 100 + len(asked), z))

    monkeypatch.setattr(mdlm.sampling, "sample", counting)
    text = sample_long(model, torch.arange(5).expand(2, 5), 21, block=4, steps=7)
    assert text[0].tolist() == [*range(5), *np.repeat([101, 102, 103, 104], 4).tolist()]
    for n, z in enumerate(asked):
        there, length = 5 + 4 * n, min(16, 9 + 4 * n)
        assert z.shape == (2, length) and (z[:, -4:] == 299).all()
        assert torch.equal(z[:, :-4], text[:, :there][:, there - (length - 4) :])


@pytest.mark.parametrize("length", [9, 16, 50])
def test_long_texts_keep_their_beginning(model, length):
    z = torch.randint(299, (2, 5), generator=torch.Generator().manual_seed(0))
    result = sample_long(model, z, length, 4, 4, torch.Generator().manual_seed(0))
    assert result.shape == (2, length) and torch.equal(result[:, :5], z)
    assert (result != model.mask_id).all()


def test_given_text_comes_back_byte_for_byte(model):
    tokenizer = BPETokenizer.train("the lord spake unto moses and the people " * 50, 300)
    prompt = "the lord spake unto mos"  # ends inside a word
    z = template(tokenizer, [prompt], 16)
    assert tokenizer.vocab_size < 300
    model.mask_id = tokenizer.mask_id  # the untrained model draws smaller ids only
    ids = sample(model, z, 8, torch.Generator().manual_seed(0)).tokens[0].tolist()
    assert tokenizer.decode_bytes(ids).startswith(prompt.encode())


def test_knobs():
    logits = torch.tensor([[0.0, 2.0, -1.0, 1.0], [1.0, -1.0, 2.0, 0.0]])
    p = logits.double().softmax(-1)
    assert torch.equal(adjust(logits), p)
    torch.testing.assert_close(adjust(logits, temperature=0.5), (2 * logits.double()).softmax(-1))
    for knobs, kept in [
        ({"top_k": 2}, 2),
        ({"top_p": 0.7}, 2),
        ({"top_p": 0.6}, 1),
        ({"min_p": 0.3}, 2),
        ({"top_k": 3, "top_p": 0.6}, 1),
    ]:
        least = logits.sort(descending=True).values[:, kept - 1 : kept]
        expected = torch.where(logits >= least, p, 0.0)
        torch.testing.assert_close(
            adjust(logits, **knobs), expected / expected.sum(-1, keepdim=True)
        )
    # the temperature comes first, and may be as low as it likes
    assert (adjust(logits, temperature=0.5, top_p=0.7) > 0).sum(-1).tolist() == [1, 1]
    assert adjust(logits, temperature=1e-310).argmax(-1).tolist() == [1, 2]


def test_draw_at_the_ends():
    p = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]] * 4, dtype=torch.float64)
    u = torch.tensor([0.0, 0.2499, 0.25, 1 - 2**-53], dtype=torch.float64)
    assert draw(p, u).tolist() == [1, 1, 3, 3]


def test_coarse_gumbel_noise_lowers_the_temperature():
    """The formula of the guide, section 8, against a simulation with 12-bit random numbers."""
    bits, T, n = 12, 40, 2**20
    p = torch.tensor([0.9, 0.08, 0.015, 0.004, 0.001], dtype=torch.float64)
    noise = torch.Generator().manual_seed(0)
    u = torch.randint(1, 2**bits, (n, 5), generator=noise).double() / 2**bits  # for the tokens
    u_mask = torch.rand(n, 1, generator=noise, dtype=torch.float64)  # for "stay masked"
    score = torch.cat([p / T / -u.log(), (1 - 1 / T) / -u_mask.log()], dim=1)
    chance = score.argmax(dim=1).bincount(minlength=6)[:5] / n
    expected = 2.0**-bits / torch.expm1(2.0**-bits * T / p)
    assert (chance - expected).abs().max() < 0.1 / T
    assert chance[4] < 0.01 * p[4] / T < expected[0]  # the rarest has vanished
    assert abs(chance[0] / (p[0] / T) - 1) < 0.1  # the commonest has not


def test_distinct_pairs():
    assert distinct_pairs(["a b a b", "b a"]) == 2 / 4  # a b, b a, a b; b a


def test_longest_copies():
    source = "so the king was; the king went up, so the king was"
    found = longest_copies(["xx the king went", "", "a rose", "they was; the kin"], source)
    assert found == [" the king went", "", "", " was; the kin"]


@pytest.fixture
def twin():
    torch.manual_seed(0)
    tiny = dict(n_layers=2, d_model=32, n_heads=2, context=16, vocab_size=257, compile=False)
    return DiffusionTransformer(Config(**tiny, causal=True)).eval()


def test_twin_is_a_distribution_over_texts(twin):
    texts = torch.cartesian_prod(torch.arange(256), torch.arange(256))
    with torch.no_grad():
        p = (-next_token_nats(twin, texts).double()).exp()
    assert math.isclose(p.sum().item(), 1, rel_tol=1e-5)


@torch.no_grad()
def test_twin_sees_only_the_past_and_its_cache_is_right(twin):
    x = torch.randint(256, (3, 16), generator=torch.Generator().manual_seed(0))
    logits, cache = twin.head(twin.features(x)), {}
    for i in range(16):
        step = step_with_cache(twin, x[:, i], i, cache)
        torch.testing.assert_close(step, logits[:, i], rtol=1e-4, atol=1e-5)
    x[:, 9:] = 0
    torch.testing.assert_close(twin.head(twin.features(x))[:, :9], logits[:, :9])


@torch.no_grad()
def test_twin_draws_from_what_it_says_given_all_before(twin, in_float32):
    for p in twin.parameters():
        p.data *= 3
    z = torch.full((3, 16), twin.mask_id)
    z[:, :4] = torch.tensor([5, 6, 7, 8])
    result = sample_twin(twin, z, torch.Generator().manual_seed(0), temperature=0.7)
    start = torch.full_like(z[:, :1], twin.mask_id)
    shifted = torch.cat([start, result.tokens[:, :-1]], dim=1)
    p = (twin.head(twin.features(shifted)).double() / 0.7).softmax(-1)
    expected = p.gather(-1, result.tokens[..., None])[..., 0]
    expected[:, :4] = 1
    torch.testing.assert_close(result.probability, expected, rtol=1e-3, atol=1e-6)


@torch.no_grad()
def test_the_twin_draws_from_the_distribution_that_it_is_trained_on(twin, in_float32):
    for p in twin.parameters():
        p.data *= 3
    result = sample_twin(twin, torch.full((3, 16), twin.mask_id), torch.Generator().manual_seed(0))
    nats = next_token_nats(twin, result.tokens).double()
    written = -result.probability.log().sum(dim=1)
    torch.testing.assert_close(written, nats, rtol=1e-4, atol=1e-3)


def test_twin_writes_from_left_to_right(twin):
    z = torch.full((3, 16), twin.mask_id)
    z[:, :4] = 7
    result = sample_twin(twin, z, torch.Generator().manual_seed(0))
    assert (result.tokens[:, :4] == 7).all() and (result.tokens != twin.mask_id).all()
    assert result.step[0].tolist() == [0] * 4 + list(range(5, 17))  # its calls


def test_the_cost_along_an_order_is_exact_and_the_bound_is_their_mean():
    text = (0, 2, 1)
    every = torch.tensor(list(permutations(range(3))))  # in the order of toy.orders
    for table in (MODEL, inconsistent_denoiser()):
        nats = nats_along(table, torch.tensor(text), every)
        assert nats.tolist() == pytest.approx(orders(table, text), rel=1e-5)
        assert nats.mean().item() == pytest.approx(exact_nelbo(table, text), rel=1e-5)
    assert nats.std() > 0.1  # those conditionals agree on no order; else this would test little


def test_bad_input(model):
    z = torch.full((1, 8), model.mask_id)
    with pytest.raises(UserError, match="context of 16"):
        sample(model, torch.zeros(1, 17, dtype=torch.long))
    for sampler in SAMPLERS:
        with pytest.raises(UserError, match="steps"):
            sampler(model, z, 0)
    with pytest.raises(UserError, match="rule"):
        sample_confident(model, z, rule="luck")
    with pytest.raises(UserError, match="block"):
        sample_long(model, z, 20, block=16)
    tokenizer = BPETokenizer.train("And the sons of the sons", 300)
    with pytest.raises(UserError, match="only 8 fit"):
        template(tokenizer, ["Seventy-seven begat no small number"], 8)


@pytest.mark.parametrize("sampler", [*SAMPLERS, sample_twin])
def test_the_seed_decides(sampler, model, twin):
    writer = twin if sampler is sample_twin else model
    z = torch.full((2, 16), writer.mask_id)

    def text(seed):
        return sampler(writer, z, generator=torch.Generator().manual_seed(seed)).tokens

    assert torch.equal(text(1), text(1)) and not torch.equal(text(1), text(2))


def test_long_texts_obey_the_knobs_and_the_seed(model):
    z = torch.full((1, 4), 7)

    def text(seed, **knobs):
        return sample_long(model, z, 30, 4, 4, torch.Generator().manual_seed(seed), **knobs)

    assert torch.equal(text(1), text(1)) and not torch.equal(text(1), text(2))
    assert not torch.equal(text(1), text(1, temperature=1e-3))
    assert not torch.equal(text(1), text(1, top_p=1e-3))


def test_compressors_pay_for_the_new_text_only():
    assert compressed_bpb(len, "é" * 30, "b" * 10) == (8.0, 8.0)
    assert compressed_bpb(lambda data: len(set(data)), "abcd", "cdef") == (8 * 6 / 8, 8 * 2 / 4)


@pytest.mark.parametrize("rule", ["confidence", "margin", "entropy"])
def test_the_surest_place_comes_first(rule):
    table = torch.zeros(4, 4, 4, 3, 3)
    table[..., 0, 0], table[..., 1, 0] = 20, 10  # of the first place it is sure, of the last not
    masks, noise = torch.full((50, 3), MASK), torch.Generator().manual_seed(0)
    result = sample_confident(TableDenoiser(table), masks, 3, noise, rule=rule)
    assert result.step.unique(dim=0).tolist() == [[1, 2, 3]]


def test_the_twin_draws_each_token_by_itself(twin, monkeypatch):
    def coin(model, token, *_):
        return torch.zeros(len(token), 2)

    monkeypatch.setattr(mdlm.twin, "step_with_cache", coin)
    texts = sample_twin(twin, torch.full((8000, 3), twin.mask_id), torch.Generator().manual_seed(0))
    counts = (texts.tokens * torch.tensor([4, 2, 1])).sum(1).bincount(minlength=8)
    assert ((counts - 1000) ** 2 / 1000).sum() < 7 + 4 * math.sqrt(14)


def test_the_twin_goes_on_from_prompts_of_any_length(twin):
    z = torch.full((2, 16), twin.mask_id)
    z[0, :2], z[1, :5] = 7, 9
    both = sample_twin(twin, z, torch.Generator().manual_seed(0), top_k=1)
    given = z != twin.mask_id
    assert torch.equal(both.tokens[given], z[given]) and (both.tokens != twin.mask_id).all()
    for i in range(2):
        alone = sample_twin(twin, z[i : i + 1], torch.Generator().manual_seed(0), top_k=1)
        assert torch.equal(both.tokens[i], alone.tokens[0])


@pytest.mark.parametrize("rule", ["confidence", "margin", "entropy"])
def test_as_many_steps_as_masks_are_one_token_each(model, rule):
    for n in range(1, model.config.context + 1):
        z = torch.full((1, n), model.mask_id)
        result = sample_confident(model, z, n, torch.Generator().manual_seed(0), rule=rule)
        assert result.step[0].sort().values.tolist() == list(range(1, n + 1))


def test_remasking_refuses_what_is_no_probability(model):
    for eta in (-1.0, 1.5, math.nan):
        with pytest.raises(UserError, match="eta must be"):
            sample_remask(model, torch.full((1, 4), model.mask_id), 4, eta=eta)
