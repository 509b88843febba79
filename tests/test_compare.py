"""What did my change do? The table and the picture of all runs in a folder."""

import pytest

import train as command_line
from compare import compare, differences
from conftest import make_model, tiny
from files import UserError
from mdlm.training import train
from saving import save_checkpoint


def test_the_table_has_what_differs_and_nothing_else(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [train(tiny(clip=n, steps=n), corpus, tmp_path) for n in (4, 6)]
    edited = runs[1].metadata() | {"code": "another", "history": []}
    save_checkpoint(tmp_path / "edited.safetensors", runs[1].model, corpus.tokenizer, edited)
    rows, histories = differences(tmp_path)
    first, second, third = (rows[name] for name in (runs[0].path.stem, runs[1].path.stem, "edited"))
    assert {*first} == {"clip", "steps", "code", "bits per byte", "minutes", "parameters"}
    assert [row["clip"] for row in (first, second, third)] == [4.0, 6.0, 6.0]
    assert first["code"] == second["code"] != third["code"]
    assert first["steps"] == "4 of 4" and first["parameters"] == third["parameters"]
    last = runs[0].history[-1]
    assert first["bits per byte"] == f"{last['bpb']:.3f} ± {last['error']:.3f}"
    assert third["bits per byte"] == "-" and histories[runs[1].path.stem] == runs[1].history
    assert command_line.main(["--compare", f"--folder={tmp_path}"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in rows) and (tmp_path / "runs" / "compare.png").exists()


def test_included_checkpoints_are_left_out_unless_alone(corpus, tmp_path):
    metadata = dict(steps=1, seconds=1.0, history=[], parameters=1, code="a", text="b")
    for name in ("kjv", "mine"):
        path = tmp_path / f"{name}.safetensors"
        save_checkpoint(path, make_model(), corpus.tokenizer, metadata)
        assert [*differences(tmp_path)[0]] == [name]
    with pytest.raises(UserError, match="no checkpoint"):
        compare(tmp_path / "none")
