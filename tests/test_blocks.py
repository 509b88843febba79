"""Blocks: by enumeration on the tiny language, and every fast way against the simple one."""

import itertools
import math
import re
from dataclasses import replace
from functools import partial

import pytest
import torch

import mdlm.model
import toy
from conftest import OPTIONS, TEXT, noise, tiny
from files import UserError
from mdlm.blocks import (
    BlockDenoiser,
    angles,
    block_nats,
    block_nelbo,
    block_sizes,
    block_training_loss,
    sample_blocks,
    spread_over_blocks,
)
from mdlm.diffusion import low_discrepancy_t, nelbo, spread_mask_counts
from mdlm.model import DiffusionTransformer
from mdlm.sampling import sample, sample_confident, sample_first_hitting, sample_remask
from saving import load_checkpoint, newest_checkpoint, run_name, save_checkpoint
from settings import settings
from tests.test_sampling import NOTHING, PROMPT, exact_confident, exact_hitting, misfit
from toy import MASK, TEXTS, BlockTable, L

PERFECT, INCONSISTENT = toy.ExactDenoiser(toy.some_language()), toy.inconsistent_denoiser()
JOINT = dict(zip(TEXTS, toy.some_language().tolist(), strict=True))


def make(block, **changes):
    """A small network for blocks, its weights far enough from zero to say something."""
    torch.manual_seed(0)
    model = BlockDenoiser(tiny(block=block, n_layers=2, **changes)).eval()
    for p in model.parameters():
        p.data *= 3
    return model.double()


def some_text(rows=3, length=16):
    return torch.randint(299, (rows, length), generator=noise())


# the loss


@pytest.mark.parametrize("model", [PERFECT, INCONSISTENT], ids=["perfect", "inconsistent"])
def test_the_bound_is_the_enumerated_one_for_every_size(model):
    for block, x in itertools.product((1, 2, 3), ((0, 2, 1), (1, 1, 0))):
        n, table = 20_000, BlockTable(model.table, block)
        k = spread_mask_counts(n, L, noise())
        nats = block_nelbo(table, torch.tensor(x).expand(n, L), k, noise(1)).double()
        exact, error = toy.exact_block_nelbo(model, x, block), nats.std().item() / n**0.5
        assert nats.mean().item() == pytest.approx(exact, abs=4 * error + 1e-4)
        assert (error < 1e-6) == (block == 1)  # nothing is drawn by lot


def test_at_its_ends_the_dial_is_the_chain_rule_and_the_nelbo():
    for x in TEXTS:
        from_left_to_right = toy.orders(INCONSISTENT, x)[0]
        assert toy.exact_block_nelbo(INCONSISTENT, x, 1) == pytest.approx(from_left_to_right)
        assert toy.exact_block_nelbo(INCONSISTENT, x, L) == pytest.approx(
            toy.exact_nelbo(INCONSISTENT, x)
        )
        for block in (1, 2, 3):  # a perfect network pays the same for all
            assert toy.exact_block_nelbo(PERFECT, x, block) == pytest.approx(-math.log(JOINT[x]))


def test_the_bound_is_a_bound_and_the_gap_closes_with_fewer_orders():
    gaps = []
    for block in (1, 2, 3):
        written = toy.exact_block_sampler(INCONSISTENT, block)
        assert sum(written.values()) == pytest.approx(1)
        gap = {
            x: toy.exact_block_nelbo(INCONSISTENT, x, block) + math.log(p)
            for x, p in written.items()
        }
        assert min(gap.values()) > -1e-6
        gaps.append(sum(gap.values()) / len(gap))
    assert gaps[0] == pytest.approx(0, abs=1e-6) and 0.02 < gaps[1] < gaps[2]


def test_one_block_is_plain_diffusion():
    model, x = make(16), some_text()
    plain = DiffusionTransformer(replace(model.config, block=0)).double().eval()
    plain.load_state_dict(model.state_dict())
    k = torch.tensor([1, 7, 16])
    expected = nelbo(plain, x, k, noise())
    torch.testing.assert_close(block_nats(model, x, k[:, None], noise()).sum(dim=1), expected)
    z = torch.where(x % 2 == 0, x, model.mask_id)
    torch.testing.assert_close(model(z), plain(z))


@torch.no_grad()
def test_blocks_of_one_give_the_exact_likelihood():
    model, x = make(1), some_text()
    left_to_right = torch.zeros(3, dtype=torch.float64)
    for i in range(16):  # one token after another, everything read anew
        z = x[:, : i + 1].clone()
        z[:, i] = model.mask_id
        logits = model.head(model.features(z, x=x[:, : i + 1])[:, i]).double()
        left_to_right -= logits.log_softmax(-1).gather(1, x[:, i : i + 1])[:, 0]
    for seed in (1, 2):
        found = block_nelbo(model, x, torch.tensor([1, 5, 9]), noise(seed)).double()
        torch.testing.assert_close(found, left_to_right, rtol=1e-4, atol=1e-4)
        training = block_training_loss(model, x, torch.rand(3), noise(seed)).double()
        torch.testing.assert_close(training, found)  # no weight can differ from one
    pairs = torch.stack([torch.full((299,), 5), torch.arange(299)], dim=1)  # all that begin with 5
    p, first = (
        (-block_nelbo(model, texts, torch.ones(len(texts)).long()).double()).exp()
        for texts in (pairs, pairs[:1, :1])
    )
    assert p.sum().item() == pytest.approx(first.item(), rel=1e-4)  # a distribution


@pytest.mark.parametrize("block", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("length", [16, 13, 5, 1])
def test_all_blocks_at_once_are_each_block_by_itself(block, length):
    """Whether the text is read in one pass, block by block, or with a cache."""
    model, x = make(block), some_text(length=length)
    z = torch.where(torch.rand(x.shape, generator=noise(2)) < 0.5, x, model.mask_id)
    at_once, past, cached, alone = model.features(z, x=x), None, [], []
    for start in range(0, length, block):
        part = slice(start, start + block)
        before = torch.cat([x[:, :start], z[:, part]], dim=1)
        alone.append(model.features(before, x=x)[:, start:])
        cached.append(model.write(z[:, part], past, start))
        past = model.read(x[:, part], past, start)
    torch.testing.assert_close(torch.cat(alone, dim=1), at_once)
    torch.testing.assert_close(torch.cat(cached, dim=1), at_once)


def test_the_numbers_of_masks_are_uniform_in_each_block_and_evenly_spread():
    t = spread_over_blocks(low_discrepancy_t(50, noise()), 8, noise(1))  # (50, 8)
    gaps = t.double().flatten().sort().values.diff()
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / 400), rtol=0.01, atol=1e-6)
    assert torch.equal((t * 8).long().sort(dim=1).values, torch.arange(8).expand(50, 8))
    many = spread_over_blocks(torch.rand(20_000, generator=noise(2)), 4, noise(3))
    for one in many.T:
        assert ((one * 10).long().bincount() - 2000).abs().max() < 4 * 2000**0.5
    assert block_sizes(16, 4).tolist() == [4] * 4 and block_sizes(7, 4).tolist() == [4, 3]


def test_training_weighs_a_block_by_its_share_of_masks():
    """On average by one; and the gradient reaches what was only read."""
    flat = BlockTable(torch.full((4, 4, 4, 3, 3), -1.0, dtype=torch.float64), 3)
    flat.config = replace(flat.config, rate_power=0.5)
    each = block_training_loss(
        flat, torch.zeros(30_000, 3).long(), low_discrepancy_t(30_000, noise()), noise()
    )
    assert each.mean().item() == pytest.approx(3 * math.log(3), rel=0.01)
    model, x = make(4, rate_power=0.5), some_text(40, 14)
    block_training_loss(model, x, low_discrepancy_t(40, noise()), noise()).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


# the sampler


@pytest.mark.parametrize("model", [PERFECT, INCONSISTENT], ids=["perfect", "inconsistent"])
@pytest.mark.parametrize("block", [1, 2, 3])
def test_texts_have_the_enumerated_probabilities(block, model):
    n, table = 20_000, BlockTable(model.table, block)
    tokens = sample_blocks(table, torch.full((n, L), MASK), generator=noise()).tokens
    counts = (tokens * torch.tensor([9, 3, 1])).sum(1).bincount(minlength=27)
    exact = toy.exact_block_sampler(model, block)
    expected = n * torch.tensor([exact[text] for text in TEXTS])
    assert ((counts - expected) ** 2 / expected).sum() < 26 + 4 * math.sqrt(52)
    if model is PERFECT:
        assert toy.total_variation(exact, JOINT) < 1e-6


def test_a_step_may_fill_several_tokens_and_given_ones_stay():
    model, z = make(4), some_text()
    z[:, 3:14] = model.mask_id
    z[1, 5:8] = 7
    for options in ({}, dict(steps=2), dict(steps=2, sampler=sample_confident), dict(steps=9)):
        result, kept = sample_blocks(model, z, generator=noise(), **options), z != model.mask_id
        assert torch.equal(result.tokens[kept], z[kept]) and (result.step[kept] == 0).all()
        assert (result.tokens != model.mask_id).all() and (result.probability > 0).all()
        steps = options.get("steps", 4)
        assert result.n_steps == 4 * steps and result.calls.shape == (3, 4 * steps)
        block = torch.arange(16) // 4
        assert (((result.step - 1) // steps == block) | kept).all()  # block after block
        counts = torch.stack([row.bincount(minlength=17) for row in result.step])[:, 1:]
        assert counts.max() <= math.ceil(4 / steps)
        row, place = result.step.nonzero(as_tuple=True)
        assert result.calls[row, result.step[row, place] - 1].all()


@torch.no_grad()
@pytest.mark.parametrize("block", [1, 4, 16])
def test_each_token_has_the_probability_that_the_whole_pass_gives_it(block, in_float32):
    """Not only the cache: state by state, against `features` of everything, at temperature 0.7."""
    model = make(block)
    result = sample_blocks(
        model, torch.full((2, 16), model.mask_id), None, noise(), temperature=0.7
    )
    for step in range(1, 17, 3):
        before = result.state(step - 1)
        p = (model.head(model.features(before)).double() / 0.7).softmax(-1)
        p = p.gather(-1, result.tokens[..., None])[..., 0]
        now = result.step == step
        assert now.sum() == 2
        torch.testing.assert_close(result.probability[now], p[now], rtol=1e-4, atol=1e-8)


RULES = {
    rule: (partial(sample_confident, rule=rule), partial(exact_confident, rule=rule))
    for rule in ("confidence", "margin")
}
RULES["random"] = (sample_first_hitting, exact_hitting)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_block_is_written_as_the_samplers_of_whole_texts_do(rule, steps):
    sampler, exact = RULES[rule]
    for start in (NOTHING, PROMPT):
        expected = exact(INCONSISTENT, steps=steps, start=start)
        in_blocks = partial(sample_blocks, steps=steps, sampler=sampler)
        assert misfit(in_blocks, expected, BlockTable(INCONSISTENT.table, 3), start) < 1


@pytest.mark.parametrize("sampler", [sample, sample_remask])
def test_other_samplers_write_blocks_too(sampler):
    model, z = make(4), some_text()
    z[:, 3:14] = model.mask_id
    shown = []
    watch = lambda part, *rest, text, start: shown.append((part, text.clone(), start))  # noqa: E731
    result = sample_blocks(model, z, 6, noise(), sampler=sampler, watch=watch)
    assert (result.tokens != model.mask_id).all() and result.n_steps == 24
    assert [start for *_, start in shown] == sorted(start for *_, start in shown)
    for part, text, start in shown:  # what is before it is finished, and the block is in the text
        assert part.shape[1] == 4 and (text[:, :start] != model.mask_id).all()


@torch.no_grad()
def test_beyond_the_context_a_block_sees_the_last_tokens_wherever_they_stand():
    """What is shifted by whole blocks stays the same; what is too far back is forgotten."""
    model, x = make(4), some_text(length=32)
    z = torch.full((3, 4), model.mask_id)
    here, there = model.read(x[:, 20:32]), model.read(x[:, 20:32], None, 1000)
    assert here[0][0].shape[2] == 12
    shifted = model.write(z, there, 1012)
    torch.testing.assert_close(model.write(z, here, 12), shifted, rtol=1e-3, atol=1e-3)
    past = None
    for start in range(0, 32, 4):
        past = model.read(x[:, start : start + 4], past, start)
    assert past[0][0].shape[2] == 12
    first = model.blocks[0].look(model.embedding(x[:, 20:]), *angles(model, 20, 32))
    torch.testing.assert_close(past[0][1], first[2])  # values: no position in them
    torch.testing.assert_close(past[0][0], first[1], rtol=1e-4, atol=1e-4)
    long = sample_blocks(model, torch.full((2, 50), model.mask_id), 2, noise())
    assert long.tokens.shape == (2, 50) and (long.tokens != model.mask_id).all()
    again = sample_blocks(model, torch.full((2, 16), model.mask_id), 2, noise())
    assert torch.equal(long.tokens[:, :16], again.tokens)


def test_a_text_stops_where_it_has_written_the_end():
    model, head = make(4), BlockDenoiser.head
    model.head = lambda h: torch.where(torch.arange(299) == 298, 0.0, head(model, h) * 0 - 1e4)
    z = torch.full((2, 40), model.mask_id)  # 298 is all that this network ever writes
    z[0, :6] = 298  # given, so it is no end
    result = sample_blocks(model, z, end=[298, 298], generator=noise())
    assert result.tokens.shape == (2, 7) and result.n_steps == 8  # 6 given ones and 1 written
    assert (result.tokens[0] == 298).all() and (result.step[0, :6] == 0).all()
    assert result.tokens[1].tolist() == [298] * 2 + [model.mask_id] * 5
    assert (result.step[1, 2:] == 0).all() and (result.probability[1, 2:] == 1).all()
    assert torch.equal(result.state(result.n_steps), result.tokens)
    whole = sample_blocks(model, z, generator=noise())
    assert whole.tokens.shape == (2, 40) and (whole.tokens == 298).all()


# settings, checkpoints, commands


@pytest.mark.parametrize(
    "says, changes",
    [
        ("block (5) must divide the context (16): try 4", dict(block=5)),
        ("block (32) must divide the context (16): try 16", dict(block=32)),
        ("block must be at least 0", dict(block=-4)),
        ("causal is not for blocks", dict(block=4, causal=True)),
        ("time_conditioning is not for blocks", dict(block=4, time_conditioning=True)),
        ("activation_checkpointing is not for", dict(block=4, activation_checkpointing=True)),
        ('draw numbers of masks: set loss="counts", or block', dict(block=4, loss="time")),
    ],
)
def test_settings_that_make_no_sense_get_one_line(says, changes):
    with pytest.raises(UserError, match=f"^[^\n]*{re.escape(says)}[^\n]*$"):
        tiny(**changes)


@pytest.mark.parametrize("block", [0, 4, 16])
def test_a_checkpoint_is_loaded_by_what_it_was_trained_for(block, corpus, tmp_path):
    right, wrong = BlockDenoiser, DiffusionTransformer
    says = f"in blocks of {block} tokens: load it with BlockDenoiser"
    if block == 0:
        (right, wrong), says = (wrong, right), "not trained"
    model, path = right(tiny(block=block)).eval(), tmp_path / "t.safetensors"
    save_checkpoint(path, model, corpus.tokenizer, {})
    z = torch.full((1, 16), model.mask_id)
    assert torch.equal(load_checkpoint(path, right, "cpu")[0](z), model(z))
    with pytest.raises(UserError, match=f"^[^\n]*{says}[^\n]*$"):
        load_checkpoint(path, wrong)


def test_names_of_older_runs_stay_and_blocks_have_their_own(tmp_path):
    names = {run_name(settings("small", block=block), "code") for block in (0, 4, 8)}
    assert len(names) == 3 and sum(name.endswith("-blocks") for name in names) == 2
    for name in ("a", "b-blocks"):
        (tmp_path / f"{name}.safetensors").touch()
    assert newest_checkpoint(tmp_path).stem == "a"


def test_an_edited_network_is_refused_until_layer_is_edited_too(monkeypatch):
    def weights(self, q, k):
        return (q @ k.mT * q.shape[-1] ** -0.3).softmax(dim=-1)

    monkeypatch.setattr(mdlm.model.Attention, "weights", weights)
    with pytest.raises(UserError, match="edit Layer in blocks"):
        BlockDenoiser(tiny(block=4))


def test_train_py_trains_for_blocks_and_exports(tmp_path, monkeypatch, capsys, text_file):
    import train

    monkeypatch.chdir(tmp_path)
    options = [*OPTIONS, f"--data={text_file}", "--block=4", "--export=x-blocks.safetensors"]
    assert train.main(options) == 0, capsys.readouterr()
    out = capsys.readouterr().out
    assert "12 steps" in out and "x-blocks.safetensors: in bfloat16" in out
    model, tokenizer, metadata = load_checkpoint(tmp_path / "x-blocks.safetensors", BlockDenoiser)
    assert model.config.block == 4 and metadata["history"][-1]["step"] == 12
    (path,) = (tmp_path / "checkpoints").glob("*-blocks.safetensors")
    assert train.main([*OPTIONS, f"--data={text_file}", "--block=5"]) == 2
    assert "block (5) must divide" in capsys.readouterr().err
    assert train.main(["--compare"]) == 0 and path.stem in capsys.readouterr().out
    assert tokenizer.encode(TEXT)
