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


def test_the_learning_rate_rises_and_falls_to_a_tenth():
    rate = [training.warmup_cosine(step, tiny(warmup=10, steps=110)) for step in range(111)]
    assert rate[:10] == [(step + 1) / 10 for step in range(10)] and rate[10] == 1
    assert rate[60] == pytest.approx(0.55) and rate[110] == pytest.approx(0.1)
    assert rate[10:] == sorted(rate[10:], reverse=True)


@pytest.mark.parametrize("accumulation", [1, 4])  # 4 of 6 texts: three parts of 2
@pytest.mark.parametrize("clip", [1e6, 0.5])
def test_a_step_follows_the_clipped_gradient_of_the_whole_batch(clip, accumulation, in_float32):
    """Worked out by hand, with plain gradient descent in place of Muon and AdamW."""
    config = tiny(clip=clip, accumulation=accumulation, causal=True)
    model, x = DiffusionTransformer(config), torch.arange(16)[None]
    by_hand, corpus = copy.deepcopy(model), SimpleNamespace(train=x[0].numpy())  # one window
    plain = [torch.optim.SGD([p], lr=1 + i) for i, p in enumerate(model.parameters())]
    total = training_step(model, plain, corpus, config, 5, CPU)
    loss = next_token_nats(by_hand, x).sum() / 16  # each of the six texts is this one
    loss.backward()
    assert total.item() == pytest.approx(loss.item(), abs=1e-5)
    norm = math.sqrt(sum(p.grad.pow(2).sum().item() for p in by_hand.parameters()))
    assert norm > 1  # else clipping at a half would test little
    scale = training.warmup_cosine(5, config) * min(1, clip / norm)
    for i, (p, q) in enumerate(zip(by_hand.parameters(), model.parameters(), strict=True)):
        torch.testing.assert_close(q, p - (1 + i) * scale * p.grad, rtol=0, atol=1e-4)
        assert q.grad is None  # nothing is left for the next step


def test_steps_draw_every_window_equally_often_and_never_the_same_batch():
    seen, model = [], DiffusionTransformer(tiny(causal=True))
    model.embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, 1]))
    corpus = SimpleNamespace(train=np.arange(20))  # 5 places to start at
    for step in range(200):
        training_step(model, [], corpus, model.config, step, CPU)
    counts = torch.stack(seen).flatten().bincount(minlength=5)  # a twin's second place: x's first
    assert len(counts) == 5 and ((counts - 240.0) ** 2 / 240).sum() < 4 + 4 * math.sqrt(8)
    assert len({tuple(batch.tolist()) for batch in seen}) > 190
    training_step(model, [], corpus, tiny(causal=True, seed=2), 0, CPU)
    assert not torch.equal(seen[-1], seen[0])


def test_each_step_and_part_drops_something_else(corpus):
    seen, model = [], DiffusionTransformer(tiny(accumulation=3, dropout=0.5))
    dropout = model.blocks[0].dropout
    dropout.register_forward_hook(lambda _, inputs, out: seen.append(str((out == 0).tolist())))
    for step in range(3):
        training_step(model, [], corpus, model.config, step, CPU)
    assert len({*seen}) == len(seen) == 2 * 9


def test_the_average_is_the_weighted_sum_it_claims():
    p, average = torch.nn.Parameter(torch.zeros(1)), 0.0
    ema, without = (training.EMA(torch.nn.ParameterList([p]), decay) for decay in (0.9, 0.0))
    values = torch.randn(200, generator=torch.Generator().manual_seed(0)).tolist()
    for n, value in enumerate(values, 1):
        p.data.fill_(value)
        ema.update(), without.update()
        decay = min(0.9, n / (n + 10))
        average = decay * average + (1 - decay) * value
    with ema.applied():
        assert p.item() == pytest.approx(average, abs=1e-5)
    assert p.item() == without.average[0].item() == pytest.approx(values[-1])


@pytest.mark.parametrize("shape", [(64, 24), (24, 64)])
def test_muon_goes_down_every_direction_alike(shape, in_float32):
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    p = torch.nn.Parameter(torch.zeros(shape))
    p.grad = gradient
    training.Muon([p], lr=0.1).step()
    u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
    moved = u.T @ p.detach() @ vh.T / (-0.1 * max(1, shape[0] / shape[1]) ** 0.5)
    assert moved.diagonal().min() > 0.6 and moved.diagonal().max() < 1.3
    assert (moved - moved.diagonal().diag()).abs().max() < 0.05


def test_muon_follows_nesterovs_momentum_and_decays_weights(in_float32):
    gradients = torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    together = [torch.nn.Parameter(torch.ones(4, 6)) for _ in range(5)]
    optimizer, average = training.Muon(together, lr=0.1, weight_decay=0.5), torch.zeros(5, 4, 6)
    expected = torch.ones(5, 4, 6)
    for g in gradients:
        for p, own in zip(together, g, strict=True):
            p.grad = own.clone()
        optimizer.step()
        average = 0.95 * average + 0.05 * g
        each = [training.orthogonalise(ahead) for ahead in 0.05 * g + 0.95 * average]
        expected = 0.95 * expected - 0.1 * torch.stack(each)
    torch.testing.assert_close(torch.stack([p.detach() for p in together]), expected)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_every_weight_has_one_optimiser_and_only_matrices_decay(name):
    config = tiny(weight_decay=0.3, time_conditioning=True, optimizer=name, muon_lr=0.5)
    model = DiffusionTransformer(config)
    first, second = training.make_optimizers(model, config)
    groups = [{id(p) for p in o.param_groups[0]["params"]} for o in (first, second)]
    matrices = {id(p) for p in model.blocks.parameters() if p.dim() == 2}
    assert groups == [matrices, {id(p) for p in model.parameters()} - matrices]
    assert (first.defaults["weight_decay"], second.defaults["weight_decay"]) == (0.3, 0)
    assert isinstance(first, training.Muon) == (name == "muon")
    assert first.defaults["lr"] == (0.5 if name == "muon" else config.adamw_lr)
    assert second.defaults["lr"] == config.adamw_lr


def test_float16_scales_the_loss_and_survives_an_overflow(corpus, tmp_path, device_is):
    """The way of an older GPU, on a CPU: a scale that starts far too high."""
    device_is(torch.float16, scale_loss=True)
    run = make_run(corpus, tmp_path)

    def weights_after(step):
        losses.append(
            training_step(run.model, run.optimizers, corpus, run.config, step, run.hardware)
        )
        return torch.cat([p.detach().flatten() for p in run.model.parameters()])

    losses, before = [], torch.cat([p.detach().flatten() for p in run.model.parameters()])
    run.hardware.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    assert torch.equal(weights_after(0), before)  # no step, and a smaller scale
    assert run.hardware.scaler.get_scale() < 2.0**40
    weights = [weights_after(step) for step in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])
    run.save()
    again = make_run(corpus, tmp_path)
    again.restore()
    assert again.hardware.scaler.state_dict() == run.hardware.scaler.state_dict()
    run.model.embedding.weight.register_hook(lambda gradient: gradient * torch.nan)
    assert torch.equal(weights_after(60), weights[-1])  # neither optimiser moves


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


def test_bfloat16_changes_the_bound_little(corpus, device_is):
    figures = []
    for dtype in (torch.float32, torch.bfloat16):
        device_is(dtype)
        figures.append(evaluate(make_model(), corpus.val, max_windows=32)[0])
    assert figures[0] != figures[1] and figures[0] == pytest.approx(figures[1], rel=0.005)


def test_the_simplest_sampler_draws_from_the_models_own_distribution():
    model, n, counts = inconsistent_denoiser(), 3000, {}
    noise = torch.Generator().manual_seed(0)
    for _ in range(n):
        text = tuple(write_one_by_one(model, torch.full((1, 3), MASK), noise)[0].tolist())
        counts[text] = counts.get(text, 0) + 1 / n
    assert total_variation(counts, exact_groups(model, (1, 1, 1))) < 0.05
    assert write_one_by_one(model, torch.tensor([[0, MASK, 2]]), noise)[0, ::2].tolist() == [0, 2]


def test_training_makes_the_saved_model_better(corpus, tmp_path, in_float32):
    run = train(tiny(steps=100, eval_every=50, save_every=100, ema=0.9), corpus, tmp_path)
    assert [row["step"] for row in run.history] == [0, 50, 100]
    assert run.history[-1]["bpb"] < run.history[0]["bpb"] - 0.1
    model, _, metadata = load_checkpoint(run.path, DiffusionTransformer, "cpu")
    assert all(map(torch.equal, model.parameters(), run.model.parameters()))
    raw = load_state(run.resume_path)["model"]["embedding.weight"]
    assert not torch.equal(raw, model.embedding.weight)  # that is the averaged one
    last, figures = metadata["history"][-1], evaluate(model, corpus.val, passes=8)
    expected = [n * len(corpus.val) / math.log(2) / len(TEXT[CUT:]) for n in figures]
    assert [last["bpb"], last["error"]] == pytest.approx(expected)
    assert last["tokens"] == 100 * 6 * 16 and metadata["steps"] == 100  # steps, texts, places
    assert metadata["parameters"] == sum(p.numel() for p in model.parameters())


KINDS = [
    dict(context=1, batch_size=128),
    dict(batch_size=7, accumulation=3),  # parts of unequal size
    dict(batch_size=5, accumulation=5, ema=0.0, warmup=0),
    dict(causal=True, qk_norm=False),
    dict(loss="time", schedule="cosine", optimizer="adamw", time_conditioning=True),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_kind_of_run_trains_and_repeats_itself_bit_for_bit(kind, corpus, tmp_path):
    config = tiny(steps=4, dropout=0.1, **kind)
    one, two = (train(config, corpus, tmp_path / folder) for folder in "ab")
    assert np.isfinite(one.losses).all() and one.losses == two.losses and len(one.losses) == 4
    assert np.isfinite(one.history[-1]["bpb"]) and one.history[-1]["bpb"] == two.history[-1]["bpb"]
    assert all(map(torch.equal, one.model.parameters(), two.model.parameters()))
    load_checkpoint(one.path, DiffusionTransformer)


def test_compiled_blocks_train_alike(corpus, tmp_path):
    if not device_choices(torch.device("cpu")).compile:
        pytest.skip("there is no compiler here, or none that PyTorch can use")
    plain, compiled = (
        train(tiny(steps=3, compile=on), corpus, tmp_path / str(on)).losses for on in (False, True)
    )
    assert plain == pytest.approx(compiled, rel=0.02)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
@pytest.mark.parametrize("causal", [False, True])
def test_cuda_trains_like_the_cpu(causal, corpus, tmp_path):
    cpu, cuda = (
        train(tiny(steps=20, causal=causal), corpus, tmp_path / name, torch.device(name)).losses
        for name in ("cpu", "cuda")
    )
    assert cpu == pytest.approx(cuda, rel=0.05)
