"""Every benchmark runs, at its smallest size; and the mathematics in one of them is right."""

import json
import runpy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from conftest import ROOT, noise, tiny
from files import UserError
from mdlm.diffusion import nelbo, spread_mask_counts
from mdlm.model import DiffusionTransformer
from toy import TEXTS, ExactDenoiser, some_language

FOLDER = ROOT / "benchmarks"
IN_PROCESS = [
    "results",
    "english",
    "samples",
    "sampling",
    "lengths",
    "blocks",
    "tokenizer",
    "training",
]


@pytest.fixture
def start(monkeypatch):
    """start("NAME OPTIONS"): run a benchmark in this process. Returns what it defines, or ends."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(FOLDER)])
    monkeypatch.setattr("files.write_atomically", lambda *_: None)  # a reader's results stay

    def start(command, run_name="__main__"):
        name, *options = command.split()
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *options])
        return SimpleNamespace(**runpy.run_path(str(FOLDER / f"{name}.py"), run_name=run_name))

    return start


@pytest.mark.parametrize("name", IN_PROCESS)
def test_benchmarks_run(start, name):
    start(f"{name} --smoke")


@pytest.mark.slow  # a minute: they import PyTorch in one process after another, or draw for long
@pytest.mark.parametrize("name", ["busy", "data_limited", "quality", "sudoku", "../img/figures"])
def test_benchmarks_that_take_longer_run(name):
    subprocess.run([sys.executable, str(FOLDER / f"{name}.py"), "--smoke"], check=True)


@pytest.mark.parametrize("command", ["quality bass", "sampling --steps 0", "samples missing"])
def test_a_mistake_gets_one_line(start, command, capsys):
    with pytest.raises(UserError) as caught:
        start(command)
    sys.excepthook(caught.type, caught.value, caught.tb)  # as Python does with what nobody catches
    error = capsys.readouterr().err
    assert error.startswith(f"{command.split()[0]}.py: ") and error.count("\n") == 1


def test_the_page_on_quality_shows_the_stored_results(start):
    results = json.loads((FOLDER / "quality.json").read_text(encoding="utf-8"))
    page = (FOLDER / "quality.md").read_text(encoding="utf-8")
    assert page.endswith(start("quality", run_name="").tables(results) + "\n")


def test_several_models_together_predict_the_mean_of_their_predictions(start):
    models = [DiffusionTransformer(tiny(d_model=32, n_heads=2)) for _ in range(3)]
    z = torch.randint(models[0].mask_id + 1, (2, 8), generator=noise(0))
    both = start("quality", run_name="").Together(models)
    found = both.head(both.features(z)).exp()
    expected = torch.stack([m.head(m.features(z)).softmax(dim=-1) for m in models]).mean(dim=0)
    torch.testing.assert_close(found, expected)


def test_masks_behind_a_text_are_not_counted(start):
    """A network that ignores them pays the same with and without, and each token once."""
    joint, n = some_language(), 20_000
    x, k = torch.tensor(TEXTS[5]).expand(n, 3), spread_mask_counts(n, 3, noise(0))

    class Short(ExactDenoiser):
        config = tiny(context=5)

        def features(self, z, t=None):
            return torch.nn.functional.pad(super().features(z[:, :3], t), (0, 0, 0, z.shape[1] - 3))

    reading = start("lengths", run_name="").reading
    nats = [nelbo(reading(Short(joint), 3, padding), x, k, noise(1)) for padding in (0, 2)]
    torch.testing.assert_close(*nats)
    exact, error = -joint[5].log().item(), nats[0].std().item() / n**0.5
    assert nats[0].mean().item() == pytest.approx(exact, abs=4 * error + 1e-5)
