"""The notebooks run from top to bottom; and they are committed as they ran, outputs and all."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

from mdlm.corpus import load_text

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ["train_model.ipynb", "sampling.ipynb", "twin.ipynb"]
TINY = dict(
    n_layers=1,
    d_model=64,
    n_heads=2,
    context=64,
    vocab_size=512,
    steps=30,
    batch_size=8,
    eval_every=15,
    eval_windows=8,
    save_every=15,
    warmup=3,
    compile=False,
)


def test_all_run(tmp_path):
    for name in ("bpe_tokenizer.py", "prepare.py", "saving.py", "sample_visual.py", *NOTEBOOKS):
        shutil.copy(ROOT / name, tmp_path)
    for package in ("mdlm", "visual"):
        shutil.copytree(ROOT / package, tmp_path / package)
    part = load_text("kjv", tmp_path / "data")[:400_000]  # all of it takes a minute more
    (tmp_path / "part.txt").write_text(part, encoding="utf-8")
    for notebook, parameters in [
        ("train_model.ipynb", dict(preset="cpu", corpus_name="part.txt", overrides=TINY)),
        ("sampling.ipynb", dict(steps=16, n_samples=1, comparison_steps=[4, 8])),
        ("twin.ipynb", dict(n_samples=4)),
    ]:
        papermill.execute_notebook(
            str(tmp_path / notebook),
            str(tmp_path / f"executed-{notebook}"),
            parameters,
            progress_bar=False,
            kernel_name="python3",
            cwd=str(tmp_path),
        )
    assert (tmp_path / "runs" / "samples.txt").read_text(encoding="utf-8").strip()
    assert len(list((tmp_path / "checkpoints").glob("*.safetensors"))) == 3


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_committed_as_it_ran(name):
    path = ROOT / name
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any("injected-parameters" in cell.metadata.get("tags", []) for cell in code)
    for cell in code:
        shows = re.search(r"^(\s*print\(|plt\.show\(\))", cell.source, re.MULTILINE)
        if shows and "#| export" not in cell.source and "@interact" not in cell.source:
            assert cell.outputs, f"no output: {cell.source}"
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
    outputs = str([cell.outputs for cell in code])
    superuser = re.escape(Path("~root").expanduser().as_posix())
    assert not re.search(rf"/home/|/Users/|/tmp/|{superuser}/|[A-Z]:\\\\|Warning", outputs)
    assert path.stat().st_size < 1_000_000


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git repository")
def test_on_a_hosted_service_the_first_cell_fetches_the_project(tmp_path):
    first = {
        next(c.source for c in nbformat.read(ROOT / name, 4).cells if c.cell_type == "code")
        for name in NOTEBOOKS
    }
    assert len(first) == 1  # the same in all
    script = first.pop().replace('address = ""', f"address = {ROOT.as_uri()!r}")
    script += "\nimport mdlm.config\nprint(os.getcwd(), mdlm.config.__file__)"
    kernel = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for service in ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"):
        folder = tmp_path / service
        folder.mkdir()
        for _ in range(2):  # again after a restart of the kernel
            done = subprocess.run(
                [sys.executable, "-P", "-c", script],
                cwd=folder,
                env=kernel | {service: "1"},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.split() == [
                str(folder / "project"),
                str(folder / "project" / "mdlm" / "config.py"),
            ]
