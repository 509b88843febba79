"""train.py: every setting is an option, a mistake gets one line, an export is a checkpoint."""

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train as command_line
from compressors import bits_per_byte
from conftest import OPTIONS, TINY, tiny
from corpus import load_text, split_text
from mdlm.model import DiffusionTransformer
from mdlm.training import evaluate
from saving import load_checkpoint
from settings import Config, settings

ROOT = Path(__file__).parent.parent
WRONG = {  # an option: a part of the answer
    "--data=missing.txt": "missing.txt: cannot be read (No such file or directory)",
    "--data=.": "a folder that prepare.py has not made",
    "--data=text.txt/inside": "cannot be read",
    f"--data={'x' * 5000}": "cannot be read",
    "--data=": "cannot be read",
    "--vocab-size=256": "from 257",
    "--d-model=30": "try 28",
    "--steps=0": "greater than 0",
    "--muon-lr=nan": "greater than 0",
    "--accumulation=7": "6 at most",
    "--context=60000": "too short",
    "--schedule=cosine": 'set loss="time"',
    "--folder=text.txt": "cannot be written",
    "--export=text.txt/model.safetensors": "cannot be written",
    "--export=model.bin": "must end with .safetensors",
}


@pytest.mark.parametrize("option", WRONG, ids=lambda option: option[:30])
def test_a_mistake_gets_one_line_before_anything_is_trained(option, text_file, capsys, monkeypatch):
    monkeypatch.chdir(text_file.parent)
    assert command_line.main([*OPTIONS, "--data=text.txt", "--folder=new", option]) == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: ") and WRONG[option] in error and error.count("\n") == 1
    assert not [*Path("new").glob("*")]


def test_a_twin_is_exported_as_one(capsys):
    assert command_line.main([*OPTIONS, "--causal", "--export=mine.safetensors"]) == 2
    assert "-twin.safetensors" in capsys.readouterr().err


def test_every_setting_is_an_option(capsys):
    with pytest.raises(SystemExit):
        command_line.parse_arguments(["--help"])
    shown = capsys.readouterr().out
    assert all(f"--{f.name.replace('_', '-')}" in shown for f in fields(Config)[1:])
    given = ["--preset=cuda", "--steps=7", "--no-qk-norm", "--ema=0.5", "--optimizer=adamw"]
    config = command_line.parse_arguments(given)[0]
    assert config == settings("cuda", steps=7, qk_norm=False, ema=0.5, optimizer="adamw")


@pytest.mark.parametrize("preset", ["cuda", "included", "included-twin"])
def test_a_preset_trains_at_reduced_size_and_exports(preset, text_file, tmp_path, capsys):
    small = {**TINY, "steps": 5, "n_layers": 2, "save_every": 5, "eval_every": 5}
    options = [f"--{n.replace('_', '-')}={v}" for n, v in small.items() if n != "compile"]
    path = tmp_path / f"{preset}.safetensors"
    options += ["--no-compile", f"--data={text_file}", f"--folder={tmp_path}", f"--export={path}"]
    assert command_line.main([*options, f"--preset={preset}"]) == 0
    model, _, metadata = load_checkpoint(path, DiffusionTransformer)
    assert model.config == settings(preset, **small, corpus=str(text_file))
    last = metadata["history"][-1]
    assert metadata["steps"] == last["step"] == 5 and metadata["bpb"] != last["bpb"]
    assert (metadata["bpb"], metadata["error"]) == pytest.approx((last["bpb"], last["error"]), 0.1)
    (full,) = [p for p in tmp_path.glob("*.safetensors") if p != path]
    assert path.stat().st_size < 0.8 * full.stat().st_size  # two bytes a weight, not four
    assert f"now: python sample_visual.py {full}" in capsys.readouterr().out


RESULTS = {  # bounds at steps 100, 200 and 300, times the text was read: what is said
    "a good run": ((1.7, 1.5, 1.52), 9, None),
    "memorised": ((1.7, 1.5, 1.8), 9, "memorised the training text, read 9 times. Try --steps 200"),
    "another kind": ((1.7, 1.5, 1.8), 0.3, "seems to be of another kind than the rest"),
    "worse than none": ((9.0, 8.8, 8.5), 9, "More than 8 bits"),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", RESULTS)
def test_the_end_of_a_run_is_told_as_it_is(name, causal, capsys):
    bounds, passes, message = RESULTS[name]
    history = [
        dict(step=100 * (i + 1), bpb=bpb, error=0.01, tokens=passes * 1000)
        for i, bpb in enumerate(bounds)
    ]
    corpus = SimpleNamespace(train=range(1000))
    rest = dict(path="x", step=300, seconds=60.0, config=tiny(causal=causal), corpus=corpus)
    command_line.finish(SimpleNamespace(history=history, **rest), SimpleNamespace(export=None))
    said = capsys.readouterr().out
    assert f"{bounds[-1]:.3f} ± 0.010 bits per byte" in said and ("at most" in said) != causal
    assert message in said if message else said.count("\n") == 2


def test_a_short_text_gets_a_small_vocabulary_and_a_word_about_it(text_file, capsys):
    config, _ = command_line.parse_arguments(["--preset=small", f"--data={text_file}"])
    assert config.vocab_size == 512 and "512 tokens, not 8192" in capsys.readouterr().err
    asked = ["--preset=small", f"--data={text_file}", "--vocab-size=700"]
    assert command_line.parse_arguments(asked)[0].vocab_size == 700
    assert capsys.readouterr().err == ""


def test_more_processes_than_gpus_is_one_line(monkeypatch, capsys):
    for name, value in dict(RANK="0", LOCAL_RANK="0", LOCAL_WORLD_SIZE="4").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("hardware.pick_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert command_line.main(["--preset", "small"]) == 2
    assert capsys.readouterr().err == "train.py: 4 processes, but 2 GPU(s): one process for each\n"


@pytest.mark.parametrize("name", ["kjv", "kjv-twin"])
def test_the_included_models_are_what_their_card_says(name):
    path = ROOT / "checkpoints" / f"{name}.safetensors"
    assert path.stat().st_size < 15_000_000
    model, tokenizer, metadata = load_checkpoint(path, DiffusionTransformer, "cpu")
    assert model.config == settings("included" + name.removeprefix("kjv"))
    text = split_text(load_text("kjv", ROOT / "data"))[1]
    tokens = np.array(tokenizer.encode(text))
    figures = evaluate(model, tokens, max_windows=24)
    bpb, error = (bits_per_byte(n, len(tokens), len(text.encode("utf-8"))) for n in figures)
    assert bpb == pytest.approx(metadata["bpb"], abs=4 * error)
    card = (ROOT / "checkpoints" / "README.md").read_text(encoding="utf-8")
    assert f"{metadata['bpb']:.3f}" in card and f"{metadata['parameters']:,}" in card
