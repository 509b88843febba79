"""The promise of the project: an edit is never ignored.

Each of eight one-line edits is made in a copy of the notebooks, as a reader would make it, and the
copy is used as the README says. It must show in training, sampling and the window, or be refused in
one line. test_notebooks.py makes one of them and runs the notebooks themselves.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

from conftest import OPTIONS, ROOT, TEXT

TRAINING = {"code", "training", "training by time"}
NETWORK = {*TRAINING, "sampling", "window", "twin", "old checkpoint", "old twin"}
EDITS = {  # name: (notebook, what stands there, what is written instead, where it must show)
    "none": ("twin", "", "", set()),
    "activation": ("train_model", "F.silu(gate)", "F.gelu(gate)", NETWORK),
    "a norm's eps": ("train_model", "eps=1e-6", "eps=0.1", NETWORK),
    "RoPE's base": ("train_model", "length ** (-torch", "10_000 ** (-torch", NETWORK),
    "scale of scores": ("train_model", "shape[-1] ** -0.5", "shape[-1] ** -0.3", NETWORK),
    "loss weight": ("train_model", "total * x.shape[1] / k.to(x.device)", "total",
                    {"code", "training"}),
    "schedule": ("train_model", "(1 - t, 1 / t)", "(1 - t**3, 3 / t)",
                 {"code", "training by time", "sampling", "window"}),
    "momentum": ("train_model", "momentum=0.95", "momentum=0.5", TRAINING),
    "unmasking rule": ("sampling", "(alpha, moment, right", "(alpha, moment**2, right",
                       {"sampling", "window"}),
}  # fmt: skip

# Runs in a process of its own, and in one copy of the project after another
USE = """
import contextlib, io, json, os, sys
from dataclasses import replace
from pathlib import Path
import nbdev.export, torch
sys.path.insert(0, "")

def printed(main, *arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = main(*arguments)
    lines = [line.split("  seconds ")[0] for line in out.getvalue().split("\\n")]
    return code, [line for line in lines if line.strip()]

def use(folder, options, old):
    os.chdir(folder)
    own = {path.stem for path in folder.glob("*.py")} | {"mdlm", "visual"}
    for name in [name for name in sys.modules if name.partition(".")[0] in own]:
        del sys.modules[name]
    import hardware, run, sample_visual, train
    hardware.cpu_has_bfloat16 = lambda: False
    window = lambda path: printed(sample_visual.main, [str(path), "--text", "--steps=8"])
    seen = {"refused": [printed(train.main, options), window(old / "fixed.safetensors")]}
    sys.argv = ["run.py", "export", "--inside"]
    seen["export"] = printed(run.main)[1]

    from mdlm.diffusion import next_token_nats
    from mdlm.model import DiffusionTransformer
    from mdlm.sampling import sample
    from mdlm.twin import sample_twin
    from saving import load_checkpoint, load_state, save_checkpoint
    for where, loss in (("training", "counts"), ("training by time", "time")):
        code, lines = printed(train.main, [*options, f"--loss={loss}", f"--folder={loss}"])
        assert code == 0, lines
        (path,) = (folder / loss).glob("*.safetensors")
        model, tokenizer, metadata = load_checkpoint(path, DiffusionTransformer)
        seen[where] = load_state(path.with_suffix(".resume.pt"))["losses"]
        seen["name"], seen["code"] = path.stem, metadata["code"]
    for name, causal in (("fixed", False), ("fixed-twin", True)):
        torch.manual_seed(0)  # the same weights in every copy
        fixed = DiffusionTransformer(replace(model.config, causal=causal)).eval()
        for p in fixed.parameters():
            p.data *= 5
        save_checkpoint(f"{name}.safetensors", fixed, tokenizer, metadata)
        noise, masks = torch.Generator().manual_seed(0), torch.full((3, 16), fixed.mask_id)
        try:
            made = sample_twin(fixed, masks, noise) if causal else sample(fixed, masks, 8, noise)
        except ValueError as error:  # it knows that it is not the network that is trained
            seen["twin"], seen["twin is wrong by"] = str(error), 0
        else:
            result = [made.tokens.tolist(), made.step.tolist(), made.probability.tolist()]
            seen["twin" if causal else "sampling"] = result
            if causal:
                with torch.no_grad():
                    nats = next_token_nats(fixed, made.tokens)
                seen["twin is wrong by"] = (nats + made.probability.log().sum(1)).abs().max().item()
    seen["window"] = window("fixed.safetensors")[1][1:]
    for where, name in (("old checkpoint", "fixed"), ("old twin", "fixed-twin")):
        code, lines = window(old / f"{name}.safetensors")
        seen[where] = lines if code else []  # what is refused, or nothing
    return seen

base, options = Path(sys.argv[1]), sys.argv[2:]
names = json.loads((base / "names.json").read_text())
seen = {name: use(base / name, options, base / "none") for name in names}
(base / "seen.json").write_text(json.dumps(seen))
"""


def copy_project(folder, edit):
    """A copy of what runs, without the notebooks' outputs, with one edit in a notebook."""
    name, old, new, _ = EDITS[edit]
    folder.mkdir()
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    for package in ("mdlm", "visual"):
        shutil.copytree(ROOT / package, folder / package, ignore=lambda *_: {"__pycache__"})
    for path in ROOT.glob("*.ipynb"):
        notebook, hits = json.loads(path.read_text(encoding="utf-8")), 0
        for cell in notebook["cells"]:
            cell["source"] = source = "".join(cell["source"])
            if cell["cell_type"] == "code":
                cell["outputs"] = []
            if path.stem == name and source.startswith("#| export") and old:
                hits += source.count(old)
                cell["source"] = source.replace(old, new)
        assert hits == (path.stem == name and old != ""), f"{old!r} stands {hits} times"
        (folder / path.name).write_text(json.dumps(notebook), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What happened in each copy, as USE tells it."""
    base = tmp_path_factory.mktemp("edits")
    for name in EDITS:
        copy_project(base / name, name)
    (base / "names.json").write_text(json.dumps([*EDITS]))
    (base / "text.txt").write_text(TEXT, encoding="utf-8")
    command = [sys.executable, "-c", USE, base, *OPTIONS, "--steps=3", f"--data={base}/text.txt"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((base / "seen.json").read_text())


@pytest.mark.parametrize("edit", [name for name in EDITS if name != "none"])
def test_an_edit_is_refused_until_it_is_exported(edit, seen):
    for code, lines in seen[edit]["refused"]:  # training, and the window
        assert code == 2 and len(lines) == 1
        assert lines[0].endswith("has been edited: first run python run.py export")
    assert seen[edit]["export"][0].startswith("exported from the notebooks: mdlm/ (")
    assert seen["none"]["export"] == []


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_shows_everywhere_it_should_and_nowhere_else(edit, seen):
    usual, edited, expected = seen["none"], seen[edit], EDITS[edit][3]
    assert {where for where in NETWORK if edited[where] != usual[where]} == expected
    assert (edited["name"] != usual["name"]) == ("code" in expected)  # a run of its own
    for where in {"old checkpoint", "old twin"} & expected:
        (line,) = edited[where]
        assert "made by another network than mdlm/ has now" in line
    assert edited["twin is wrong by"] < 1e-3  # step by step, it is the network that is trained
