"""Training: the same run whatever interrupts it, checkpoints that come back whole, clear errors."""

import contextlib
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
from mdlm.model import DiffusionTransformer
from mdlm.sampling import noise_grid, sample, template
from mdlm.training import (
    DeviceChoices,
    Muon,
    Run,
    bits_per_byte,
    enough_passes,
    evaluate,
    load_checkpoint,
    orthogonalise,
    save_checkpoint,
    train,
    training_step,
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


def when_saved(folder):
    """When a run's state was last written, in nanoseconds; 0 if there is none."""
    for path in folder.glob("*.resume.pt"):
        with contextlib.suppress(FileNotFoundError):  # it is being replaced just now
            return path.stat().st_mtime_ns
    return 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL to send")
def test_killed_and_stopped_runs_end_like_an_undisturbed_one(tmp_path):
    folders = [tmp_path / name for name in ("undisturbed", "killed", "stopped")]
    for folder in folders:
        folder.mkdir()
    subprocess.run(command(folders[0]), check=True, capture_output=True)
    expected = final_state(folders[0])
    assert expected[0] == TINY["steps"] == len(expected[1])

    chance, kills = random.Random(0), 0
    while kills < 12:  # at any moment after a new state has been written, saving included
        before = when_saved(folders[1])
        process = subprocess.Popen(command(folders[1]), stderr=subprocess.DEVNULL)
        while process.poll() is None and when_saved(folders[1]) == before:
            time.sleep(0.002)
        time.sleep(0.1 * chance.random())
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        for path in folders[1].glob("*.safetensors"):
            load_checkpoint(path)  # whatever was killed, this is whole
        if process.returncode == 0:  # it was done before we came
            for path in folders[1].glob("*.pt"):
                path.unlink()
    subprocess.run(command(folders[1]), check=True, capture_output=True)
    assert_equal_runs(final_state(folders[1]), expected)

    process = subprocess.Popen(command(folders[2]), stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(folders[2].glob("*.safetensors")):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    message = process.communicate()[1]
    if process.returncode:  # on a fast machine it may have finished before the signal came
        assert process.returncode == 2
        assert "and saved: run again to go on" in message
        assert "Traceback" not in message
    subprocess.run(command(folders[2]), check=True, capture_output=True)
    assert_equal_runs(final_state(folders[2]), expected)


def test_accumulated_gradients_equal_those_of_the_whole_batch(corpus, tmp_path, monkeypatch):
    choices = DeviceChoices(torch.float32, scale_loss=False, compile=False, pin=False)
    monkeypatch.setattr(mdlm.training, "device_choices", lambda device: choices)
    weights = []
    for accumulation in (1, 4):  # one part of 6 texts; three parts of 2
        config = Config(**{**TINY, "accumulation": accumulation, "muon_lr": 1, "adamw_lr": 1})
        run = Run(config, corpus, tmp_path, torch.device("cpu"))
        plain = [torch.optim.SGD(o.param_groups[0]["params"]) for o in run.optimizers]
        training_step(run.model, plain, run.scaler, corpus, config, step=5)
        weights.append(torch.cat([p.detach().flatten() for p in run.model.parameters()]))
    torch.testing.assert_close(*weights, rtol=0, atol=1e-6)


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


def test_muon_moves_every_direction_alike():
    noise = torch.Generator().manual_seed(0)
    for shape in [(64, 24), (24, 64)]:
        s = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=noise)))
        assert s.min() > 0.6 and s.max() < 1.3
    p = torch.nn.Parameter(torch.zeros(24, 64))
    p.grad = torch.randn(24, 64, generator=noise)
    Muon([p], lr=0.1).step()
    s = torch.linalg.svdvals(p.detach())
    assert s.min() > 0.06 and s.max() < 0.13


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
    save_checkpoint(path, model, corpus.tokenizer, {"steps": 3})
    loaded, tokenizer, facts = load_checkpoint(path, "cpu")
    z, t = torch.randint(300, (2, 32)), torch.tensor([0.2, 0.9])
    assert torch.equal(loaded(z, t), model(z, t))
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


def test_bad_sampling_input(corpus):
    model = DiffusionTransformer(Config(**{**TINY, "vocab_size": corpus.tokenizer.vocab_size}))
    with pytest.raises(UserError, match="context of 32"):
        sample(model, torch.zeros(1, 33, dtype=torch.long))
    with pytest.raises(UserError, match="only 8 fit"):
        template(corpus.tokenizer, ["And the sons of the sons were many"], 8)
    with pytest.raises(UserError, match="steps"):
        noise_grid(0, "linear")
    with pytest.raises(UserError, match="temperature"):
        sample(model, torch.full((1, 8), model.mask_id), temperature=0.0)


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


MACHINES = [  # (CUDA, MPS, instructions of the CPU, threads, preset)
    (True, False, {}, 2, "cuda"),
    (False, True, {}, 2, "cpu"),
    (False, False, dict(avx2=True, avx512_bf16=True), 2, "cpu"),
    (False, False, dict(avx2=True, amx_bf16=True), 2, "cpu"),
    (False, False, dict(avx2=True, avx512_bf16=False), 8, "cpu"),
    (False, False, dict(avx2=True), 2, "small"),
]


@pytest.mark.parametrize(("cuda", "mps", "has", "threads", "expected"), MACHINES)
def test_each_machine_gets_the_preset_that_suits_it(cuda, mps, has, threads, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert command_line.parse_arguments(["--steps", "7"])[0] == Config(
        **{**PRESETS[expected], "steps": 7}
    )


def test_float16_training_scales_the_loss_and_survives_an_overflow(corpus, tmp_path, monkeypatch):
    """The way of a T4, on a CPU: float16 products, and a GradScaler that starts far too high."""
    choices = DeviceChoices(torch.float16, scale_loss=True, compile=False, pin=False)
    monkeypatch.setattr(mdlm.training, "device_choices", lambda device: choices)
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
    mdlm.training.save_run(run)
    again = Run(Config(**TINY), corpus, tmp_path, torch.device("cpu"))
    mdlm.training.restore_run(again)
    assert again.scaler.state_dict() == state


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
    shipped = tmp_path / "shipped.safetensors"
    arguments = ["--preset", preset, *files, *options, "--no-compile", "--ship", str(shipped)]
    assert command_line.main(arguments) == 0
    model, _, facts = load_checkpoint(shipped, "cpu")
    assert model.config == Config(
        **{**PRESETS[preset], **small, "corpus": str(tmp_path / "text.txt"), "compile": False}
    )
    assert facts["steps"] == 12 and facts["bpb"] == pytest.approx(facts["history"][-1]["bpb"], 0.02)
    full = next(path for path in tmp_path.glob("*.safetensors") if path != shipped)
    assert shipped.stat().st_size < 0.8 * full.stat().st_size  # two bytes a weight, not four


def test_a_run_that_has_learned_by_heart_says_when_it_was_best(capsys):
    for end, told in ((1.52, False), (1.8, True)):
        rows = [(100, 1.7), (200, 1.5), (300, end)]
        history = [dict(step=step, bpb=bpb, error=0.01) for step, bpb in rows]
        config = Config(**TINY)
        run = SimpleNamespace(path="x", step=300, seconds=60.0, history=history, config=config)
        command_line.finish(run, SimpleNamespace(ship=None))
        assert ("--steps 200" in capsys.readouterr().out) == told


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
