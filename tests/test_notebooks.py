"""Both notebooks run from top to bottom, with parameters small enough for a test."""

import shutil
from pathlib import Path

import papermill

ROOT = Path(__file__).parent.parent
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


def test_train_then_sample(tmp_path):
    for name in ("bpe_tokenizer.py", "train_model.ipynb", "sampling.ipynb"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "mdlm", tmp_path / "mdlm")
    for notebook, parameters in [
        ("train_model.ipynb", dict(preset="cpu", overrides=TINY)),
        ("sampling.ipynb", dict(steps=16, n_samples=1)),
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
    assert len(list((tmp_path / "checkpoints").glob("*.safetensors"))) == 1
