"""Training: the same run whatever interrupts it, checkpoints that come back whole, clear errors."""

import contextlib
import copy
import io
import itertools
import math
import os
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mdlm.training
import train as command_line
from bpe_tokenizer import BPETokenizer, UserError
from mdlm.config import PRESETS, Config
from mdlm.corpus import load_text, split_text, tokenize
from mdlm.diffusion import next_token_nats
from mdlm.model import DiffusionTransformer
from mdlm.training import (
    EMA,
    DeviceChoices,
    Muon,
    Run,
    bits_per_byte,
    covering_windows,
    enough_passes,
    evaluate,
    make_optimizers,
    orthogonalise,
    train,
    training_step,
    warmup_cosine,
)
from saving import (
    load_checkpoint,
    make_ready,
    newest_checkpoint,
    restore_run,
    run_name,
    save_checkpoint,
    save_run,
    stop_button,
)

ROOT = Path(__file__).parent.parent
TEXT = "".join(
    f"And the {n} sons of the {n * n} were {n * n % 97}, as it is written.\n" for n in range(900)
)
TINY = dict(
    n_layers=1, d_model=32, n_heads=2, context=32, vocab_size=300, batch_size=6, warmup=2,
    steps=40, eval_every=20, eval_windows=8, save_every=7, compile=False,
)  # fmt: skip
OPTIONS = [
    f"--{'' if value is not False else 'no-'}{name.replace('_', '-')}"
    + (f"={value}" if value is not False else "")
    for name, value in TINY.items()
] + ["--dropout=0.1"]


@pytest.fixture(scope="module")
def corpus():
    train_text, val_text = TEXT[:40_000], TEXT[40_000:]
    return tokenize(train_text, val_text, BPETokenizer.train(train_text, 300))


def command(folder):
    """`python train.py` with a tiny model, on the text in `folder`, saving there."""
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    files = ["--data", str(folder / "text.txt"), "--folder", str(folder)]
    return [sys.executable, str(ROOT / "train.py"), "--preset", "cpu", *files, *OPTIONS]


def final_state(folder):
    """What a finished run left behind, without the times."""
    state = torch.load(next(folder.glob("*.resume.pt")), weights_only=True)
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in state["history"]]
    weights = [*state["model"].values(), *state["average"]]
    return state["step"], state["losses"], history, weights


# A GPU adds numbers in another order each time; a CPU must come to the same, bit for bit.
NOISE = 1e-3 if torch.cuda.is_available() else 0.0


def assert_equal_runs(one, other):
    assert one[0] == other[0] and one[1] == pytest.approx(other[1], rel=NOISE, abs=NOISE)
    for row, same in zip(one[2], other[2], strict=True):
        assert row == pytest.approx(same, rel=NOISE, abs=NOISE)
    for weights, same in zip(one[3], other[3], strict=True):
        assert torch.allclose(weights, same, rtol=NOISE, atol=10 * NOISE)


def saved_step(folder):
    """The step of the newest state that a run has saved there; 0 if there is none."""
    steps = [0]
    for path in folder.glob("*.pt"):
        with contextlib.suppress(FileNotFoundError):  # it is being replaced just now
            steps.append(torch.load(path, weights_only=True)["step"])
    return max(steps)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL to send")
def test_a_run_killed_again_and_again_ends_like_an_undisturbed_one(tmp_path):
    folders = [tmp_path / name for name in ("undisturbed", "killed")]
    for folder in folders:
        folder.mkdir()
    subprocess.run(command(folders[0]), check=True, capture_output=True, timeout=300)
    expected = final_state(folders[0])
    assert expected[0] == TINY["steps"] == len(expected[1])

    chance, kills = random.Random(0), 0
    while kills < 5:  # at any moment after a new state has been written, saving included
        before = saved_step(folders[1])
        process = subprocess.Popen(command(folders[1]), stderr=subprocess.DEVNULL)
        end = time.monotonic() + 300
        while process.poll() is None and saved_step(folders[1]) == before:
            assert time.monotonic() < end
            time.sleep(0.002)
        time.sleep(0.1 * chance.random())
        process.kill()
        killed = process.wait() == -signal.SIGKILL
        assert killed or process.returncode == 0
        kills += killed
        assert saved_step(folders[1]) > before  # it went on from there
        for path in folders[1].glob("*.safetensors"):
            load_checkpoint(path)  # whatever was killed, this is whole
        if saved_step(folders[1]) == TINY["steps"]:  # from the beginning, for the next kill
            for path in folders[1].glob("*.pt"):
                path.unlink()
    subprocess.run(command(folders[1]), check=True, capture_output=True, timeout=300)
    assert_equal_runs(final_state(folders[1]), expected)
    assert not list(folders[1].glob("*.tmp"))


@pytest.fixture
def in_a_terminal():
    """Ctrl-C interrupts, as in a terminal; a background job would ignore it."""
    usual_handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual_handler)


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c(presses, corpus, tmp_path, monkeypatch, in_a_terminal):
    """Once: it saves. Twice: at once. Both times the run goes on where it was."""
    size = dict(steps=12, eval_every=6, save_every=4, dropout=0.1)
    config = Config(**{**TINY, **size, "vocab_size": corpus.tokenizer.vocab_size})
    whole, usual, steps = train(config, corpus, tmp_path / "whole"), training_step, []

    def step(*arguments):
        steps.append(arguments[-1])
        if steps == [0, 1, 2, 3, 4, 5]:
            for _ in range(presses):
                signal.raise_signal(signal.SIGINT)
        return usual(*arguments)

    monkeypatch.setattr(mdlm.training, "training_step", step)
    with pytest.raises(UserError if presses == 1 else KeyboardInterrupt) as caught:
        train(config, corpus, tmp_path)
    assert presses == 2 or "stopped at step 6 of 12, and saved" in str(caught.value)
    steps.clear()
    again = train(config, corpus, tmp_path)
    assert steps == list(range(6 if presses == 1 else 4, 12))
    assert again.losses == pytest.approx(whole.losses, rel=NOISE, abs=NOISE)
    other = tokenize("x" + TEXT[:40_000], TEXT[40_000:], corpus.tokenizer)
    with pytest.raises(UserError, match="on another text"):
        train(config, other, tmp_path)


def test_ctrl_c_in_the_last_look_breaks_it_off_and_loses_nothing(
    corpus, tmp_path, monkeypatch, in_a_terminal, capsys
):
    size = dict(steps=4, eval_every=4, save_every=4)
    config = Config(**{**TINY, **size, "vocab_size": corpus.tokenizer.vocab_size})

    def pressed(*_, **__):
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("went on")

    with monkeypatch.context() as patch:
        patch.setattr(mdlm.training, "evaluate", pressed)
        with pytest.raises(KeyboardInterrupt):
            train(config, corpus, tmp_path)
    run = train(config, corpus, tmp_path)
    assert [row["step"] for row in run.history] == [4] and len(run.losses) == 4
    assert "from the saved state of step 4 of 4 (to begin anew" in capsys.readouterr().err


def test_ctrl_c_that_ends_a_compiler_is_no_error_of_the_compiler(in_a_terminal):
    with pytest.raises(KeyboardInterrupt), stop_button():
        signal.raise_signal(signal.SIGINT)
        raise RuntimeError("g++ failed")
    with pytest.raises(RuntimeError, match="failed"), stop_button():
        raise RuntimeError("g++ failed")


def test_a_run_of_another_network_is_not_gone_on_with(corpus, tmp_path, monkeypatch):
    config = Config(**{**TINY, "steps": 2, "vocab_size": corpus.tokenizer.vocab_size})
    train(config, corpus, tmp_path)
    usual = mdlm.training.DiffusionTransformer

    def changed(config):
        model = usual(config)
        model.extra = torch.nn.Linear(2, 2)
        return model

    monkeypatch.setattr(mdlm.training, "DiffusionTransformer", changed)
    with pytest.raises(UserError, match=r"has the code been changed.*--restart"):
        train(config, corpus, tmp_path)

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.nn.Module, "load_state_dict", full)
    with pytest.raises(torch.OutOfMemoryError):
        train(config, corpus, tmp_path)


STEPS = [(1e6, 1, False), (1e6, 4, False), (0.5, 4, True)]  # 4 of 6 texts: three parts of 2


@pytest.mark.parametrize(("clip", "accumulation", "scaled"), STEPS)
def test_a_step_follows_the_clipped_gradient_of_the_whole_batch(
    clip, accumulation, scaled, corpus, tmp_path, monkeypatch, in_float32
):
    """Worked out by hand, with plain gradient descent in place of Muon and AdamW."""
    settings = dict(clip=clip, accumulation=accumulation, muon_lr=0.5, adamw_lr=0.25)
    config = Config(**{**TINY, **settings})
    run = Run(config, corpus, tmp_path, torch.device("cpu"))
    plain = [torch.optim.SGD(o.param_groups[0]["params"]) for o in run.optimizers]
    by_hand, asked, usual = copy.deepcopy(run.model), [], mdlm.training.loss_in_nats

    def watched(model, x, k, noise):
        asked.append((x, k, noise.get_state()))
        return usual(model, x, k, noise)

    monkeypatch.setattr(mdlm.training, "loss_in_nats", watched)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
    total = training_step(run.model, plain, scaler, corpus, config, 5)
    loss = 0.0
    for x, k, state in asked:
        noise = torch.Generator()
        noise.set_state(state)
        part = usual(by_hand, x, k, noise).sum() / (6 * 32)
        part.backward()
        loss += part.item()
    assert len(asked) == (1 if accumulation == 1 else 3)
    assert total.item() == pytest.approx(loss, abs=1e-5)
    norm = math.sqrt(sum(p.grad.pow(2).sum().item() for p in by_hand.parameters()))
    assert norm > 1  # else clipping at a half would test little
    rate = (0.55 + 0.45 * math.cos(math.pi * 3 / 38)) * min(1, clip / norm)
    for (name, p), q in zip(by_hand.named_parameters(), run.model.parameters(), strict=True):
        peak = 0.5 if name.startswith("blocks") and p.dim() == 2 else 0.25
        torch.testing.assert_close(q, p - peak * rate * p.grad, rtol=0, atol=1e-5)


def test_steps_draw_every_window_equally_often_and_never_the_same_batch(monkeypatch):
    config, seen = Config(**{**TINY, "context": 16, "steps": 200}), []

    def loss(model, x, k, noise=None):
        seen.append(tuple(x[:, 0].tolist()))
        return model.embedding.weight.sum() * 0 + torch.zeros(len(x))

    monkeypatch.setattr(mdlm.training, "loss_in_nats", loss)
    model = DiffusionTransformer(config)
    corpus = SimpleNamespace(train=np.arange(20, dtype=np.uint16))  # 5 places to start at
    still = [torch.optim.SGD([p], lr=0.0) for p in list(model.parameters())[:2]]
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for step in range(200):
        training_step(model, still, scaler, corpus, config, step)
    counts = np.bincount([start for batch in seen for start in batch], minlength=5)
    chi_square = ((counts - 240) ** 2 / 240).sum()
    assert len(counts) == 5 and chi_square < 4 + 4 * math.sqrt(8)
    assert len(set(seen)) > 190
    training_step(model, still, scaler, corpus, replace(config, seed=2), 0)
    assert seen[-1] != seen[0]


def test_the_learning_rate_rises_and_falls():
    config = Config(**{**TINY, "warmup": 10, "steps": 110})
    rate = [warmup_cosine(step, config) for step in range(110)]
    assert rate[:10] == [(step + 1) / 10 for step in range(10)] and rate[10] == 1
    assert rate[60] == pytest.approx(0.55) and 0.1 < rate[109] < 0.101
    assert rate[10:] == sorted(rate[10:], reverse=True)


def test_the_average_is_the_weighted_sum_it_claims():
    p = torch.nn.Parameter(torch.zeros(1))
    ema, average = EMA(torch.nn.ParameterList([p]), 0.9), 0.0
    values = torch.randn(200, generator=torch.Generator().manual_seed(0)).tolist()
    for n, value in enumerate(values, 1):
        p.data.fill_(value)
        ema.update()
        decay = min(0.9, n / (n + 10))
        average = decay * average + (1 - decay) * value
    assert ema.average[0].item() == pytest.approx(average, abs=1e-5)
    with ema.applied():
        assert p.item() == pytest.approx(average, abs=1e-5)
    assert p.item() == pytest.approx(values[-1])


@torch.no_grad()
def test_the_bound_of_a_text_is_that_of_all_its_windows(in_float32):
    """Against every way to mask; and the reported error is the spread of such figures."""
    torch.manual_seed(0)
    shape = dict(n_layers=1, d_model=32, n_heads=2, vocab_size=300, compile=False)
    config = Config(**shape, context=8, causal=True, batch_size=3)
    twin = DiffusionTransformer(config).eval()
    x = torch.randint(299, (43,))  # five windows, and three tokens more
    exact = sum(next_token_nats(twin, x[None, i : i + 8]).item() for i in range(0, 43, 8))
    for passes in (1, 3):
        nats, error = evaluate(twin, x.numpy(), config, passes=passes)
        assert nats == pytest.approx(exact / 43, rel=1e-5) and error == 0

    config = Config(**shape, context=3, batch_size=999)
    model = DiffusionTransformer(config).eval()
    for p in model.parameters():
        p.data *= 3  # far from uniform

    def bound(x):
        total = 0.0
        for k in range(1, len(x) + 1):
            ways = list(itertools.combinations(range(len(x)), k))
            for way in map(list, ways):
                z = x.clone()
                z[way] = model.mask_id
                total -= model(z[None])[0].gather(-1, x[:, None])[way].sum().item() / len(ways) / k
        return total

    text = torch.tensor([5, 200, 7])
    tokens = np.array([*text.tolist()] * 300 + [5, 200])
    expected = (300 * bound(text) + bound(text[:2])) / 902
    means, errors = zip(*[evaluate(model, tokens, config, seed=s) for s in range(300)], strict=True)
    assert abs(np.mean(means) - expected) < 4 * np.mean(errors) / math.sqrt(300)
    assert np.std(means) == pytest.approx(np.mean(errors), rel=0.2)
    nats, error = evaluate(model, tokens, config, passes=8)
    assert abs(nats - expected) < 4 * error < 4 * np.mean(errors) / 2


def test_a_look_takes_windows_from_all_over_the_text():
    full, *rest = covering_windows(np.arange(103), 10, 1, 4)
    assert full[:, 0].tolist() == [0, 30, 60, 90] and not rest
    full, rest = covering_windows(np.arange(23), 10, 2, None)
    assert full[:, 0].tolist() == [0, 10, 0, 10] and rest[:, 0].tolist() == [20, 20]


def test_without_averaging_the_average_is_the_model_itself(corpus, tmp_path):
    config = Config(**{**TINY, "ema": 0.0, "vocab_size": corpus.tokenizer.vocab_size})
    run = train(config, corpus, tmp_path)
    state = torch.load(run.resume_path, weights_only=True)
    assert state["n_updates"] == config.steps
    weights = [state["model"][name] for name, _ in run.model.named_parameters()]
    assert all(map(torch.equal, weights, state["average"]))


def test_the_seed_decides_the_first_weights(corpus, tmp_path):
    runs = [Run(Config(**TINY, seed=s), corpus, tmp_path, torch.device("cpu")) for s in (1, 2, 2)]
    one, two, same = (run.model.embedding.weight for run in runs)
    assert torch.equal(two, same) and not torch.equal(one, two)


def test_what_a_killed_run_left_is_removed_and_nothing_else(corpus, tmp_path):
    run = Run(Config(**TINY), corpus, tmp_path)
    left, other = tmp_path / f"{run.path.name}.1.tmp", tmp_path / "other.safetensors.1.tmp"
    left.touch()
    other.touch()
    make_ready(run)
    assert not left.exists() and other.exists()


def test_bytes_are_counted_once_and_in_utf8():
    whole = "é" * 900 + "大" * 101
    parts = split_text(whole)
    assert "".join(parts) == whole and len(parts[1]) == 101
    corpus = tokenize(*parts, BPETokenizer.train("a b", 300))
    assert (corpus.train_bytes, corpus.val_bytes) == tuple(len(part.encode()) for part in parts)


def test_a_long_validation_text_is_read_once_and_says_how_far_it_is(corpus):
    config = Config(**{**TINY, "vocab_size": corpus.tokenizer.vocab_size})
    reads = [enough_passes(range(n), config) for n in (1, 10**5, 3 * 10**5, 10**8)]
    assert reads == [8, 8, 3, 1]
    assert enough_passes(range(100), replace(config, causal=True)) == 1
    parts = []
    evaluate(DiffusionTransformer(config), corpus.val, config, passes=2, progress=parts.append)
    assert parts == sorted(parts) and parts[0] == 0 and parts[-1] == 1


def test_broken_off_while_validating_at_the_end_no_step_is_lost(corpus, tmp_path, monkeypatch):
    config = Config(**{**TINY, "save_every": 10**6, "vocab_size": corpus.tokenizer.vocab_size})
    whole = train(config, corpus, tmp_path / "whole")
    usual = mdlm.training.validate

    def validate(run, progress):
        if run.step == config.steps:
            raise KeyboardInterrupt
        usual(run, progress)

    monkeypatch.setattr(mdlm.training, "validate", validate)
    with pytest.raises(KeyboardInterrupt):
        train(config, corpus, tmp_path)
    monkeypatch.setattr(mdlm.training, "validate", usual)
    monkeypatch.setattr(mdlm.training, "training_step", None)  # nothing to train is left
    again = train(config, corpus, tmp_path)
    bounds = [[h["bpb"] for h in run.history] for run in (again, whole)]
    assert bounds[0] == pytest.approx(bounds[1], rel=NOISE, abs=NOISE)
    assert again.history[-1]["step"] == config.steps
    # what is returned, saved and measured are the averaged weights
    loaded, _, _ = load_checkpoint(whole.path)
    for p, q in zip(loaded.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(p, q)
    raw = torch.load(whole.resume_path, weights_only=True)["model"]
    assert not torch.equal(raw["embedding.weight"], whole.model.embedding.weight.cpu())
    passes = enough_passes(corpus.val, config)
    nats, error = evaluate(whole.model, corpus.val, config, passes=passes)
    scale = len(corpus.val) / (math.log(2) * len(TEXT[40_000:].encode()))
    assert whole.history[-1]["bpb"] == pytest.approx(nats * scale, rel=1e-6 + NOISE)
    assert whole.history[-1]["error"] == pytest.approx(error * scale, rel=1e-6 + NOISE)


@pytest.mark.parametrize("shape", [(64, 24), (24, 64)])
def test_muon_goes_down_every_direction_alike(shape, in_float32):
    noise = torch.Generator().manual_seed(0)
    gradient = torch.randn(shape, generator=noise)
    strengths = torch.linalg.svdvals(orthogonalise(gradient))
    assert strengths.min() > 0.6 and strengths.max() < 1.3
    p = torch.nn.Parameter(torch.zeros(shape))
    p.grad = gradient
    Muon([p], lr=0.1).step()
    u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
    moved = u.T @ p.detach() @ vh.T / (-0.1 * max(1, shape[0] / shape[1]) ** 0.5)
    assert moved.diagonal().min() > 0.6 and moved.diagonal().max() < 1.3
    assert (moved - moved.diagonal().diag()).abs().max() < 0.05


def test_muon_decays_weights_and_looks_ahead():
    p = torch.nn.Parameter(torch.ones(4, 6))
    optimizer = Muon([p], lr=0.1, weight_decay=0.5)
    for _ in range(3):
        p.grad = torch.zeros(4, 6)
        optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((4, 6), 0.95**3))
    p = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer, average = Muon([p], lr=0.1), 0.0
    for g in (1.0, -2.0, 4.0):
        p.grad = torch.full((2, 2), g)
        average = 0.95 * average + 0.05 * g
        expected = torch.full((2, 2), 0.05 * g + 0.95 * average)  # Nesterov's momentum
        torch.testing.assert_close(optimizer.look_ahead(p, 0.95), expected)


@pytest.mark.parametrize("timed", [False, True])
def test_every_weight_has_one_optimiser(timed):
    config = Config(**TINY, weight_decay=0.3, time_conditioning=timed)
    model = DiffusionTransformer(config)
    muon, adamw = make_optimizers(model, config)
    name = {id(p): n for n, p in model.named_parameters()}
    of_muon, of_adamw = (
        [name[id(p)] for p in optimizer.param_groups[0]["params"]] for optimizer in (muon, adamw)
    )
    assert sorted(of_muon + of_adamw) == sorted(name.values())
    matrices = {n for n, p in model.named_parameters() if n.startswith("blocks") and p.dim() == 2}
    assert set(of_muon) == matrices
    assert muon.param_groups[0]["weight_decay"] == 0.3
    assert adamw.param_groups[0]["weight_decay"] == 0


def test_muon_moves_a_stack_of_matrices_as_it_moves_each(monkeypatch):
    moved = []
    for in_stacks in (mdlm.training.in_stacks, lambda matrices: [[p] for p in matrices]):
        monkeypatch.setattr(mdlm.training, "in_stacks", in_stacks)
        noise = torch.Generator().manual_seed(0)
        matrices = [torch.nn.Parameter(torch.randn(24, 64, generator=noise)) for _ in range(3)]
        optimizer = Muon(matrices, lr=0.1, weight_decay=0.1)
        for _ in range(3):
            for p in matrices:
                p.grad = torch.randn(24, 64, generator=noise)
            optimizer.step()
        moved.append(torch.stack([p.detach() for p in matrices]))
    assert torch.allclose(*moved, atol=0.01)  # in bfloat16, the two may round differently


def test_checkpoint_round_trip(corpus, tmp_path):
    config = Config(
        **{**TINY, "vocab_size": corpus.tokenizer.vocab_size, "time_conditioning": True}
    )
    model, path = DiffusionTransformer(config).eval(), tmp_path / "model.safetensors"
    for p in model.parameters():
        torch.nn.init.normal_(p)  # as it begins, the time changes nothing
    save_checkpoint(path, model, corpus.tokenizer, {"steps": 3})
    loaded, tokenizer, facts = load_checkpoint(path, "cpu")
    z, t = torch.full((2, 32), model.mask_id), torch.tensor([0.2, 0.9])
    assert torch.equal(loaded(z, t), model(z, t))
    assert not torch.equal(model(z, t), model(z, t.flip(0)))
    assert loaded.config == config
    assert tokenizer.encode(TEXT) == corpus.tokenizer.encode(TEXT)
    assert facts == {"steps": 3}


BAD_OPTIONS = {
    "--data=missing.txt": "cannot be read",
    "--vocab-size=256": "from 257",
    "--vocab-size=2000000": "to 1,000,000",
    "--d-model=30": "try 28",
    "--steps=0": "greater than 0",
    "--muon-lr=nan": "greater than 0",
    "--accumulation=7": "6 at most",
    "--context=60000": "too short",
    "--context=100000": "at most 65536",
}


@pytest.mark.parametrize("option", BAD_OPTIONS)
def test_bad_option_gets_one_line(option, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    files = ["--data", str(tmp_path / "text.txt"), "--folder", str(tmp_path / "new")]
    assert_one_line([*files, *OPTIONS, option], BAD_OPTIONS[option], capsys)


def test_the_twin_is_told_no_time():
    with pytest.raises(UserError, match="knows no time"):
        Config(**TINY, causal=True, time_conditioning=True)


def assert_one_line(arguments, message, capsys):
    """train.py answers in one line on stderr, with exit code 2."""
    assert command_line.main(["--preset", "cpu", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0], lines


def test_no_network(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(UserError, match="is there a network"):
        load_text("shakespeare", tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_bytes_than_shakespeare(tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"To be"))
    with pytest.raises(UserError, match="SHA-256 differs"):
        load_text("shakespeare", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("field", Config.__dataclass_fields__)
def test_only_settings_that_do_not_matter_share_a_run(field):
    config = Config(**TINY)
    value = getattr(config, field)
    if type(value) is bool:
        other = not value
    elif type(value) is int:
        other = value + 1
    else:
        other = {"corpus": "novel.txt"}.get(field) or (value or 1) / 2
    other = {"d_model": 64, "n_heads": 1}.get(field, other)
    free = {"eval_every", "save_every", "compile", "activation_checkpointing"}
    same = run_name(replace(config, **{field: other})) == run_name(config)
    assert same == (field in free)


def test_the_newest_checkpoint(tmp_path):
    for age, name in enumerate(["b", "a", "c-twin", "d-twin"]):
        path = tmp_path / f"{name}.safetensors"
        path.touch()
        os.utime(path, (9 - age, 9 - age))
    assert newest_checkpoint(tmp_path).stem == "b"
    assert newest_checkpoint(tmp_path, twin=True).stem == "c-twin"
    (tmp_path / "kjv.safetensors").touch()  # just pulled: newer, but not what was trained last
    assert newest_checkpoint(tmp_path).stem == "b"
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").unlink()
    assert newest_checkpoint(tmp_path).stem == "kjv"
    with pytest.raises(UserError, match="no checkpoint"):
        newest_checkpoint(tmp_path / "none")


BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32
DEVICES = [  # (device, what it is said to have, dtype, scale_loss, compile, pin)
    ("cuda", dict(bf16=True, triton=True, gxx=True), DeviceChoices(BFLOAT16, False, True, True)),
    ("cuda", dict(bf16=True, triton=False, gxx=True), DeviceChoices(BFLOAT16, False, False, True)),
    ("cuda", dict(bf16=True, triton=True, gxx=False), DeviceChoices(BFLOAT16, False, False, True)),
    ("cuda", dict(bf16=False, triton=True, gxx=True), DeviceChoices(FLOAT16, True, True, True)),
    (
        "cuda",
        dict(bf16=False, triton=True, gxx=True, capability=(6, 0)),
        DeviceChoices(FLOAT16, True, False, True),
    ),
    (
        "cuda",
        dict(bf16=True, triton=True, gxx=True, header=False),
        DeviceChoices(BFLOAT16, False, False, True),
    ),
    ("cpu", dict(avx512_bf16=True, gxx=True), DeviceChoices(BFLOAT16, False, True, False)),
    ("cpu", dict(amx_bf16=True, gxx=False), DeviceChoices(BFLOAT16, False, False, False)),
    ("cpu", dict(avx2=True, gxx=True), DeviceChoices(FLOAT32, False, True, False)),
    ("cpu", dict(gxx=True, system="win32"), DeviceChoices(FLOAT32, False, False, False)),
    ("cpu", dict(gxx=True, header=False), DeviceChoices(FLOAT32, False, False, False)),
    ("mps", dict(gxx=True), DeviceChoices(FLOAT32, False, False, False)),
]


@pytest.mark.parametrize(("name", "has", "expected"), DEVICES)
def test_each_device_gets_what_suits_it(name, has, expected, monkeypatch, tmp_path):
    if has.get("header", True):
        (tmp_path / "Python.h").touch()
    gxx, triton = "g++" if has.get("gxx") else None, object() if has.get("triton") else None
    bf16 = lambda including_emulation: has["bf16"]  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", bf16)
    capability = has.get("capability", (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    monkeypatch.setattr(sys, "platform", has.get("system", "linux"))
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr("shutil.which", lambda command: gxx)
    monkeypatch.setattr("importlib.util.find_spec", lambda package: triton)
    choices = mdlm.training.device_choices.__wrapped__(torch.device(name))
    monkeypatch.undo()
    assert choices == expected


MACHINES = [  # (capability of the CUDA GPU, MPS, instructions of the CPU, hardware threads, preset)
    ((7, 5), False, {}, 2, "cuda"),
    ((12, 1), False, {}, 2, "cuda"),
    ((8, 6), False, {}, 2, "cuda"),
    ((8, 0), False, {}, 2, "small"),  # its own code is for 8.6
    ((10, 0), False, {}, 2, "small"),  # newer than the code for 9.0, older than the portable code
    ((7, 0), False, {}, 2, "small"),  # older than the code in this PyTorch
    (None, True, {}, 2, "cpu"),
    (None, False, dict(avx2=True, avx512_bf16=True), 2, "cpu"),
    (None, False, dict(avx2=True, amx_bf16=True), 2, "cpu"),
    (None, False, dict(avx2=True, avx512_bf16=False), 16, "cpu"),
    (None, False, dict(avx2=True, avx512_bf16=False), 15, "small"),
    (None, False, dict(avx2=True), 2, "small"),
]


@pytest.mark.parametrize(("cuda", "mps", "has", "threads", "expected"), MACHINES)
def test_each_machine_gets_the_preset_that_suits_it(cuda, mps, has, threads, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: cuda)
    monkeypatch.setattr(
        torch.cuda, "get_arch_list", lambda: ["sm_90a", "sm_75", "sm_86", "compute_120"]
    )
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    monkeypatch.setattr(mdlm.config, "n_hardware_threads", lambda: threads)
    assert command_line.parse_arguments(["--steps", "7"])[0] == Config(
        **{**PRESETS[expected], "steps": 7}
    )


def like_a_t4(monkeypatch):
    """From now on products are in float16, and the loss is scaled."""
    choices = DeviceChoices(torch.float16, scale_loss=True, compile=False, pin=False)
    monkeypatch.setattr(mdlm.training, "device_choices", lambda device: choices)


def test_float16_training_scales_the_loss_and_survives_an_overflow(corpus, tmp_path, monkeypatch):
    """The way of a T4, on a CPU: float16 products, and a GradScaler that starts far too high."""
    like_a_t4(monkeypatch)
    run = Run(Config(**TINY), corpus, tmp_path, torch.device("cpu"))
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = [p.detach().clone() for p in run.model.parameters()]
    training_step(run.model, run.optimizers, run.scaler, corpus, run.config, step=0)
    assert run.scaler.get_scale() < 2.0**40  # infinite gradients: no step, a smaller scale
    assert all(torch.equal(p, q) for p, q in zip(run.model.parameters(), before, strict=True))
    losses = [
        training_step(run.model, run.optimizers, run.scaler, corpus, run.config, step).item()
        for step in range(60)
    ]
    assert sum(losses[-10:]) < sum(losses[:10])
    state = run.scaler.state_dict()
    save_run(run)
    again = Run(Config(**TINY), corpus, tmp_path, torch.device("cpu"))
    restore_run(again)
    assert again.scaler.state_dict() == state


def test_a_gradient_that_is_no_number_moves_neither_optimiser(corpus, tmp_path, monkeypatch):
    like_a_t4(monkeypatch)
    run = Run(Config(**TINY), corpus, tmp_path, torch.device("cpu"))
    run.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    before = [p.detach().clone() for p in run.model.parameters()]
    run.model.embedding.weight.register_hook(lambda gradient: gradient * torch.nan)
    training_step(run.model, run.optimizers, run.scaler, corpus, run.config, step=0)
    assert run.scaler.get_scale() == 8
    assert all(torch.equal(p, q) for p, q in zip(run.model.parameters(), before, strict=True))


def test_a_run_moves_to_a_device_that_scales_its_loss(corpus, tmp_path, monkeypatch):
    run = Run(Config(**TINY), corpus, tmp_path, torch.device("cpu"))
    run.step = 3
    save_run(run)
    like_a_t4(monkeypatch)
    again = Run(Config(**TINY), corpus, tmp_path, torch.device("cpu"))
    restore_run(again)
    assert again.step == 3 and again.scaler.is_enabled()


@pytest.mark.skipif(
    not mdlm.training.device_choices(torch.device("cpu")).compile,
    reason="there is no compiler here, or none that PyTorch can use",
)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # within PyTorch
def test_compiled_blocks_train_alike(corpus, tmp_path):
    losses = []
    for on in (False, True):
        config = Config(**{**TINY, "compile": on, "vocab_size": corpus.tokenizer.vocab_size})
        run = Run(config, corpus, tmp_path, torch.device("cpu"))
        losses.append(
            [
                training_step(run.model, run.optimizers, run.scaler, corpus, config, s).item()
                for s in range(3)
            ]
        )
        evaluate(run.model, corpus.val, config, max_windows=4)
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
        MemoryError(),
    ],
    ids=["cuda", "mps", "windows", "linux", "numpy"],
)
def test_a_full_memory_says_what_to_do(error, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise error

    monkeypatch.setattr(mdlm.training, "training_step", full)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    files = ["--data", str(tmp_path / "text.txt"), "--folder", str(tmp_path)]
    command = ["--preset", "cpu", *files, *OPTIONS]
    assert command_line.main(command) == 1
    advice = capsys.readouterr().err
    assert "--accumulation 2" in advice and "--activation-checkpointing" in advice
    assert command_line.main([*command, "--activation-checkpointing", "--accumulation", "6"]) == 1
    advice = capsys.readouterr().err  # what is done already does not help
    assert "smaller --batch-size" in advice and "--a" not in advice


def test_training_makes_the_saved_model_better(corpus, tmp_path):
    settings = dict(steps=120, eval_every=20, save_every=120, ema=0.9)
    config = Config(**{**TINY, **settings, "vocab_size": corpus.tokenizer.vocab_size})
    run = train(config, corpus, tmp_path, torch.device("cpu"))
    assert run.history[-1]["bpb"] < run.history[0]["bpb"] - 0.1
    model, _, _ = load_checkpoint(run.path, "cpu")
    nats, _ = evaluate(model, corpus.val, config, passes=4)
    bpb = bits_per_byte(nats, len(corpus.val), corpus.val_bytes)
    assert bpb == pytest.approx(run.history[-1]["bpb"], abs=0.1)


def test_a_finished_run_writes_its_checkpoint_again(corpus, tmp_path):
    config = Config(**{**TINY, "steps": 4, "vocab_size": corpus.tokenizer.vocab_size})
    run = train(config, corpus, tmp_path, torch.device("cpu"))
    before, _, facts = load_checkpoint(run.path, "cpu")
    run.path.unlink()
    train(config, corpus, tmp_path, torch.device("cpu"))
    again, _, same_facts = load_checkpoint(run.path, "cpu")
    assert same_facts == facts
    assert all(map(torch.equal, again.parameters(), before.parameters()))


def test_each_step_and_part_drops_something_else(corpus, monkeypatch):
    config, seen = Config(**{**TINY, "accumulation": 3, "dropout": 0.5}), []

    def loss(model, x, k, noise):
        seen.append(tuple(torch.rand(4).tolist()))  # what dropout would draw next
        return 0 * sum(p.sum() for p in model.parameters()) + torch.zeros(len(x))

    monkeypatch.setattr(mdlm.training, "loss_in_nats", loss)
    model, scaler = DiffusionTransformer(config), torch.amp.GradScaler("cpu", enabled=False)
    for step in range(3):
        training_step(model, make_optimizers(model, config), scaler, corpus, config, step)
    assert len(set(seen)) == 9


def test_initial_weights_are_small():
    model = DiffusionTransformer(Config(n_layers=8))
    for name, p in model.named_parameters():
        if p.dim() == 2:
            residual = name.endswith(("out.weight", "down.weight"))
            assert p.std().item() == pytest.approx(0.005 if residual else 0.02, rel=0.05), name


def test_the_rates_are_those_that_were_measured():
    config = Config(**PRESETS["small"])
    muon, adamw = make_optimizers(DiffusionTransformer(config), config)
    assert muon.param_groups[0]["momentum"] == 0.95
    assert adamw.param_groups[0]["betas"] == (0.9, 0.95)
    assert (config.muon_lr, config.adamw_lr, config.dropout) == (0.0025, 6e-3, 0.0)
    assert (PRESETS["cuda"]["adamw_lr"], PRESETS["cuda"]["dropout"]) == (1e-3, 0.1)


def test_restart_begins_at_the_first_step(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    files = ["--data", str(tmp_path / "text.txt"), "--folder", str(tmp_path)]
    arguments, steps, usual = ["--preset", "cpu", *files, *OPTIONS], [], training_step
    assert command_line.main(arguments) == 0

    def step(*given):
        steps.append(given[-1])
        return usual(*given)

    monkeypatch.setattr(mdlm.training, "training_step", step)
    assert command_line.main([*arguments, "--restart"]) == 0
    assert steps == list(range(TINY["steps"]))


def test_a_causal_model_is_shipped_as_a_twin(tmp_path, capsys):
    arguments = ["--preset", "small", "--causal", "--ship", str(tmp_path / "mine.safetensors")]
    assert command_line.main(arguments) == 2
    assert "-twin.safetensors" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@torch.no_grad()
def test_on_cuda_the_twin_sees_only_the_past():
    model = DiffusionTransformer(Config(**{**TINY, "causal": True})).cuda()
    x = torch.randint(256, (2, 16)).cuda()
    before = model.features(x)[:, :9]
    x[:, 9:] = 0
    torch.testing.assert_close(model.features(x)[:, :9], before, atol=1e-3, rtol=1e-3)


def test_validation_takes_no_more_texts_at_once_than_training(corpus):
    """A batch in parts, because memory is short: a look at the validation text must fit, too."""
    figures, sizes = [], []
    for accumulation in (1, 3):
        config = Config(**{**TINY, "batch_size": 16, "accumulation": accumulation})
        torch.manual_seed(0)
        model = DiffusionTransformer(config)
        model.blocks[0].register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        figures.append(evaluate(model, corpus.val, config, max_windows=32))
        assert max(sizes) == (16, 6)[len(figures) - 1]
        sizes.clear()
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)


def test_checkpointing_with_dropout_is_refused_where_it_would_be_wrong(corpus, tmp_path):
    config = Config(**{**TINY, "activation_checkpointing": True, "dropout": 0.1})
    with pytest.raises(UserError, match="set dropout to 0"):
        Run(config, corpus, tmp_path, torch.device("mps"))


def test_more_processes_than_gpus_is_one_line(monkeypatch, capsys):
    for name, value in dict(RANK="0", LOCAL_RANK="0", LOCAL_WORLD_SIZE="4").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(command_line, "pick_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert command_line.main(["--preset", "small"]) == 2
    assert capsys.readouterr().err == "train.py: 4 processes, but 2 GPU(s): one process for each\n"


def test_dropout_is_for_training_and_checkpointing_computes_twice(corpus, tmp_path):
    settings = dict(dropout=0.5, activation_checkpointing=True)
    config = Config(**{**TINY, **settings, "vocab_size": corpus.tokenizer.vocab_size})
    model, calls = DiffusionTransformer(config).train(), []
    x = torch.randint(299, (2, 32))
    hook = model.blocks[0].norm1.register_forward_pre_hook(lambda *_: calls.append(1))
    model.features(x).sum().backward()
    assert len(calls) == 2
    hook.remove()
    assert not torch.equal(model.features(x), model.features(x))
    looks = [evaluate(model, corpus.val, config, 8) for _ in range(2)]
    assert looks[0] == looks[1]
    save_checkpoint(tmp_path / "model.safetensors", model, corpus.tokenizer, {})
    assert not load_checkpoint(tmp_path / "model.safetensors", "cpu")[0].training


def test_activation_checkpointing_changes_nothing_but_memory(corpus, tmp_path):
    weights = []
    for on in (False, True):
        config = Config(**{**TINY, "activation_checkpointing": on, "dropout": 0.1})
        run = Run(config, corpus, tmp_path, torch.device("cpu"))
        for step in range(3):
            training_step(run.model, run.optimizers, run.scaler, corpus, config, step)
        weights.append(torch.cat([p.detach().flatten() for p in run.model.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
def test_on_cuda_muon_moves_matrices_of_all_shapes_as_on_the_cpu():
    moved = []
    for device in ("cpu", "cuda"):
        noise = torch.Generator().manual_seed(0)
        shapes = [(24, 64), (64, 24), (24, 64)]
        matrices = [torch.nn.Parameter(torch.zeros(shape, device=device)) for shape in shapes]
        optimizer = Muon(matrices, lr=0.1)
        for _ in range(3):
            for p in matrices:
                p.grad = torch.randn(p.shape, generator=noise).to(device)
            optimizer.step()
        moved.append(torch.cat([p.detach().cpu().flatten() for p in matrices]))
    assert torch.allclose(*moved, atol=0.02)  # one of them in bfloat16, perhaps


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
def test_cuda_trains_like_the_cpu(corpus, tmp_path):
    losses = []
    for device in ("cpu", "cuda"):
        run = Run(Config(**TINY), corpus, tmp_path, torch.device(device))
        steps = range(20)
        losses.append(
            [
                training_step(run.model, run.optimizers, run.scaler, corpus, run.config, s).item()
                for s in steps
            ]
        )
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_at_reduced_size(preset, tmp_path):
    """What a preset says of batches, rates, dropout and direction stays; sizes and steps shrink."""
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    small = dict(n_layers=2, d_model=32, n_heads=2, context=32, vocab_size=300, steps=12, warmup=2)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in small.items()]
    files = ["--data", str(tmp_path / "text.txt"), "--folder", str(tmp_path)]
    shipped = tmp_path / f"{preset}.safetensors"
    arguments = ["--preset", preset, *files, *options, "--no-compile", "--ship", str(shipped)]
    assert command_line.main(arguments) == 0
    model, _, facts = load_checkpoint(shipped, "cpu")
    assert model.config == Config(
        **{**PRESETS[preset], **small, "corpus": str(tmp_path / "text.txt"), "compile": False}
    )
    assert facts["steps"] == 12 and facts["bpb"] == pytest.approx(facts["history"][-1]["bpb"], 0.02)
    assert facts["error"] == pytest.approx(facts["history"][-1]["error"], rel=0.1)
    full = next(path for path in tmp_path.glob("*.safetensors") if path != shipped)
    assert shipped.stat().st_size < 0.8 * full.stat().st_size  # two bytes a weight, not four


@pytest.mark.parametrize("causal", [False, True])
def test_a_run_that_has_learned_by_heart_says_when_it_was_best(causal, capsys):
    for end, told in ((1.52, False), (1.8, True)):
        rows = [(100, 1.7), (200, 1.5), (300, end)]
        history = [dict(step=step, bpb=bpb, error=0.01) for step, bpb in rows]
        config = Config(**TINY, causal=causal)
        run = SimpleNamespace(path="x", step=300, seconds=60.0, history=history, config=config)
        command_line.finish(run, SimpleNamespace(ship=None))
        said = capsys.readouterr().out
        assert ("--steps 200" in said) == told
        assert ("at most" in said) != causal and f"{end:.3f} ± 0.010 bits per byte" in said


@pytest.mark.parametrize(
    ("name", "preset"), [("kjv", "shipped"), ("kjv-twin", "shipped-twin")], ids=["kjv", "twin"]
)
def test_the_shipped_models_are_what_their_card_says(name, preset):
    path = ROOT / "checkpoints" / f"{name}.safetensors"
    assert path.stat().st_size < 15_000_000
    model, tokenizer, facts = load_checkpoint(path, "cpu")
    assert model.config == Config(**PRESETS[preset])
    text = split_text(load_text("kjv", ROOT / "data"))[1]
    tokens = np.array(tokenizer.encode(text))
    nats, error = evaluate(model, tokens, model.config, max_windows=64)
    bpb, error = (bits_per_byte(n, len(tokens), len(text.encode("utf-8"))) for n in (nats, error))
    assert bpb == pytest.approx(facts["bpb"], abs=4 * error)
    card = (ROOT / "checkpoints" / "README.md").read_text(encoding="utf-8")
    assert f"{facts['bpb']:.3f}" in card and f"{facts['parameters']:,}" in card


def test_a_corpus_saved_by_hand_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", None)
    (tmp_path / "shakespeare.txt").write_text("To be", encoding="utf-8")
    assert load_text("shakespeare", tmp_path) == "To be"
