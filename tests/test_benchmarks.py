"""Every benchmark runs, at its smallest size; and the mathematics in one of them is right."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from files import UserError
from mdlm.diffusion import spread_mask_counts
from mdlm.model import DiffusionTransformer
from settings import settings
from toy import TEXTS, ExactDenoiser, some_language

FOLDER = Path(__file__).parent.parent / "benchmarks"
COMMANDS = [
    *(f"{name} --smoke" for name in ("compressors", "quality", "samples", "sampling")),
    *(f"{name} --smoke" for name in ("tokenizer", "training", "../img/figures")),
    "overlap --smoke --given 0 128",
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


@pytest.mark.parametrize("command", COMMANDS)
def test_benchmarks_run(start, command):
    start(command)


@pytest.mark.parametrize("name", ["busy", "data_limited"])
def test_benchmarks_that_start_processes_run(name):
    subprocess.run([sys.executable, str(FOLDER / f"{name}.py"), "--smoke"], check=True)


@pytest.mark.parametrize("command", ["quality bass", "quality --steps 0", "sampling --steps 0"])
def test_mistakes_are_user_errors(start, command):
    with pytest.raises(UserError):
        start(command)


def test_a_mistake_gets_one_line():
    command = [sys.executable, str(FOLDER / "overlap.py"), "missing.safetensors"]
    end = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert end.returncode == 1
    assert end.stderr.startswith("overlap.py: missing") and end.stderr.count("\n") == 1


def test_the_page_on_quality_shows_the_stored_results(start):
    results = json.loads((FOLDER / "quality.json").read_text(encoding="utf-8"))
    page = (FOLDER / "quality.md").read_text(encoding="utf-8")
    assert page.endswith(start("quality", run_name="").tables(results) + "\n")


@pytest.mark.parametrize("n_given", range(3))
def test_the_best_network_pays_for_a_block_what_it_costs_given_the_rest(start, n_given):
    joint, n = some_language(), 20_000
    same = torch.tensor([text[:n_given] == TEXTS[5][:n_given] for text in TEXTS])
    exact = (joint[same].sum() / joint[5]).log().item()  # -log p(block | given)
    noise, x = torch.Generator().manual_seed(0), torch.tensor(TEXTS[5]).expand(n, 3)
    k = spread_mask_counts(n, 3 - n_given, noise)
    nats = start("overlap", run_name="").block_nats(ExactDenoiser(joint), x, k, noise, 3 - n_given)
    assert nats.mean().item() == pytest.approx(exact, abs=4 * nats.std().item() / n**0.5 + 1e-5)


def test_blocks_pay_for_every_token_once(start):
    overlap = start("overlap", run_name="")
    for n_given, n in [(0, 3), (0, 12), (3, 3), (3, 4), (3, 10), (3, 30)]:
        tokens, paid = torch.arange(n_given + n).numpy(), []
        for x, size in overlap.blocks(tokens, n_given, 4):
            assert x.shape[1] == n_given + size <= n_given + 4
            assert (x.diff() == 1).all()
            paid += x[:, n_given:].flatten().tolist()
        assert paid == tokens[n_given:].tolist()


def test_a_twins_block_costs_what_its_predictions_say(start):
    twin = DiffusionTransformer(settings("quick", vocab_size=300, context=16, causal=True)).eval()
    x = torch.randint(0, 50, (4, 16), generator=torch.Generator().manual_seed(0))
    z = torch.cat([torch.full((4, 1), twin.mask_id), x[:, :-1]], dim=1)
    log_p = twin.head(twin.features(z)).log_softmax(dim=-1)  # (B, L, V - 1)
    by_hand = -log_p.gather(2, x[..., None])[:, 10:, 0].sum(dim=1)
    found = start("overlap", run_name="").block_nats(twin, x, None, None, 6)
    torch.testing.assert_close(found, by_hand, rtol=0, atol=1e-3)
