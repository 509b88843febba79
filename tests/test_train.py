"""train.py: every setting is an option, a mistake gets one line, an export is a checkpoint."""

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import train as command_line
from compare import differences
from compressors import bits_per_byte
from conftest import OPTIONS, ROOT, TINY, tiny
from corpus import load_text, split_text
from files import UserError
from mdlm.blocks import BlockDenoiser
from mdlm.model import DiffusionTransformer
from mdlm.training import evaluate, train
from saving import INCLUDED, load_checkpoint, save_checkpoint
from settings import Config, settings

WRONG = {  # an option: a part of the answer
    "--data=missing.txt": "missing.txt: cannot be read (No such file or directory)",
    "--data=.": "a folder that prepare.py has not made",
    "--data=text.txt/inside": "cannot be read",
    f"--data={'x' * 5000}": "cannot be read",
    "--data=": "cannot be read",
    "--d-model=30": "try 28",
    "--muon-lr=nan": "greater than 0",
    "--context=60000": "too short",
    "--folder=text.txt": "cannot be written",
    "--export=text.txt/model.safetensors": "cannot be written",
    "--export=model.bin": "must end with .safetensors",
    "--causal --export=model.safetensors": "must end with -twin.safetensors",
}


@pytest.mark.parametrize("option", WRONG, ids=lambda option: option[:30])
def test_a_mistake_gets_one_line_before_anything_is_trained(option, text_file, capsys, monkeypatch):
    monkeypatch.chdir(text_file.parent)
    given = [*OPTIONS, "--data=text.txt", "--folder=new", *option.split()]
    assert command_line.main(given) == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: ") and WRONG[option] in error and error.count("\n") == 1
    assert not [*Path("new").glob("*")]


def test_every_setting_is_an_option(capsys):
    with pytest.raises(SystemExit):
        command_line.parse_arguments(["--help"])
    shown = capsys.readouterr().out
    assert all(f"--{f.name.replace('_', '-')}" in shown for f in fields(Config)[1:])
    given = ["--preset=cuda", "--steps=7", "--no-qk-norm", "--ema=0.5", "--optimizer=adamw"]
    config = command_line.parse_arguments(given)[0]
    assert config == settings("cuda", steps=7, qk_norm=False, ema=0.5, optimizer="adamw")


@pytest.mark.parametrize("preset", ["cuda", "included", "included-twin", "included-blocks"])
def test_a_preset_trains_at_reduced_size_and_exports(preset, text_file, tmp_path, capsys):
    small = TINY | {"steps": 5, "n_layers": 2, "eval_every": 5}
    options = [f"--{n.replace('_', '-')}={v}" for n, v in small.items() if n != "compile"]
    path = tmp_path / f"{preset}.safetensors"
    options += ["--no-compile", f"--data={text_file}", f"--folder={tmp_path}", f"--export={path}"]
    assert command_line.main([*options, f"--preset={preset}"]) == 0
    network = BlockDenoiser if preset == "included-blocks" else DiffusionTransformer
    model, _, metadata = load_checkpoint(path, network)
    assert model.config == settings(preset, **small, corpus=str(text_file))
    last = metadata["history"][-1]
    assert metadata["steps"] == last["step"] == 5 and metadata["bpb"] != last["bpb"]
    assert (metadata["bpb"], metadata["error"]) == pytest.approx((last["bpb"], last["error"]), 0.1)
    (full,) = [p for p in tmp_path.glob("*.safetensors") if p != path]
    assert path.stat().st_size < 0.8 * full.stat().st_size  # two bytes a weight, not four
    assert f"now: python sample_visual.py {full}" in capsys.readouterr().out


RESULTS = {  # bounds after 100, 200 and 300 steps, times the text was read, twin?: what is said
    (1.7, 1.5, 1.52, 9, False): "at most 1.520 ± 0.010 bits per byte\nnow: ",
    (1.7, 1.5, 1.52, 9, True): "validation 1.520 ± 0.010 bits per byte\nnow: ",
    (1.7, 1.5, 1.8, 9, True): "memorised the training text, read 9 times. Try --steps 200",
    (1.7, 1.5, 1.8, 0.3, False): "at most 1.800 ± 0.010 bits per byte\nnow: ",
    (9.0, 8.8, 8.5, 9, False): "More than 8 bits",
}


@pytest.mark.parametrize("result", RESULTS)
def test_the_end_of_a_run_is_told_as_it_is(result, capsys):
    *bounds, passes, causal = result
    row = dict(error=0.01, tokens=passes * 1000)
    history = [row | dict(step=100 * (i + 1), bpb=bpb) for i, bpb in enumerate(bounds)]
    rest = dict(corpus=SimpleNamespace(train=range(1000)), config=tiny(causal=causal))
    run = SimpleNamespace(path="x", step=300, seconds=60.0, history=history, **rest)
    command_line.finish(run, SimpleNamespace(export=None))
    assert RESULTS[result] in capsys.readouterr().out


def test_the_table_of_runs_has_what_differs_and_nothing_else(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [train(tiny(clip=n, steps=n), corpus, tmp_path) for n in (4, 6)]
    metadata = runs[1].metadata()
    for name, code in (("edited", "another"), ("kjv", "included")):  # kjv is not one's own
        header = metadata | {"code": code, "history": []}
        save_checkpoint(f"{name}.safetensors", runs[1].model, corpus.tokenizer, header)
    rows, histories = differences(tmp_path)
    first, second, third = (rows.pop(name) for name in [*(run.path.stem for run in runs), "edited"])
    assert not rows and histories[runs[1].path.stem] == runs[1].history
    assert {*first} == {"clip", "steps", "code", "bits per byte", "minutes", "parameters"}
    assert [row["clip"] for row in (first, second, third)] == [4.0, 6.0, 6.0]
    assert first["code"] == second["code"] != third["code"]
    assert first["steps"] == "4 of 4" and first["parameters"] == third["parameters"]
    last = runs[0].history[-1]
    assert first["bits per byte"] == f"{last['bpb']:.3f} ± {last['error']:.3f}"
    assert command_line.main(["--compare", f"--folder={tmp_path}"]) == 0
    assert runs[0].path.stem in capsys.readouterr().out and Path("runs/compare.png").exists()
    with pytest.raises(UserError, match="no checkpoint"):
        differences(tmp_path / "none")


@pytest.mark.parametrize("name", INCLUDED)
def test_the_included_models_are_what_their_card_says(name):
    path = ROOT / "checkpoints" / f"{name}.safetensors"
    assert path.stat().st_size < 15_000_000
    config = settings("included" + name.removeprefix("kjv"))
    its = command_line.parts(config)
    model, tokenizer, metadata = load_checkpoint(path, its["network"], "cpu")
    assert model.config == config
    text = split_text(load_text("kjv", ROOT / "data"))[1]
    tokens = np.array(tokenizer.encode(text))
    figures = evaluate(model, tokens, max_windows=24, bound=its["bound"])
    bpb, error = (bits_per_byte(n, len(tokens), len(text.encode("utf-8"))) for n in figures)
    assert bpb == pytest.approx(metadata["bpb"], abs=4 * error)
    card = (ROOT / "checkpoints" / "README.md").read_text(encoding="utf-8")
    assert f"{metadata['bpb']:.3f}" in card and f"{metadata['parameters']:,}" in card
