"""Training: the same run whatever interrupts it, checkpoints that come back whole, clear errors."""

import os
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

import mdlm.training
import train as command_line
from bpe_tokenizer import BPETokenizer, UserError
from mdlm.config import Config
from mdlm.corpus import load_text, tokenize
from mdlm.model import DiffusionTransformer
from mdlm.sampling import noise_grid, sample, template
from mdlm.training import Muon, Run, load_checkpoint, orthogonalise, save_checkpoint, training_step

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


def assert_equal_runs(one, other):
    assert one[:3] == other[:3]
    assert all(torch.equal(a, b) for a, b in zip(one[3], other[3], strict=True))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL to send")
def test_killed_and_stopped_runs_end_like_an_undisturbed_one(tmp_path):
    folders = [tmp_path / name for name in ("undisturbed", "killed", "stopped")]
    for folder in folders:
        folder.mkdir()
    subprocess.run(command(folders[0]), check=True, capture_output=True)
    expected = final_state(folders[0])
    assert expected[0] == TINY["steps"] == len(expected[1])

    chance, kills = random.Random(0), 0
    while kills < 20:  # at any moment after a new state has been written, saving included
        before = [path.stat().st_mtime_ns for path in folders[1].glob("*.resume.pt")]
        process = subprocess.Popen(command(folders[1]), stderr=subprocess.DEVNULL)
        while process.poll() is None and before == [
            path.stat().st_mtime_ns for path in folders[1].glob("*.resume.pt")
        ]:
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
    monkeypatch.setattr(mdlm.training, "compute_dtype", lambda device: torch.float32)
    weights = []
    for accumulation in (1, 4):  # one part of 6 texts; three parts of 2
        config = Config(**{**TINY, "accumulation": accumulation, "muon_lr": 1, "adamw_lr": 1})
        run = Run(config, corpus, tmp_path, torch.device("cpu"))
        plain = [torch.optim.SGD(o.param_groups[0]["params"]) for o in run.optimizers]
        training_step(run.model, plain, run.scaler, corpus, config, step=5)
        weights.append(torch.cat([p.detach().flatten() for p in run.model.parameters()]))
    torch.testing.assert_close(*weights, rtol=0, atol=1e-6)


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
    "--vocab-size=70000": "to 65536",
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
