"""The step, the optimisers, the average, the evaluation; and that training makes a model better."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import CUT, TEXT, make_model, make_run, tiny
from hardware import Hardware, device_choices
from mdlm import training
from mdlm.diffusion import next_token_nats
from mdlm.model import DiffusionTransformer
from mdlm.training import evaluate, train, training_step, write_one_by_one
from saving import load_checkpoint, load_state
from toy import MASK, TEXTS, exact_groups, exact_nelbo, inconsistent_denoiser, total_variation

CPU = Hardware(torch.device("cpu"))


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("accumulation", [1, 4])  # 4 of 6 texts: three parts of 2
@pytest.mark.parametrize("clip", [1e6, 0.5])
def test_a_step_follows_the_clipped_gradient_of_the_whole_batch(clip, accumulation, in_float32):
    """Worked out by hand, with plain gradient descent in place of Muon and AdamW."""
    changes = dict(clip=clip, accumulation=accumulation, warmup=4, steps=14)
    config = tiny(causal=True, short_windows=0.0, **changes)
    model, x = DiffusionTransformer(config), torch.arange(16)[None]
    by_hand, corpus = copy.deepcopy(model), SimpleNamespace(train=x[0].numpy())  # one window
    plain = [torch.optim.SGD([p], lr=1 + i) for i, p in enumerate(model.parameters())]
    total = training_step(model, plain, corpus, config, 9, CPU)
    loss = next_token_nats(by_hand, x).sum() / 16  # each of the six texts is this one
    loss.backward()
    assert total.item() == pytest.approx(loss.item(), abs=1e-5)
    norm = math.sqrt(sum(p.grad.pow(2).sum().item() for p in by_hand.parameters()))
    scale = 0.55 * min(1, clip / norm)  # half way down from 1 to 0.1
    assert norm > 1  # else clipping at a half would test little
    for i, (p, q) in enumerate(zip(by_hand.parameters(), model.parameters(), strict=True)):
        torch.testing.assert_close(q, p - (1 + i) * scale * p.grad, rtol=0, atol=1e-4)
        assert q.grad is None  # nothing is left for the next step
    rate = [training.warmup_cosine(step, config) for step in range(15)]
    assert rate[:5] == [0.25, 0.5, 0.75, 1, 1] and rate[14] == pytest.approx(0.1)


def test_steps_draw_every_window_equally_often_and_drop_something_else_in_each_part():
    seen, dropped = [], []
    config = tiny(causal=True, accumulation=2, dropout=0.5, short_windows=0.0)
    model = DiffusionTransformer(config)
    model.embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, 1]))
    dropout = model.blocks[0].dropout
    dropout.register_forward_hook(lambda _, inputs, out: dropped.append(str((out == 0).tolist())))
    corpus = SimpleNamespace(train=np.arange(20))  # 5 places to start at
    for step in range(200):
        training_step(model, [], corpus, config, step, CPU)
    counts = torch.stack(seen).flatten().bincount(minlength=5)  # a twin's second place: x's first
    assert len(counts) == 5 and ((counts - 240.0) ** 2 / 240).sum() < 4 + 4 * math.sqrt(8)
    assert len({str(seen[i : i + 2]) for i in range(0, 400, 2)}) > 190  # of the batches
    assert len({*dropped}) == len(dropped) == 800
    training_step(model, [], corpus, tiny(causal=True, seed=2), 0, CPU)
    assert not torch.equal(seen[-1], torch.cat(seen[:2]))


def test_some_steps_have_shorter_windows_and_all_the_same_number_of_tokens():
    config, seen = tiny(context=64, batch_size=2, short_windows=0.5), []
    model, corpus = DiffusionTransformer(config), SimpleNamespace(train=np.arange(64))
    model.embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    for step in range(100):
        training_step(model, [], corpus, config, step, CPU)
    assert {n * length for n, length in seen} == {128}
    counts = {length: sum(shape[1] == length for shape in seen) for length in (64, 32, 16, 8)}
    assert sum(counts.values()) == 100 and 30 < counts[64] < 70 and min(counts.values()) > 5


def test_the_average_is_the_weighted_sum_it_claims():
    p, average = torch.nn.Parameter(torch.zeros(1)), 0.0
    ema, without = (training.EMA(torch.nn.ParameterList([p]), decay) for decay in (0.9, 0.0))
    for n, value in enumerate(noise(200).tolist(), 1):
        p.data.fill_(value)
        ema.update(), without.update()
        decay = min(0.9, n / (n + 10))
        average = decay * average + (1 - decay) * value
    with ema.applied():
        assert p.item() == pytest.approx(average, abs=1e-5)
    assert p.item() == without.average[0].item() == pytest.approx(value)


def test_muon_goes_down_every_direction_alike_with_nesterovs_momentum_and_decay(in_float32):
    for m, n in ((64, 24), (24, 64)):
        u, _, vh = torch.linalg.svd(noise(m, n), full_matrices=False)
        turned = u.T @ training.orthogonalise(noise(m, n)) @ vh.T
        assert turned.diagonal().min() > 0.6 and turned.diagonal().max() < 1.3
        assert (turned - turned.diagonal().diag()).abs().max() < 0.05
        together = [torch.nn.Parameter(torch.ones(m, n)) for _ in range(2)]
        optimizer = training.Muon(together, lr=0.1, weight_decay=0.5)
        average, expected = torch.zeros(2, m, n), torch.ones(2, m, n)
        for g in noise(3, 2, m, n):
            for p, own in zip(together, g, strict=True):
                p.grad = own.clone()
            optimizer.step()
            average = 0.95 * average + 0.05 * g
            step = torch.stack([training.orthogonalise(a) for a in 0.05 * g + 0.95 * average])
            expected = 0.95 * expected - 0.1 * max(1, m / n) ** 0.5 * step
        torch.testing.assert_close(torch.stack(together).detach(), expected)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_every_weight_has_one_optimiser_and_only_matrices_decay(name):
    config = tiny(weight_decay=0.3, time_conditioning=True, optimizer=name, muon_lr=0.5)
    model = DiffusionTransformer(config)
    first, second = training.make_optimizers(model, config)
    groups = [{id(p) for p in o.param_groups[0]["params"]} for o in (first, second)]
    matrices = {id(p) for p in model.blocks.parameters() if p.dim() == 2}
    assert groups == [matrices, {id(p) for p in model.parameters()} - matrices]
    assert (first.defaults["weight_decay"], second.defaults["weight_decay"]) == (0.3, 0)
    rate = 0.5 if isinstance(first, training.Muon) else config.adamw_lr
    assert (first.defaults["lr"], second.defaults["lr"]) == (rate, config.adamw_lr)
    assert isinstance(first, training.Muon) == (name == "muon")


def test_float16_scales_the_loss_and_survives_an_overflow(corpus, tmp_path, device_is):
    """The way of an older GPU, on a CPU: a scale that starts far too high."""
    device_is(torch.float16, scale_loss=True)
    run, losses = make_run(corpus, tmp_path), []
    run.hardware.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = weights(run.model)
    for i in range(60):
        loss = training_step(run.model, run.optimizers, corpus, run.config, i, run.hardware)
        losses.append(loss.item())
        assert i > 0 or torch.equal(weights(run.model), before)  # no step, and a smaller scale
    assert run.hardware.scaler.get_scale() < 2.0**40 and sum(losses[-10:]) < sum(losses[:10])
    run.save()
    again = make_run(corpus, tmp_path)
    again.restore()
    assert again.hardware.scaler.state_dict() == run.hardware.scaler.state_dict()
    again.model.embedding.weight.register_hook(lambda gradient: gradient * torch.nan)
    training_step(again.model, again.optimizers, corpus, run.config, 60, again.hardware)
    assert torch.equal(weights(again.model), weights(run.model))  # neither optimiser moves


@pytest.mark.parametrize("passes", [1, 3])
def test_a_twins_evaluation_counts_every_token_once(passes, in_float32):
    twin, x, done = make_model(context=8, causal=True, batch_size=3), torch.randint(299, (43,)), []
    exact = sum(next_token_nats(twin, x[None, i : i + 8]).item() for i in range(0, 43, 8))
    nats, error = evaluate(twin, x.numpy(), passes=passes, progress=done.append)
    assert nats == pytest.approx(exact / 43, rel=1e-5) and error == 0
    assert done[0] == 0 and done[-1] == 1 and all(0 <= part <= 1 for part in done)
    assert evaluate(twin, x.numpy(), max_windows=3)[1] > 0  # of a part of the text


def test_an_evaluation_is_the_exact_bound_within_the_error_it_reports():
    scores = []
    for seed in range(40):
        model, text = inconsistent_denoiser(seed), TEXTS[seed % 27]
        model.embedding, model.eval = SimpleNamespace(weight=model.table), lambda: None
        model.config = tiny(context=3, batch_size=20 + seed)  # other random numbers
        nats, error = evaluate(model, np.array([*text] * 200), passes=1 + seed % 2)
        scores.append((nats - exact_nelbo(model, text) / 3) / error)
    assert abs(np.mean(scores)) < 4 / math.sqrt(40) and 0.7 < np.std(scores) < 1.4


def test_an_evaluation_takes_no_more_texts_at_once_than_training_and_no_dropout(corpus):
    for accumulation, most in ((1, 16), (3, 6)):
        model, sizes = make_model(batch_size=16, accumulation=accumulation, dropout=0.5), []
        model.blocks[0].register_forward_pre_hook(lambda _, x, sizes=sizes: sizes.append(len(x[0])))
        one, two = (evaluate(model.train(), corpus.val, max_windows=32) for _ in range(2))
        assert max(sizes) == most and one == two


def test_the_simplest_sampler_draws_from_the_models_own_distribution():
    model, n, counts = inconsistent_denoiser(), 3000, {}
    generator = torch.Generator().manual_seed(0)
    for _ in range(n):
        text = tuple(write_one_by_one(model, torch.full((1, 3), MASK), generator)[0].tolist())
        counts[text] = counts.get(text, 0) + 1 / n
    assert total_variation(counts, exact_groups(model, (1, 1, 1))) < 0.05
    given = torch.tensor([[0, MASK, 2]])
    assert write_one_by_one(model, given, generator)[0, ::2].tolist() == [0, 2]


def test_training_makes_the_saved_model_better(corpus, tmp_path, in_float32):
    run = train(tiny(steps=100, eval_every=50, save_every=100, ema=0.9), corpus, tmp_path)
    assert [row["step"] for row in run.history] == [0, 50, 100]
    assert run.history[-1]["bpb"] < run.history[0]["bpb"] - 0.1
    model, _, metadata = load_checkpoint(run.path, DiffusionTransformer, "cpu")
    assert torch.equal(weights(model), weights(run.model))
    raw = load_state(run.resume_path)["model"]["embedding.weight"]
    assert not torch.equal(raw, model.embedding.weight)  # that is the averaged one
    last, figures = metadata["history"][-1], evaluate(model, corpus.val, passes=8)
    expected = [n * len(corpus.val) / math.log(2) / len(TEXT[CUT:]) for n in figures]
    assert [last["bpb"], last["error"]] == pytest.approx(expected)
    assert last["tokens"] == 100 * 6 * 16 and metadata["steps"] == 100  # steps, texts, places
    assert metadata["parameters"] == len(weights(model))


KINDS = [
    dict(context=1, batch_size=128, warmup=0),
    dict(batch_size=7, accumulation=3, ema=0.0),  # parts of unequal size
    dict(causal=True, qk_norm=False),
    dict(loss="time", schedule="cosine", optimizer="adamw", time_conditioning=True),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_kind_of_run_trains_and_repeats_itself_bit_for_bit(kind, corpus, tmp_path):
    config = tiny(steps=4, dropout=0.1, **kind)
    one, two = (train(config, corpus, tmp_path / folder) for folder in "ab")
    assert np.isfinite(one.losses).all() and one.losses == two.losses and len(one.losses) == 4
    assert np.isfinite(one.history[-1]["bpb"])
    assert torch.equal(weights(one.model), weights(two.model))
    load_checkpoint(one.path, DiffusionTransformer)


def test_compiled_blocks_train_alike(corpus, tmp_path):
    if not device_choices(torch.device("cpu")).compile:
        pytest.skip("there is no compiler here, or none that PyTorch can use")
    plain, compiled = (
        train(tiny(steps=3, compile=on), corpus, tmp_path / str(on)).losses for on in (False, True)
    )
    assert plain == pytest.approx(compiled, rel=0.02)
