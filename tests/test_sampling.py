"""Samplers, against the exact distribution of a tiny text: 3 places, 3 tokens, all enumerated."""

import itertools
import json
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mdlm.sampling
import mdlm.twin
from bpe_tokenizer import BPETokenizer, UserError
from mdlm.config import Config
from mdlm.diffusion import SCHEDULES, next_token_nats
from mdlm.model import DiffusionTransformer
from mdlm.sampling import (
    adjust,
    dense_rank,
    distinct_pairs,
    draw,
    longest_copies,
    noise_grid,
    remask_probabilities,
    run_plan,
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
    L,
    TableDenoiser,
    exact_groups,
    exact_nelbo,
    exact_sampler,
    inconsistent_denoiser,
    orders,
    some_language,
    total_variation,
)

SAMPLERS = [sample_plain, sample, sample_first_hitting, sample_confident, sample_remask]
MODEL, WRONG = ExactDenoiser(some_language()), inconsistent_denoiser()
JOINT = dict(zip(TEXTS, some_language().tolist(), strict=True))
NOTHING = (MASK,) * L
N = 20_000  # texts drawn for each comparison


def noise(seed=11):
    return torch.Generator().manual_seed(seed)


def misfit(sampler, expected, model=MODEL, start=NOTHING):
    """Chi-square of N drawn texts, divided by what it reaches if `expected` is right: 1 is much."""
    tokens = sampler(model, torch.tensor([start]).expand(N, -1), generator=noise()).tokens
    counts = (tokens * torch.tensor([9, 3, 1])).sum(1).bincount(minlength=27)
    expected = N * torch.tensor([expected.get(text, 0.0) for text in TEXTS])
    possible = expected > 0
    assert not counts[~possible].any()
    freedom = possible.sum() - 1
    chi_square = ((counts - expected) ** 2 / expected)[possible].sum()
    return (chi_square / (freedom + 4 * (2 * freedom) ** 0.5)).item()


def exact_confident(model, steps, rule, start):
    """{text: probability} of keeping the surest proposals, by enumerating all of them."""
    states, n = {start: 1.0}, start.count(MASK)
    for i in range(1, steps + 1):
        new = {}
        for z, weight in states.items():
            masked = [place for place in range(L) if z[place] == MASK]
            quota = len(masked) - n * (steps - i) // steps
            p = model.table[z].exp()
            top = p.sort(dim=-1, descending=True).values
            sure = {"margin": top[:, 0] - top[:, 1], "entropy": (p * p.log()).sum(dim=-1)}
            for proposal in itertools.product(range(3), repeat=len(masked)):
                chance = math.prod(p[at, v].item() for at, v in zip(masked, proposal, strict=True))
                drawn = dict(zip(masked, proposal, strict=True))
                score = sure.get(rule, {at: p[at, v] for at, v in drawn.items()})
                kept = sorted(masked, key=lambda at, score=score: -score[at])[:quota]
                text = tuple(drawn[at] if at in kept else z[at] for at in range(L))
                new[text] = new.get(text, 0.0) + weight * chance
        states = new
    return states


CASES = {
    **{
        f"{sampler.__name__}-{T}": (sampler, {"steps": T}, partial(exact_sampler, steps=T))
        for sampler in (sample_plain, sample)
        for T in (1, 2, 5, 30)
    },
    **{
        f"remask-{T}-{eta}": (
            sample_remask,
            {"steps": T, "eta": eta},
            partial(exact_sampler, steps=T, eta=eta),
        )
        for T, eta in [(4, 0.0), (4, 0.3), (4, 1.0), (20, 0.1)]
    },
    **{
        f"{rule}-{T}": (
            sample_confident,
            {"steps": T, "rule": rule},
            partial(exact_confident, steps=T, rule=rule),
        )
        for rule in ("confidence", "margin", "entropy")
        for T in (1, 2, 3)
    },
}


@pytest.mark.parametrize("model", [MODEL, WRONG], ids=["perfect", "inconsistent"])
@pytest.mark.parametrize("start", [NOTHING, (MASK, 2, MASK)], ids=["nothing", "prompt"])
@pytest.mark.parametrize("case", CASES)
def test_texts_have_the_enumerated_probabilities(case, start, model):
    sampler, options, exact = CASES[case]
    assert misfit(partial(sampler, **options), exact(model, start=start), model, start) < 1


@pytest.mark.parametrize("model", [MODEL, WRONG], ids=["perfect", "inconsistent"])
@pytest.mark.parametrize("start", [NOTHING, (MASK, 2, MASK)], ids=["nothing", "prompt"])
@pytest.mark.parametrize("steps", [None, 1, 2, 3])
def test_first_hitting_shares_the_tokens_out_evenly(steps, start, model):
    n = start.count(MASK)
    sizes = {1: [n], 2: [2, 1] if n == 3 else [1, 1]}.get(steps, [1] * n)
    expected = exact_groups(model, sizes, start)
    assert misfit(partial(sample_first_hitting, steps=steps), expected, model, start) < 1


def test_only_one_token_at_a_time_gives_the_joint_distribution():
    assert misfit(sample_first_hitting, JOINT) < 1
    assert misfit(partial(sample, steps=2), JOINT) > 10  # tokens drawn independently
    assert misfit(partial(sample, steps=4000), JOINT) < 1


def test_confidence_is_biased_even_one_token_at_a_time():
    """It keeps a token because of what was drawn. The other rules choose the place before that."""
    assert misfit(partial(sample_confident, steps=3, rule="confidence"), JOINT) > 10
    assert misfit(partial(sample_confident, steps=3, rule="margin"), JOINT) < 1
    assert misfit(partial(sample_confident, steps=3, rule="entropy"), JOINT) < 1


def test_remasking_takes_a_perfect_network_further_from_the_truth():
    for T in (4, 16, 64):
        errors = [total_variation(exact_sampler(MODEL, T, eta), JOINT) for eta in (0, 0.02, 0.1, 1)]
        assert errors == sorted(errors) and errors[-1] > 1.4 * errors[0]


def test_keeping_a_prompt_is_conditioning_for_a_consistent_network_only():
    for model, least, most in ((MODEL, 0, 1e-9), (WRONG, 0.02, 1)):
        joint = exact_groups(model, [1, 1, 1])
        for start in ((MASK, 2, MASK), (0, MASK, MASK)):
            fits = {x: p for x, p in joint.items() if all(a in (b, MASK) for a, b in zip(start, x))}
            conditional = {x: p / sum(fits.values()) for x, p in fits.items()}
            kept = exact_groups(model, [1, 1], start)
            assert least <= total_variation(kept, conditional) <= most


@pytest.mark.parametrize("alpha_t,alpha_s", [(0.0, 0.1), (0.3, 0.4), (0.9, 1.0)])
@pytest.mark.parametrize("eta", [0.0, 0.2, 1.0])
def test_remasking_preserves_the_marginals(alpha_t, alpha_s, eta):
    sigma, chance = remask_probabilities(alpha_s, alpha_t, eta)
    assert 0 <= sigma <= 1 and 0 <= chance <= 1 + 1e-12
    assert math.isclose(alpha_t * (1 - sigma) + (1 - alpha_t) * chance, alpha_s)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tokens_are_unmasked_when_the_schedule_says(schedule):
    when = sample(MODEL, torch.full((N, L), MASK), 6, noise(), schedule).step
    expected = 3 * N * noise_grid(6, schedule).diff()
    counts = when.flatten().bincount(minlength=7)[1:]
    assert ((counts - expected) ** 2 / expected).sum() < 5 + 4 * math.sqrt(10)


@pytest.fixture
def model():
    torch.manual_seed(0)
    tiny = dict(n_layers=2, d_model=32, n_heads=2, context=16, vocab_size=300, compile=False)
    return DiffusionTransformer(Config(**tiny)).eval()


def test_the_eight_lines_of_the_notebook_and_the_plain_sampler_write_the_same(model, in_float32):
    path = Path(__file__).parent.parent / "sampling.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    (cell,) = [c["source"] for c in cells if "in_eight_lines = z\n" in "".join(c["source"]) + "\n"]
    names = dict(vars(mdlm.sampling), model=model, device=torch.device("cpu"), steps=9, seed=3)
    names |= dict(masks=torch.full((1, 16), model.mask_id), show=lambda *_: None)
    exec("".join(cell), names)
    plain = sample_plain(model, names["masks"], 9, noise(3))
    assert torch.equal(plain.tokens, names["in_eight_lines"])


@pytest.mark.parametrize("steps", [3, 40])
def test_skipping_idle_steps_changes_no_token(model, steps, in_float32):
    z = torch.full((20, 16), model.mask_id)
    z[:, 3:5] = 7
    plain = sample_plain(model, z, steps, noise(steps))
    u = torch.rand(z.shape, generator=noise(steps), dtype=torch.float64)  # its first numbers
    alpha_t = noise_grid(steps)[(plain.step - 1).clamp(min=0)]
    with torch.no_grad():
        planned = run_plan(model, z, plain.step, alpha_t, u, steps)
    assert torch.equal(plain.tokens, planned.tokens) and torch.equal(plain.step, planned.step)
    assert planned.network_calls < plain.network_calls or steps == 3


@pytest.mark.parametrize("steps", [4, 16, 100])
def test_number_of_network_calls(model, steps):
    z = torch.full((500, 16), model.mask_id)
    expected = steps * (1 - (1 - 1 / steps) ** 16)
    calls = sample(model, z, steps, noise()).network_calls
    assert abs(calls - expected) < 4 * 2 / math.sqrt(500)  # a text's calls vary by less than 2


class Watching:
    """A model that notes what it is asked, and at which time."""

    def __init__(self, model):
        self.model, self.asked = model, []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def features(self, z, t=None):
        self.asked.append((z.clone(), t.clone()))
        return self.model.features(z, t)


def asked(model, function):
    """What `function(model)` returns, and the (z, t) of each call of the network."""
    watching = Watching(model)
    with torch.no_grad():
        return function(watching), watching.asked


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_recorded_calls_are_those_that_were_made(model, sampler):
    z = torch.full((6, 16), model.mask_id)
    z[:, 0] = torch.arange(6)  # tells the texts apart
    z[2, 4:], z[3] = 7, 9  # few masks and none
    z[3, 0] = 3
    result, calls = asked(model, lambda m: sampler(m, z, 40, generator=noise()))
    made = torch.cat([rows[:, 0] for rows, _ in calls]).bincount(minlength=6)
    assert result.calls.shape == (6, 40) and result.calls.dtype == torch.bool
    assert torch.equal(result.calls.sum(dim=1), made)
    assert result.network_calls == pytest.approx(made.double().mean().item())
    rows = torch.arange(6)[:, None].expand(-1, 16)
    assert result.calls[rows, result.step - 1][result.step > 0].all()  # no token without a call


@given(st.lists(st.lists(st.integers(0, 9), min_size=5, max_size=5), min_size=1, max_size=4))
def test_dense_rank(when):
    ranks = [[sorted({0, *row}).index(step) for step in row] for row in when]
    assert dense_rank(torch.tensor(when)).tolist() == ranks


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("n_masks", [0, 1, 9])
def test_samplers_keep_what_is_given_and_leave_no_mask(model, sampler, n_masks):
    z = torch.randint(299, (3, 16), generator=noise())
    z[:, 3 : 3 + n_masks] = model.mask_id
    before = z.clone()
    result = sampler(model, z, 7, noise())
    kept = z != model.mask_id
    assert torch.equal(z, before) and (result.tokens != model.mask_id).all()
    for step in range(8):
        assert torch.equal(result.state(step)[kept], z[kept])
    assert torch.equal(result.state(0), z) and torch.equal(result.state(7), result.tokens)
    assert (result.probability > 0).all() and (result.step[kept] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_in_one_step_each_token_has_the_networks_probability(sampler, model, in_float32):
    for p in model.parameters():
        p.data *= 3  # far from uniform
    z = torch.full((4, 16), model.mask_id)
    z[:, 3], z[1:, 5] = 7, 9
    kept = z != model.mask_id
    p = (model.head(model.features(z)).double() / 0.5).softmax(-1)
    result = sampler(model, z, 1, noise(), temperature=0.5)
    expected = p.gather(-1, result.tokens[..., None])[..., 0].masked_fill(kept, 1.0)
    torch.testing.assert_close(result.probability, expected, rtol=1e-4, atol=1e-7)
    greedy = sampler(model, z, 1, noise(1), top_k=1)
    assert torch.equal(greedy.tokens, torch.where(kept, z, p.argmax(-1)))


def test_the_network_is_told_the_right_time(model):
    masks, many = torch.full((6, 16), model.mask_id), torch.full((500, 16), model.mask_id)
    for sampler in (sample_plain, sample_remask, sample_confident):
        _, calls = asked(model, lambda m, sampler=sampler: sampler(m, masks, 4, noise()))
        assert [t.unique().tolist() for _, t in calls] == [[1.0], [0.75], [0.5], [0.25]]
    for schedule in SCHEDULES:
        result, calls = asked(model, lambda m, s=schedule: sample(m, masks[:1], 8, noise(), s))
        before = [step - 1 for step in sorted(set(result.step[0].tolist()))]
        told = torch.cat([t for _, t in calls]).double()
        torch.testing.assert_close(told, 1 - noise_grid(8, schedule)[before], atol=1e-6, rtol=0)
    for steps, size in ((None, 1), (4, 4)):  # 1 - t is the smallest moment of a call's tokens
        _, calls = asked(model, lambda m, n=steps: sample_first_hitting(m, many, n, noise()))
        for n, (_, t) in enumerate(calls):
            assert abs(t.mean() - (1 - (size * n + 1) / 17)) < 4 * 0.13 / 500**0.5
    _, calls = asked(model, lambda m: nats_along(m, torch.arange(16), torch.arange(16)[None]))
    assert [t.tolist() for _, t in calls] == [[1 - i / 16] for i in range(16)]


def test_long_texts_go_on_from_all_that_fits(monkeypatch):
    model, seen = SimpleNamespace(config=SimpleNamespace(context=16), mask_id=299), []

    def counting(_, z, steps, *__, **___):
        seen.append(z.clone())
        return SimpleNamespace(tokens=torch.where(z == 299, 100 + len(seen), z))

    monkeypatch.setattr(mdlm.sampling, "sample", counting)
    text = sample_long(model, torch.arange(5).expand(2, 5), 25, block=4, steps=7)
    assert text[0].tolist() == [*range(5), *[101] * 11, *[102] * 4, *[103] * 4, 104]
    assert [z.shape[1] for z in seen] == [16, 16, 16, 16]
    for n, z in enumerate(seen[1:]):
        masks = min(4, 9 - 4 * n)
        assert (z[:, -masks:] == 299).all()
        assert torch.equal(z[:, :-masks], text[:, : 16 + 4 * n][:, -(16 - masks) :])


@pytest.mark.parametrize("length", [20, 24, 50])
@pytest.mark.parametrize("n", [5, 20])
def test_long_texts_keep_what_is_given_and_leave_no_mask(model, n, length):
    z = torch.randint(299, (2, n), generator=noise())
    z[:, [1, n - 2]] = model.mask_id
    before = z.clone()
    result = sample_long(model, z, length, 4, 4, noise())
    assert torch.equal(z, before) and result.shape == (2, length)
    assert (result != model.mask_id).all()
    assert torch.equal(result[:, :n][z != model.mask_id], z[z != model.mask_id])


def test_long_texts_obey_the_sampling_parameters_and_the_seed(model):
    def text(seed, **options):
        return sample_long(model, torch.full((1, 4), 7), 30, 4, 4, noise(seed), **options).tolist()

    assert text(1) == text(1) != text(2)
    assert text(1) != text(1, temperature=1e-3) and text(1) != text(1, top_p=1e-3)


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train("the lord spake unto moses and the people " * 50, 300)


def test_given_text_comes_back_byte_for_byte(model, tokenizer):
    prompt = "the lord spake unto mos"  # ends inside a word
    z = template(tokenizer, [prompt], 16)
    model.mask_id = tokenizer.mask_id  # the untrained model draws smaller ids only
    ids = sample(model, z, 8, noise()).tokens[0].tolist()
    assert tokenizer.decode_bytes(ids).startswith(prompt.encode())


def test_a_space_before_masks_is_left_to_the_token_that_comes(tokenizer):
    def same(parts, others, length=None):
        return torch.equal(template(tokenizer, parts, length), template(tokenizer, others, length))

    assert same(["the lord "], ["the lord"], 9)
    assert same(["the lord ", 3, " spake ", 2], ["the lord", 3, " spake", 2])
    assert same(["the lord  "], ["the lord "], 9) is False  # one space is a token's, not two
    assert tokenizer.decode(template(tokenizer, ["the ", "lord "])[0].tolist()) == "the lord "
    assert (template(tokenizer, [2, "the", 3], 9)[0] == tokenizer.mask_id).sum() == 8


def test_sampling_parameters():
    logits = torch.tensor([[0.0, 2.0, -1.0, 1.0], [1.0, -1.0, 2.0, 0.0]])
    p = logits.double().softmax(-1)
    assert torch.equal(adjust(logits), p)
    torch.testing.assert_close(adjust(logits, temperature=0.5), (2 * logits.double()).softmax(-1))
    for options, kept in [
        ({"top_k": 2}, 2),
        ({"top_p": 0.7}, 2),
        ({"top_p": 0.6}, 1),
        ({"min_p": 0.3}, 2),
        ({"top_k": 3, "top_p": 0.6}, 1),
    ]:
        least = logits.sort(descending=True).values[:, kept - 1 : kept]
        expected = torch.where(logits >= least, p, 0.0)
        expected /= expected.sum(-1, keepdim=True)
        torch.testing.assert_close(adjust(logits, **options), expected)
    # the temperature comes first, and may be as low as it likes
    assert (adjust(logits, temperature=0.5, top_p=0.7) > 0).sum(-1).tolist() == [1, 1]
    assert adjust(logits, temperature=1e-310).argmax(-1).tolist() == [1, 2]


OUT_OF_RANGE = [
    *({"temperature": value} for value in (0.0, -1.0, math.nan)),
    *({"top_p": value} for value in (0.0, 1.1, math.nan)),
    *({"min_p": value} for value in (-0.1, 1.1, math.nan)),
    {"top_k": -1},
]


@pytest.mark.parametrize("options", OUT_OF_RANGE, ids=str)
def test_sampling_parameters_out_of_range_are_rejected_by_name(options):
    ((name, _),) = options.items()
    with pytest.raises(UserError, match=f"^{name} must be [^\n]*$"):
        sample(MODEL, torch.tensor([NOTHING]), **options)


@pytest.mark.parametrize("sampler", [*SAMPLERS, partial(sample_long, length=5, block=1)])
def test_unknown_options_are_rejected(sampler):
    with pytest.raises(TypeError, match="temprature"):
        sampler(MODEL, torch.tensor([NOTHING]), steps=2, temprature=0.5)


def test_draw_at_the_ends():
    p = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]] * 4, dtype=torch.float64)
    u = torch.tensor([0.0, 0.2499, 0.25, 1 - 2**-53], dtype=torch.float64)
    assert draw(p, u).tolist() == [1, 1, 3, 3]


def test_coarse_gumbel_noise_lowers_the_temperature():
    """The formula of the guide, section 8, against a simulation with 12-bit random numbers."""
    bits, T, n = 12, 40, 2**20
    p = torch.tensor([0.9, 0.08, 0.015, 0.004, 0.001], dtype=torch.float64)
    generator = noise(0)
    u = torch.randint(1, 2**bits, (n, 5), generator=generator).double() / 2**bits  # for the tokens
    u_mask = torch.rand(n, 1, generator=generator, dtype=torch.float64)  # for "stay masked"
    score = torch.cat([p / T / -u.log(), (1 - 1 / T) / -u_mask.log()], dim=1)
    chance = score.argmax(dim=1).bincount(minlength=6)[:5] / n
    expected = 2.0**-bits / torch.expm1(2.0**-bits * T / p)
    assert (chance - expected).abs().max() < 0.1 / T
    assert chance[4] < 0.01 * p[4] / T < expected[0]  # the rarest has vanished
    assert abs(chance[0] / (p[0] / T) - 1) < 0.1  # the commonest has not


def test_distinct_pairs():
    assert distinct_pairs(["a b a b", "b a"]) == 2 / 4  # a b, b a, a b; b a
    assert distinct_pairs(["", "one"]) == 0


@given(st.text("abé", max_size=60), st.lists(st.text("abé", max_size=30), max_size=3))
def test_longest_copies_are_those_of_brute_force(source, texts):
    data, found = source.encode(), longest_copies(texts, source)
    assert len(found) == len(texts)
    for text, copy in zip(texts, found, strict=True):
        text = text.encode()
        pieces = (text[i:j] for i in range(len(text)) for j in range(i + 8, len(text) + 1))
        longest = max((piece for piece in pieces if piece in data), key=len, default=b"")
        assert copy in source and copy in text.decode()
        assert len(longest.decode(errors="ignore").encode()) <= len(copy.encode()) + 2
        assert len(copy.encode()) <= len(longest)


@pytest.mark.parametrize("rule", ["confidence", "margin", "entropy"])
def test_the_surest_place_comes_first(rule):
    table = torch.zeros(4, 4, 4, 3, 3)
    table[..., 0, 0], table[..., 1, 0] = 20, 10  # of the first place it is sure, of the last not
    masks = torch.tensor([NOTHING]).expand(50, -1)
    result = sample_confident(TableDenoiser(table), masks, 3, noise(), rule=rule)
    assert result.step.unique(dim=0).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("rule", ["confidence", "margin", "entropy"])
def test_as_many_steps_as_masks_are_one_token_each(model, rule):
    for n in range(1, 17):
        z = torch.full((1, n), model.mask_id)
        result = sample_confident(model, z, n, noise(), rule=rule)
        assert result.step[0].sort().values.tolist() == list(range(1, n + 1))


def test_bad_input_gets_one_line(model, tokenizer):
    z = torch.full((1, 8), model.mask_id)
    for message, call in [
        ("context of 16", lambda: sample(model, torch.zeros(1, 17, dtype=torch.long))),
        ("rule", lambda: sample_confident(model, z, rule="luck")),
        ("block", lambda: sample_long(model, z, 20, block=16)),
        ("only 3 fit", lambda: template(tokenizer, ["seventy-seven"], 3)),
        *(("eta", partial(sample_remask, model, z, 4, eta=eta)) for eta in (-1.0, 1.5, math.nan)),
        *(("steps", partial(sampler, model, z, 0)) for sampler in SAMPLERS),
    ]:
        with pytest.raises(UserError, match=f"^[^\n]*{message}[^\n]*$"):
            call()


@pytest.fixture
def twin():
    torch.manual_seed(0)
    tiny = dict(n_layers=2, d_model=32, n_heads=2, context=16, vocab_size=257, compile=False)
    return DiffusionTransformer(Config(**tiny, causal=True)).eval()


@pytest.mark.parametrize("sampler", [*SAMPLERS, sample_twin])
def test_the_seed_decides(sampler, model, twin):
    writer = twin if sampler is sample_twin else model
    z = torch.full((2, 16), writer.mask_id)
    one, again, two = (sampler(writer, z, generator=noise(seed)).tokens for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, two)


def test_twin_is_a_distribution_over_texts(twin):
    texts = torch.cartesian_prod(torch.arange(256), torch.arange(256))
    with torch.no_grad():
        p = (-next_token_nats(twin, texts).double()).exp()
    assert math.isclose(p.sum().item(), 1, rel_tol=1e-5)


@torch.no_grad()
def test_twin_sees_only_the_past_and_its_cache_is_right(twin):
    x = torch.randint(256, (3, 16), generator=noise())
    logits, cache = twin.head(twin.features(x)), {}
    for i in range(16):
        step = step_with_cache(twin, x[:, i], i, cache)
        torch.testing.assert_close(step, logits[:, i], rtol=1e-4, atol=1e-5)
    x[:, 9:] = 0
    torch.testing.assert_close(twin.head(twin.features(x))[:, :9], logits[:, :9])


@torch.no_grad()
def test_twin_draws_from_what_it_was_trained_to_say(twin, in_float32):
    for p in twin.parameters():
        p.data *= 3
    z = torch.full((3, 16), twin.mask_id)
    result = sample_twin(twin, z, noise())
    written = -result.probability.log().sum(dim=1)
    nats = next_token_nats(twin, result.tokens).double()
    torch.testing.assert_close(written, nats, rtol=1e-4, atol=1e-3)
    z[:, :4] = torch.tensor([5, 6, 7, 8])
    result = sample_twin(twin, z, noise(), temperature=0.7)
    shifted = torch.cat([torch.full_like(z[:, :1], twin.mask_id), result.tokens[:, :-1]], dim=1)
    p = (twin.head(twin.features(shifted)).double() / 0.7).softmax(-1)
    expected = p.gather(-1, result.tokens[..., None])[..., 0]
    expected[:, :4] = 1
    torch.testing.assert_close(result.probability, expected, rtol=1e-3, atol=1e-6)
    assert result.step[0].tolist() == [0] * 4 + list(range(5, 17))  # from left to right


def test_the_twin_draws_each_token_by_itself(twin, monkeypatch):
    monkeypatch.setattr(
        mdlm.twin, "step_with_cache", lambda m, token, *_: token.new_zeros(len(token), 2)
    )
    texts = sample_twin(twin, torch.full((8000, 3), twin.mask_id), noise())
    counts = (texts.tokens * torch.tensor([4, 2, 1])).sum(1).bincount(minlength=8)
    assert ((counts - 1000) ** 2 / 1000).sum() < 7 + 4 * math.sqrt(14)


def test_the_twin_goes_on_from_prompts_of_any_length(twin):
    z = torch.full((2, 16), twin.mask_id)
    z[0, :2], z[1, :5] = 7, 9
    both, kept = sample_twin(twin, z, noise(), top_k=1), z != twin.mask_id
    assert torch.equal(both.tokens[kept], z[kept]) and (both.tokens != twin.mask_id).all()
    for i in range(2):
        alone = sample_twin(twin, z[i : i + 1], noise(), top_k=1)
        assert torch.equal(both.tokens[i], alone.tokens[0])


def test_the_cost_along_an_order_is_exact_and_the_bound_is_their_mean():
    text = (0, 2, 1)
    every = torch.tensor(list(itertools.permutations(range(L))))  # in the order of toy.orders
    for table in (MODEL, WRONG):
        nats = nats_along(table, torch.tensor(text), every)
        assert nats.tolist() == pytest.approx(orders(table, text), rel=1e-5)
        assert nats.mean().item() == pytest.approx(exact_nelbo(table, text), rel=1e-5)
    assert nats.std() > 0.1  # those conditionals agree on no order; else this would test little
