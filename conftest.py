"""What all tests share. The Python blocks of the learning guide are tests, too."""

import contextlib
import io
import multiprocessing
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # such small networks only wait for more threads

import hypothesis
import pytest
import torch
from sybil import Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

import hardware
import mdlm.training
from bpe_tokenizer import BPETokenizer
from corpus import tokenize
from mdlm.model import DiffusionTransformer
from running import Run
from settings import settings

hypothesis.settings.register_profile("any machine", deadline=None)  # it may be busy
hypothesis.settings.load_profile("any machine")


class RunAndKeep(PythonEvaluator):
    """Runs a Python block, and keeps what it prints for the block of text that follows it."""

    def __call__(self, example):
        assert not example.namespace.get("printed"), "the block before prints more than is shown"
        with contextlib.redirect_stdout(io.StringIO()) as out:
            super().__call__(example)
        example.namespace["printed"] = out.getvalue()


def same_as_printed(example):
    """A block of text is what the Python block before it has printed."""
    assert example.parsed == example.namespace.pop("printed", "")


pytest_collect_file = Sybil(  # the blocks run in order, in one namespace
    parsers=[CodeBlockParser("python", RunAndKeep()), CodeBlockParser("text", same_as_printed)],
    patterns=["learning_guide.md", "questions.md"],
).pytest()

ROOT = Path(__file__).parent
# where processes can be forked, PyTorch is imported once for all of them
FORK = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
FORK.set_forkserver_preload(["torch._dynamo", "mdlm.blocks", "conftest"])
LONG = ("test_notebooks", "test_window", "test_page", "learning_guide", "test_processes")


def pytest_collection_modifyitems(items):
    """Long files first, so that two processes which share the files end at about the same time."""
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))


TEXT = "".join(f"And the {n} sons of the {n * n} were {n * n % 97}.\n" for n in range(900))
CUT = 33_000  # where its validation part begins
TINY = dict(
    n_layers=1, d_model=32, n_heads=2, context=16, vocab_size=300, batch_size=6, warmup=2,
    steps=12, eval_every=6, eval_windows=8, save_every=4, compile=False,
)  # fmt: skip
OPTIONS = ["--preset=medium", "--no-compile"]  # the same for train.py
OPTIONS += [f"--{n.replace('_', '-')}={value}" for n, value in TINY.items() if n != "compile"]


def noise(seed=0):
    """A generator of random numbers, the same ones for the same seed."""
    return torch.Generator().manual_seed(seed)


def tiny(**changes):
    """Settings of a run that takes less than a second."""
    return settings("medium", **{**TINY, **changes})


def make_model(**changes):
    """A small network in eval mode, its weights far enough from zero to say something."""
    torch.manual_seed(0)
    model = DiffusionTransformer(tiny(**changes)).eval()
    for p in model.parameters():
        p.data *= 3
    return model


def make_run(corpus, folder, **changes):
    """A training run at step 0, as `train` makes it."""
    config = tiny(**changes)
    torch.manual_seed(config.seed)
    model = DiffusionTransformer(config)
    optimizers = mdlm.training.make_optimizers(model, config)
    return Run(config, corpus, model, optimizers, mdlm.training.EMA(model, config.ema), "", folder)


@pytest.fixture(scope="session")
def corpus():
    return tokenize(TEXT[:CUT], TEXT[CUT:], BPETokenizer.train(TEXT[:CUT], TINY["vocab_size"]))


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def device_is(monkeypatch):
    """A function that makes every device multiply in `dtype`."""

    def be(dtype, scale_loss=False):
        choices = hardware.DeviceChoices(dtype, scale_loss, False)
        for module in (hardware, mdlm.training):
            monkeypatch.setattr(module, "device_choices", lambda device: choices)

    return be


@pytest.fixture
def in_float32(device_is):
    """Matrix products are exact to seven digits, on every machine."""
    device_is(torch.float32)


@pytest.fixture
def in_a_terminal():
    """Ctrl-C interrupts, as in a terminal; a background job would ignore it."""
    usual_handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual_handler)
