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
from pathlib import Path

import pytest

from conftest import OPTIONS, TEXT

ROOT = Path(__file__).parent.parent
NETWORK = {"code", "training", "sampling", "window", "old checkpoint"}
EDITS = {  # name: (notebook, what stands there, what is written instead, where it must show)
    "none": ("twin", "import torch", "import torch", set()),
    "activation": ("train_model", "F.silu(gate)", "F.gelu(gate)", NETWORK),
    "a norm's eps": ("train_model", "eps=1e-6", "eps=0.1", NETWORK),
    "RoPE's base": ("train_model", "length ** (-torch", "10_000 ** (-torch", NETWORK),
    "scale of scores": ("train_model", "q.shape[-1] ** -0.5", "q.shape[-1] ** -0.4", NETWORK),
    "loss weight": (
        "train_model", "return total * x.shape[1] / k.to(x.device)", "return total",
        {"code", "training"},
    ),
    "schedule": (
        "train_model", "lambda t: (1 - t, 1 / t)", "lambda t: (1 - t**3, 3 / t)",
        {"code", "training by time", "sampling", "window"},
    ),
    "momentum": ("train_model", "momentum=0.95", "momentum=0.5", {"code", "training"}),
    "unmasking rule": (
        "sampling", "searchsorted(alpha, moment, right=True)", "searchsorted(alpha, moment**2, right=True)",
        {"sampling", "window"},
    ),
}  # fmt: skip

# Runs in a process of its own, and in one copy of the project after another
USE = """
import contextlib, io, json, os, sys
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
    import run, sample_visual, train
    seen, window = {}, ["--text", "--steps=8", "--seed=3"]
    seen["train.py refuses"] = printed(train.main, options)
    seen["window refuses"] = printed(sample_visual.main, [str(old), *window])
    sys.argv = ["run.py", "export", "--inside"]
    seen["export"] = printed(run.main)[1]

    from mdlm.model import DiffusionTransformer
    from mdlm.sampling import sample
    from saving import load_checkpoint, load_state, save_checkpoint
    for loss in ("counts", "time"):
        code, lines = printed(train.main, [*options, f"--loss={loss}", f"--folder={loss}"])
        assert code == 0, lines
        (path,) = (folder / loss).glob("*.safetensors")
        model, tokenizer, metadata = load_checkpoint(path, DiffusionTransformer)
        seen[loss] = [path.stem, metadata["code"], load_state(path.with_suffix(".resume.pt"))["losses"]]
    torch.manual_seed(0)  # the same weights in every copy
    fixed = DiffusionTransformer(model.config)
    for p in fixed.parameters():
        p.data *= 5
    made = sample(fixed, torch.full((3, 16), fixed.mask_id), 8, torch.Generator().manual_seed(0))
    seen["sampling"] = [made.tokens.tolist(), made.step.tolist(), made.probability.tolist()]
    save_checkpoint("fixed.safetensors", fixed, tokenizer, metadata)
    seen["window"] = printed(sample_visual.main, ["fixed.safetensors", *window])
    seen["old checkpoint"] = printed(sample_visual.main, [str(old), *window])
    return seen

base, options = Path(sys.argv[1]), sys.argv[2:]
base.joinpath("seen.json").write_text("{}")
seen = {}
for name in json.loads(base.joinpath("names.json").read_text()):
    seen[name] = use(base / name, options, base / "none" / "fixed.safetensors")
base.joinpath("seen.json").write_text(json.dumps(seen))
"""


def copy_project(folder, edit):
    """A copy of what runs, with one edit in a notebook."""
    notebook, old, new, _ = EDITS[edit]
    folder.mkdir()
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.ipynb")]:
        shutil.copy(path, folder)
    for package in ("mdlm", "visual"):
        shutil.copytree(ROOT / package, folder / package, ignore=lambda *_: {"__pycache__"})
    path = folder / f"{notebook}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))
    hits = 0
    for cell in cells["cells"]:
        source = "".join(cell["source"])
        if source.startswith("#| export"):
            hits += source.count(old)
            cell["source"] = source.replace(old, new)
    assert hits == 1 or edit == "none", f"{edit}: {old!r} stands {hits} times in {path.name}"
    path.write_text(json.dumps(cells), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What happened in each copy, as USE tells it."""
    base = tmp_path_factory.mktemp("edits")
    for name in EDITS:
        copy_project(base / name, name)
    (base / "names.json").write_text(json.dumps([*EDITS]))
    (base / "text.txt").write_text(TEXT, encoding="utf-8")
    options = [*OPTIONS, "--steps=3", f"--data={base / 'text.txt'}"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-c", USE, str(base), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((base / "seen.json").read_text())


@pytest.mark.parametrize("edit", [name for name in EDITS if name != "none"])
def test_an_edit_is_refused_until_it_is_exported(edit, seen):
    for program in ("train.py", "window"):
        code, lines = seen[edit][f"{program} refuses"]
        assert code == 2 and len(lines) == 1
        assert lines[0].endswith("has been edited: first run python run.py export")
    assert seen[edit]["export"][0].startswith("exported from the notebooks: mdlm/ (")
    assert seen["none"]["export"] == []


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_shows_everywhere_it_should_and_nowhere_else(edit, seen):
    usual, edited = seen["none"], seen[edit]
    shows = {
        "code": edited["counts"][1] != usual["counts"][1],
        "training": edited["counts"][2] != usual["counts"][2],
        "training by time": edited["time"][2] != usual["time"][2],
        "sampling": edited["sampling"] != usual["sampling"],
        "window": edited["window"][1][1:] != usual["window"][1][1:],
        "old checkpoint": edited["old checkpoint"][0] == 2,
    }
    expected = EDITS[edit][3]
    if "training" in expected and edit != "loss weight":  # that one is of the loss by counts
        expected = expected | {"training by time"}
    assert {where for where, is_so in shows.items() if is_so} == expected
    # edited code is a run of its own, under its own name; edited samplers are not
    assert (edited["counts"][0] != usual["counts"][0]) == ("code" in expected)
    assert edited["window"][0] == 0
    if "old checkpoint" in expected:
        _, lines = edited["old checkpoint"]
        assert len(lines) == 1 and "made by another network than mdlm/ has now" in lines[0]
