"""The notebooks run from top to bottom, edits included; and they are committed as they ran."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from conftest import ROOT
from corpus import load_text
from identity import NOTEBOOKS, code_digest
from mdlm.training import train
from run import WIDGET
from saving import read_metadata
from tests.test_edits import EDITS, copy_project

SMALLER = {  # what a reader writes, and instead of what, in the cells that are there to change
    'corpus_name = "kjv"': 'corpus_name = "part.txt"',
    "usual_vocab_size(text)": "512",
    "    context=None,": "    context=64, eval_every=6, eval_windows=8, compile=False,",
    "    n_layers=None,": "    n_layers=2,",
    "    d_model=None,": "    d_model=64,",
    "    steps=None,": "    steps=12,",
    "    steps=800,": "    steps=12, vocab_size=512,",
    "    block=16,": "    block=8,",
    "    batch_size=None,": "    batch_size=8,",
    "steps = 128": "steps = 8",
    "comparison_steps = [8, 32]": "comparison_steps = [4]",
    "n_samples = 3": "n_samples = 1",
    "n_samples = 16": "n_samples = 8",
    "masks.expand(16, -1)": "masks.expand(2, -1)",
    "train_own = False": "train_own = True",
    "gpt_b_steps = 400": "gpt_b_steps = 3",  # of sudoku.ipynb
    "steps = 800": "steps = 16",
    "n_grids = 256": "n_grids = 8",
    "steps=600": "steps=20",
}


def make_smaller(path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.source.startswith("#| export"):
            continue
        for old, new in SMALLER.items():
            cell.source = cell.source.replace(old, new)
    nbformat.write(notebook, path)


@pytest.mark.slow
def test_sudoku_runs(tmp_path):
    folder = copy_project(tmp_path / "copy", "none")
    make_smaller(folder / "sudoku.ipynb")
    subprocess.run([sys.executable, "run.py", "sudoku", "--inside"], cwd=folder, check=True)
    check_committed(folder / "runs" / "sudoku.ipynb")


@pytest.mark.parametrize("edit", [
    pytest.param(edit, marks=[] if edit == "activation" else pytest.mark.slow) for edit in EDITS
])  # fmt: skip
def test_the_commands_of_the_readme_run_what_stands_in_the_notebooks(edit, tmp_path):
    folder = copy_project(tmp_path / "copy", edit)
    part = load_text("kjv", ROOT / "data")[:300_000]  # all of it takes a minute more
    (folder / "part.txt").write_text(part, encoding="utf-8")
    for name in NOTEBOOKS:
        make_smaller(folder / name)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    rest = dict(cwd=folder, env=environment, stderr=subprocess.STDOUT, text=True)
    out = ""
    for command in ("all", "twin", "blocks"):
        line = [sys.executable, "run.py", command, "--inside"]
        done = subprocess.run(line, stdout=subprocess.PIPE, **rest)
        if command != "all" and edit == "scale of scores":  # their cached samplers score themselves
            assert done.returncode == 1
            what = {"twin": "step_with_cache", "blocks": "Layer"}[command]
            assert f"edit {what} in {command}.ipynb, too" in done.stdout.splitlines()[-1]
            continue
        assert done.returncode == 0, done.stdout[-3000:]
        out += done.stdout
    assert ("exported from the notebooks" in out) == (edit != "none")
    assert (folder / "runs" / "samples.txt").read_text(encoding="utf-8").strip()
    runs = {p.stem[len("part-") + 6 :]: p for p in (folder / "checkpoints").glob("*.safetensors")}
    path, twin = runs[""], runs["-twin"]
    sampled = (folder / "runs" / "sampling.ipynb").read_text(encoding="utf-8")
    assert f"checkpoints/{path.name}" in sampled  # it took what was just trained
    metadata = read_metadata(path)[1]
    assert metadata["steps"] == metadata["history"][-1]["step"] == 12
    # the notebook's own code has the digest of what is exported from it
    show = "from identity import *; from mdlm.training import train; print(code_digest(train))"
    exported = subprocess.check_output([sys.executable, "-c", show], **rest).strip()
    assert metadata["code"] == read_metadata(twin)[1]["code"] == exported
    assert (exported == code_digest(train)) == ("code" not in EDITS[edit][3])
    for name in set(NOTEBOOKS) - {"sudoku.ipynb"}:  # and what was executed can be committed
        if edit != "scale of scores" or name not in ("twin.ipynb", "blocks.ipynb"):
            check_committed(folder / "runs" / name)


def check_committed(path):
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        shows = re.search(r"^(print\(|plt\.show\(\)|show\w*\()", cell.source, re.MULTILINE)
        assert cell.outputs or not shows or "#| export" in cell.source, cell.source
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr", output
            assert WIDGET not in output.get("data", {})
    outputs = str([cell.outputs for cell in cells])
    superuser = re.escape(Path("~root").expanduser().as_posix())
    assert not re.search(rf"/home/|/Users/|/tmp/|{superuser}/|[A-Z]:\\\\|Warning", outputs)
    assert path.stat().st_size < 1_000_000


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_committed_as_they_ran(name):
    check_committed(ROOT / name)
