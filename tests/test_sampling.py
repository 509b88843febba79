"""Samplers, against the exact distribution of a tiny text: 3 places, 3 tokens, all enumerated."""

import itertools
import json
import math
from collections import Counter
from functools import partial

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import mdlm.sampling
import mdlm.twin
import toy
from bpe_tokenizer import BPETokenizer
from conftest import ROOT, make_model, noise
from files import UserError
from mdlm.diffusion import SCHEDULES, next_token_nats
from mdlm.sampling import adjust, draw, noise_grid, sample, sample_confident, sample_first_hitting
from mdlm.twin import nats_along, sample_twin, step_with_cache
from text_statistics import distinct_pairs, longest_copies
from toy import MASK, TEXTS, L, exact_sampler, total_variation

sample_plain, sample_remask = mdlm.sampling.sample_plain, mdlm.sampling.sample_remask
sample_long, template = mdlm.sampling.sample_long, mdlm.sampling.template
SAMPLERS = [sample_plain, sample, sample_first_hitting, sample_confident, sample_remask]
RULES = ["confidence", "margin", "entropy"]
JOINT = dict(zip(TEXTS, toy.some_language().tolist(), strict=True))
PERFECT, INCONSISTENT = toy.ExactDenoiser(toy.some_language()), toy.inconsistent_denoiser()
NOTHING, PROMPT = (MASK,) * L, (MASK, 2, MASK)
N = 20_000  # texts drawn for each comparison


def misfit(sampler, expected, model=PERFECT, start=NOTHING):
    """Chi-square of N drawn texts; 1 is its mean and four standard deviations if they fit."""
    tokens = sampler(model, torch.tensor([start]).expand(N, -1), generator=noise()).tokens
    counts = (tokens * torch.tensor([9, 3, 1])).sum(1).bincount(minlength=27)
    expected = N * torch.tensor([expected.get(text, 0.0) for text in TEXTS])
    possible = expected > 0
    assert not counts[~possible].any()
    chi_square = ((counts - expected) ** 2 / expected)[possible].sum().item()
    freedom = possible.sum().item() - 1
    return chi_square / (freedom + 4 * math.sqrt(2 * freedom))


def exact_hitting(model, steps, start):
    """{text: probability} if the masks are filled in random order, shared out over the steps."""
    n = start.count(MASK)
    sizes = Counter(i * (steps or n) // n for i in range(n)).values()
    return toy.exact_groups(model, sizes, start)


def exact_confident(model, steps, rule, start):
    """{text: probability} of keeping the surest proposals, by enumerating all of them."""
    states, n = {start: 1.0}, start.count(MASK)
    for i in range(1, steps + 1):
        new = Counter()
        for z, weight in states.items():
            masked, p = [at for at in range(L) if z[at] == MASK], model.table[z].exp()
            top = p.sort(dim=-1, descending=True).values
            sure = {"margin": top[:, 0] - top[:, 1], "entropy": (p * p.log()).sum(dim=-1)}
            for drawn in itertools.product(range(3), repeat=len(masked)):
                drawn = dict(zip(masked, drawn, strict=True))
                score = sure.get(rule, {at: p[at, v] for at, v in drawn.items()})
                quota = len(masked) - n * (steps - i) // steps
                kept = sorted(masked, key=lambda at, score=score: -score[at])[:quota]
                text = tuple(drawn[at] if at in kept else z[at] for at in range(L))
                new[text] += weight * math.prod(p[at, v].item() for at, v in drawn.items())
        states = new
    return states


CASES = [
    *((s, exact_sampler, dict(steps=T)) for s in (sample_plain, sample) for T in (1, 2, 5, 30)),
    *((sample_remask, exact_sampler, dict(steps=4, eta=eta)) for eta in (0.0, 0.3, 1.0)),
    (sample_remask, exact_sampler, dict(steps=20, eta=0.1)),
    *((sample_first_hitting, exact_hitting, dict(steps=T)) for T in (None, 1, 2, 3)),
    *((sample_confident, exact_confident, dict(steps=T, rule=r)) for T in (1, 2, 3) for r in RULES),
]


@pytest.mark.parametrize("model", [PERFECT, INCONSISTENT], ids=["perfect", "inconsistent"])
@pytest.mark.parametrize("start", [NOTHING, PROMPT], ids=["nothing", "prompt"])
@pytest.mark.parametrize(("sampler", "exact", "options"), CASES)
def test_texts_have_the_enumerated_probabilities(sampler, exact, options, start, model):
    expected = exact(model, start=start, **options)
    assert misfit(partial(sampler, **options), expected, model, start) < 1


def test_what_gives_the_joint_distribution_of_a_perfect_network():
    assert misfit(partial(sample, steps=4000), JOINT) < 1
    assert misfit(partial(sample, steps=2), JOINT) > 10  # tokens drawn independently
    assert misfit(sample_first_hitting, JOINT) < 1
    for rule in ("margin", "entropy"):  # they choose the place before anything is drawn
        assert misfit(partial(sample_confident, steps=3, rule=rule), JOINT) < 1
    assert misfit(partial(sample_confident, steps=3, rule="confidence"), JOINT) > 10


def test_remasking_takes_a_perfect_network_further_from_the_truth():
    for T in (4, 16, 64):
        far = [total_variation(exact_sampler(PERFECT, T, eta), JOINT) for eta in (0, 0.02, 0.1, 1)]
        assert far == sorted(far) and far[-1] > 1.4 * far[0]


def test_keeping_a_prompt_is_conditioning_for_a_consistent_network_only():
    for model, least, most in ((PERFECT, 0, 1e-9), (INCONSISTENT, 0.02, 1)):
        joint = toy.exact_groups(model, [1, 1, 1])
        for start in (PROMPT, (0, MASK, MASK)):
            fits = {x: joint[x] for x in TEXTS if all(map(lambda a, b: b in (a, MASK), x, start))}
            conditional = {x: p / sum(fits.values()) for x, p in fits.items()}
            kept = toy.exact_groups(model, [1, 1], start)
            assert least <= total_variation(kept, conditional) <= most


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tokens_are_unmasked_when_the_schedule_says(schedule):
    when = sample(PERFECT, torch.full((N, L), MASK), 6, noise(), schedule).step
    expected = L * N * noise_grid(6, schedule).diff()
    counts = when.flatten().bincount(minlength=7)[1:]
    assert ((counts - expected) ** 2 / expected).sum() < 5 + 4 * math.sqrt(10)


@pytest.fixture
def model():
    return make_model(n_layers=2)


def test_the_notebooks_eight_lines_and_the_plain_sampler_write_the_same(model, in_float32):
    cells = json.loads((ROOT / "sampling.ipynb").read_text(encoding="utf-8"))["cells"]
    (code,) = (s for cell in cells if "in_eight_lines = z" in (s := "".join(cell["source"])))
    names = dict(vars(mdlm.sampling), model=model, device=torch.device("cpu"), steps=9, seed=3)
    names |= dict(masks=torch.full((1, 16), model.mask_id), show=lambda *_: None)
    exec(code, names)
    assert torch.equal(sample_plain(model, names["masks"], 9, noise(3)).tokens, names["z"])


@pytest.mark.parametrize("steps", [3, 40])
def test_skipping_idle_steps_changes_no_token(model, steps, in_float32):
    z = torch.full((20, 16), model.mask_id)
    z[:, 3:5] = 7
    plain = sample_plain(model, z, steps, noise(steps))
    u = torch.rand(z.shape, generator=noise(steps), dtype=torch.float64)  # its first numbers
    alpha_t = noise_grid(steps)[(plain.step - 1).clamp(min=0)]
    with torch.no_grad():
        planned = mdlm.sampling.run_plan(model, z, plain.step, alpha_t, u, steps)
    assert torch.equal(plain.tokens, planned.tokens) and torch.equal(plain.step, planned.step)
    assert planned.network_calls < plain.network_calls or steps == 3


@pytest.mark.parametrize("steps", [4, 16, 100])
def test_number_of_network_calls(model, steps):
    calls = sample(model, torch.full((500, 16), model.mask_id), steps, noise()).network_calls
    expected = steps * (1 - (1 - 1 / steps) ** 16)
    assert abs(calls - expected) < 4 * 2 / math.sqrt(500)  # a text's calls vary by less than 2


def asked(model, function):
    """What `function(model)` returns, and the (z, t) of each call of the network."""
    calls, features = [], model.features
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(model, "features", lambda z, t: (calls.append((z, t)), features(z, t))[1])
        return function(model), calls


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_recorded_calls_are_those_that_were_made(model, sampler):
    z = torch.full((6, 16), model.mask_id)
    z[2, 4:], z[3] = 7, 9  # few masks, and none
    result, calls = asked(model, lambda m: sampler(m, z, 40, generator=noise()))
    needed = result.calls.sum(dim=1)  # (6,) of those, as all texts go along until the last is done
    assert result.calls.shape == (6, 40) and needed.max() == len(calls)
    assert result.network_calls == pytest.approx(needed.double().mean().item())
    row, place = result.step.nonzero(as_tuple=True)
    assert result.calls[row, result.step[row, place] - 1].all()  # no token without a call


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("n_masks", [0, 1, 9])
def test_samplers_keep_what_is_given_and_leave_no_mask(model, sampler, n_masks):
    z = torch.randint(299, (3, 16), generator=noise())
    z[:, 3 : 3 + n_masks] = model.mask_id
    before, kept = z.clone(), z != model.mask_id
    result = sampler(model, z, 7, noise())
    assert torch.equal(z, before) and (result.tokens != model.mask_id).all()
    assert all(torch.equal(result.state(step)[kept], z[kept]) for step in range(8))
    assert torch.equal(result.state(0), z) and torch.equal(result.state(7), result.tokens)
    assert (result.probability > 0).all() and (result.step[kept] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_in_one_step_each_token_has_the_networks_probability(sampler, model, in_float32):
    z = torch.full((4, 16), model.mask_id)
    z[:, 3], z[1:, 5] = 7, 9
    p, kept = (model.head(model.features(z)).double() / 0.5).softmax(-1), z != model.mask_id
    result = sampler(model, z, 1, noise(), temperature=0.5)
    expected = p.gather(-1, result.tokens[..., None])[..., 0].masked_fill(kept, 1.0)
    torch.testing.assert_close(result.probability, expected, rtol=1e-4, atol=1e-7)
    greedy = sampler(model, z, 1, noise(), top_k=1)
    assert torch.equal(greedy.tokens, torch.where(kept, z, p.argmax(-1)))


def test_the_network_is_told_the_right_time(model):
    masks, many = torch.full((6, 16), model.mask_id), torch.full((500, 16), model.mask_id)
    for sampler in (sample_plain, sample_remask, sample_confident):
        _, calls = asked(model, partial(sampler, z=masks, steps=4, generator=noise()))
        assert [t.unique().tolist() for _, t in calls] == [[1.0], [0.75], [0.5], [0.25]]
    for schedule in SCHEDULES:
        result, calls = asked(model, partial(sample, z=masks[:1], steps=8, schedule=schedule))
        before = result.step[0].unique() - 1
        told = torch.cat([t for _, t in calls]).double()
        torch.testing.assert_close(told, 1 - noise_grid(8, schedule)[before], atol=1e-6, rtol=0)
    for steps, size in ((None, 1), (4, 4)):  # 1 - t is the smallest moment of a call's tokens
        _, calls = asked(model, partial(sample_first_hitting, z=many, steps=steps))
        for n, (_, t) in enumerate(calls):
            assert abs(t.mean() - (1 - (size * n + 1) / 17)) < 4 * 0.13 / 500**0.5
    _, calls = asked(model, lambda m: nats_along(m, torch.arange(16), torch.arange(16)[None]))
    assert [t.tolist() for _, t in calls] == [[1 - i / 16] for i in range(16)]


@pytest.mark.parametrize(("n", "length"), [(5, 9), (5, 25), (20, 20), (20, 26)])
def test_long_texts_fill_all_masks_and_go_on_from_all_that_fits(model, n, length):
    z = torch.randint(299, (1, n), generator=noise())
    z[:, [1, -2]] = model.mask_id
    before, kept = z.clone(), (z != model.mask_id)[:, :length]
    text, calls = asked(model, lambda m: sample_long(m, z, length, 4, 3, noise()))
    assert torch.equal(z, before) and text.shape == (1, length)
    assert (text != model.mask_id).all() and torch.equal(text[:, : kept.shape[1]][kept], z[kept])
    ends = [min(length, end) for end in range(16, max(16, length) + 4, 4)]
    for texts, _ in calls:  # each is a window that ends where a block ends
        shown = texts != model.mask_id
        windows = [text[:, max(0, end - 16) : end] for end in ends]
        fits = [w.shape == texts.shape and torch.equal(w[shown], texts[shown]) for w in windows]
        assert fits[0] or (any(fits) and (~shown).sum() <= 4)  # all before the block is there


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train("the lord spake unto moses and the people " * 50, 300)


def test_given_text_comes_back_byte_for_byte(model, tokenizer):
    prompt = "the lord spake unto mos"  # ends inside a word
    model.mask_id = tokenizer.mask_id  # the untrained model draws smaller ids only
    ids = sample(model, template(tokenizer, [prompt], 16), 8, noise()).tokens[0].tolist()
    assert tokenizer.decode_bytes(ids).startswith(prompt.encode())


def test_a_space_before_masks_is_left_to_the_token_that_comes(tokenizer):
    def ids(*parts, length=None):
        return template(tokenizer, parts, length)[0].tolist()

    assert ids("the lord ", length=9) == ids("the lord", length=9)
    assert ids("the lord ", 3, " spake ", 2) == ids("the lord", 3, " spake", 2)
    assert ids("the lord  ", length=9) == ids("the lord ", "", length=9)  # one of two is left out
    assert tokenizer.decode(ids("the ", "lord ")) == "the lord "
    assert ids(2, "the", 3, length=9).count(tokenizer.mask_id) == 8


def test_sampling_parameters():
    logits = torch.tensor([[0.0, 2.0, -1.0, 1.0], [1.0, -1.0, 2.0, 0.0]])
    p = logits.double().softmax(-1)
    assert torch.equal(adjust(logits), p)
    torch.testing.assert_close(adjust(logits, temperature=0.5), (2 * logits.double()).softmax(-1))
    for options, kept in [
        (dict(top_k=2), 2), (dict(top_p=0.7), 2), (dict(top_p=0.6), 1), (dict(min_p=0.3), 2),
        (dict(top_k=3, top_p=0.6), 1),
    ]:  # fmt: skip
        expected = torch.where(logits >= logits.topk(kept).values[:, -1:], p, 0.0)
        expected /= expected.sum(-1, keepdim=True)
        torch.testing.assert_close(adjust(logits, **options), expected)
    # the temperature comes first, and may be as low as it likes
    assert (adjust(logits, temperature=0.5, top_p=0.7) > 0).sum(-1).tolist() == [1, 1]
    assert adjust(logits, temperature=1e-310).argmax(-1).tolist() == [1, 2]


@pytest.mark.parametrize("sampler", [*SAMPLERS, partial(sample_long, length=5, block=1)])
def test_unknown_options_are_rejected(sampler):
    with pytest.raises(TypeError, match="temprature"):
        sampler(PERFECT, torch.tensor([NOTHING]), steps=2, temprature=0.5)


def test_what_cannot_be_gets_one_line(model, tokenizer):
    z = torch.full((1, 8), model.mask_id)
    wrong = dict(temperature=(0.0, -1.0, math.nan), top_p=(0.0, 1.1, math.nan))
    wrong |= dict(min_p=(-0.1, 1.1, math.nan), top_k=(-1,))
    for message, call in [
        *((f"{k} must", partial(sample, model, z, **{k: v})) for k in wrong for v in wrong[k]),
        *(("eta must", partial(sample_remask, model, z, eta=v)) for v in (-1.0, 1.5, math.nan)),
        *(("steps must", partial(sampler, model, z, 0)) for sampler in SAMPLERS),
        ("rule must", partial(sample_confident, model, z, rule="luck")),
        ("context of 16", partial(sample, model, z.repeat(1, 3))),
        ("block must", partial(sample_long, model, z, 20, block=16)),
        ("only 3 fit", partial(template, tokenizer, ["seventy-seven"], 3)),
    ]:
        with pytest.raises(UserError, match=f"^[^\n]*{message}[^\n]*$"):
            call()


def test_draw_at_the_ends():
    p = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]] * 4, dtype=torch.float64)
    u = torch.tensor([0.0, 0.2499, 0.25, 1 - 2**-53], dtype=torch.float64)
    assert draw(p, u).tolist() == [1, 1, 3, 3]


def test_distinct_pairs():
    assert distinct_pairs(["a b a b", "b a"]) == 2 / 4  # a b, b a, a b; b a
    assert distinct_pairs(["", "one"]) == 0


@example("12345678ab, 12345678ac", ["12345678ac", "12345678ab"])
@given(st.text("abé", max_size=60), st.lists(st.text("abé", max_size=30), max_size=3))
def test_longest_copies_are_those_of_brute_force(source, texts):
    found = longest_copies(texts, source)
    for text, copy in zip(texts, found, strict=True):
        raw = text.encode()
        pieces = [raw[i:j] for i in range(len(raw)) for j in range(i + 8, len(raw) + 1)]
        pieces = [piece for piece in pieces if piece in source.encode()] or [b""]
        length = max(map(len, pieces))
        assert copy in [piece.decode(errors="ignore") for piece in pieces if len(piece) == length]


@pytest.fixture
def twin():
    return make_model(n_layers=2, vocab_size=257, causal=True).requires_grad_(False)


@pytest.mark.parametrize("sampler", [*SAMPLERS, sample_twin, sample_long])
def test_the_seed_and_the_sampling_parameters_decide(sampler, model, twin):
    writer = twin if sampler is sample_twin else model
    z = torch.full((2, 16), writer.mask_id)

    def text(seed, **options):
        options |= {} if sampler is sample_twin else {"steps": 4}
        options |= {"length": 20, "block": 4} if sampler is sample_long else {}
        result = sampler(writer, z, generator=noise(seed), **options)
        return getattr(result, "tokens", result).tolist()

    assert text(1) == text(1) != text(2)
    assert text(1) != text(1, temperature=1e-3) and text(1) != text(1, top_p=1e-3)


def test_the_twin_is_a_distribution_over_texts(twin):
    pairs = torch.stack([torch.full((256,), 5), torch.arange(256)], dim=1)  # all that begin with 5
    p, first = ((-next_token_nats(twin, x).double()).exp() for x in (pairs, pairs[:1, :1]))
    assert p.sum().item() == pytest.approx(first.item(), rel=1e-5)


def test_the_twin_sees_only_the_past_and_its_cache_is_right(twin):
    x = torch.randint(256, (3, 16), generator=noise())
    logits, cache = twin.head(twin.features(x)), {}
    for i in range(16):
        step = step_with_cache(twin, x[:, i], i, cache)
        torch.testing.assert_close(step, logits[:, i], rtol=1e-4, atol=1e-5)
    x[:, 9:] = 0
    torch.testing.assert_close(twin.head(twin.features(x))[:, :9], logits[:, :9])


def test_the_twin_draws_from_what_it_says_given_all_before(twin, in_float32):
    z = torch.full((3, 16), twin.mask_id)
    result = sample_twin(twin, z, noise())
    written, nats = -result.probability.log().sum(dim=1), next_token_nats(twin, result.tokens)
    torch.testing.assert_close(written, nats.double(), rtol=1e-4, atol=1e-3)
    z[:, :4] = torch.tensor([5, 6, 7, 8])
    result = sample_twin(twin, z, noise(), temperature=0.7)
    shifted = torch.cat([torch.full_like(z[:, :1], twin.mask_id), result.tokens[:, :-1]], dim=1)
    p = (twin.head(twin.features(shifted)).double() / 0.7).softmax(-1)
    expected = p.gather(-1, result.tokens[..., None])[..., 0]
    torch.testing.assert_close(result.probability[:, 4:], expected[:, 4:], rtol=1e-3, atol=1e-6)
    assert (result.probability[:, :4] == 1).all() and result.calls.all()
    assert result.step[0].tolist() == [0] * 4 + list(range(5, 17))  # from left to right


def test_the_twin_draws_each_token_by_itself(twin, monkeypatch):
    coin = lambda model, token, *_: torch.zeros(len(token), 2)  # noqa: E731
    monkeypatch.setattr(mdlm.twin, "step_with_cache", coin)
    monkeypatch.setattr(mdlm.twin, "cache_error", lambda model: 0.0)
    texts = sample_twin(twin, torch.full((8000, 3), twin.mask_id), noise())
    counts = (texts.tokens * torch.tensor([4, 2, 1])).sum(1).bincount(minlength=8)
    assert ((counts - 1000) ** 2 / 1000).sum() < 7 + 4 * math.sqrt(14)


def test_the_twin_goes_on_from_prompts_of_any_length(twin):
    z = torch.full((2, 16), twin.mask_id)
    z[0, :2], z[1, :5] = 7, 9
    both, kept = sample_twin(twin, z, noise(), top_k=1), z != twin.mask_id
    assert torch.equal(both.tokens[kept], z[kept]) and (both.tokens != twin.mask_id).all()
    alone = [sample_twin(twin, row[None], noise(), top_k=1).tokens for row in z]
    assert torch.equal(both.tokens, torch.cat(alone))


def test_the_cost_along_an_order_is_exact_and_the_bound_is_their_mean():
    text = (0, 2, 1)
    every = torch.tensor(list(itertools.permutations(range(L))))  # in the order of toy.orders
    for table in (PERFECT, INCONSISTENT):
        nats = nats_along(table, torch.tensor(text), every)
        assert nats.tolist() == pytest.approx(toy.orders(table, text), rel=1e-5)
        assert nats.mean().item() == pytest.approx(toy.exact_nelbo(table, text), rel=1e-5)
    assert nats.std() > 0.1  # those conditionals agree on no order; else this would test little
