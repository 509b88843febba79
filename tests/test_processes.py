"""Several processes train what one would: same losses, same weights, same figures, same files."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from saving import load_checkpoint

ROOT = Path(__file__).parent.parent
TEXT = "".join(f"And the {n} sons of the {n * n} were {n * n % 97}.\n" for n in range(900))
OPTIONS = [
    "--n-layers=1",
    "--d-model=32",
    "--n-heads=2",
    "--context=32",
    "--vocab-size=300",
    "--batch-size=6",
    "--accumulation=3",
    "--warmup=2",
    "--dropout=0.1",
    "--steps=24",
    "--eval-every=12",
    "--eval-windows=8",
    "--save-every=6",
    "--no-compile",
    "--preset=cpu",
]
# train.py as it is, but in float32 everywhere: only the order of the sums may differ; and so slow,
# if asked to be, that we are in time for whatever is to happen to it
IN_FLOAT32 = f"""
import os, sys, time, torch
sys.path.insert(0, {str(ROOT)!r})
import mdlm.training, train
choices = mdlm.training.DeviceChoices(torch.float32, False, False, False)
mdlm.training.device_choices = lambda device: choices
step = mdlm.training.training_step
def slow_step(*arguments):
    time.sleep(float(os.environ.get("PAUSE", "0")))
    return step(*arguments)
mdlm.training.training_step = slow_step
train.leave(train.main())
"""
pytestmark = pytest.mark.skipif(
    os.name == "nt" or not torch.distributed.is_gloo_available(),
    reason="torchrun does not work on Windows, or this PyTorch has no gloo",
)


def start(folder, processes, *more, pause=0.0):
    """train.py on the text in `folder`, in that many processes, with a pause before each step."""
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    (folder / "run.py").write_text(IN_FLOAT32, encoding="utf-8")
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launch if processes > 1 else []), str(folder / "run.py")]
    files = ["--data", str(folder / "text.txt"), "--folder", str(folder)]
    return subprocess.Popen(
        [*command, *files, *OPTIONS, *more],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PAUSE": str(pause)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finished(folder):
    state = torch.load(next(folder.glob("*.resume.pt")), weights_only=True)
    return state["losses"], state["history"], list(state["model"].values())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    process = start(folder, 1)
    out = process.communicate()[0]
    assert process.returncode == 0, out
    return finished(folder)


def assert_same(one, other):
    for a, b in zip(one[0], other[0], strict=True):
        assert a == pytest.approx(b, abs=2e-5)
    for a, b in zip(one[1], other[1], strict=True):
        assert a["bpb"] == pytest.approx(b["bpb"], abs=2e-5)
        assert a["error"] == pytest.approx(b["error"], abs=2e-5)
    for a, b in zip(one[2], other[2], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4)


def test_two_processes_do_what_one_does(alone, tmp_path):
    process = start(tmp_path / "two", 2)
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 0, out
    assert out.count("bits per byte") == 1 and out.count("tokens to train on") == 1
    assert_same(finished(tmp_path / "two"), alone)


def two_workers(folder):
    """Two slow processes, as soon as they have saved something: (what started them, workers)."""
    process, end = start(folder, 2, "--save-every=2", pause=0.3), time.monotonic() + 120
    while not list(folder.glob("*.resume.pt")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    return process, workers


def test_when_one_is_killed_all_end_and_one_goes_on(alone, tmp_path):
    folder = tmp_path / "killed"
    process, workers = two_workers(folder)
    workers[1].kill()
    out = process.communicate(timeout=120)[0]
    assert process.returncode != 0 and f"(pid: {workers[1].pid})" in out
    load_checkpoint(next(folder.glob("*.safetensors")), "cpu")  # usable
    process = start(folder, 1, "--save-every=2")  # another number of processes
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 0, out
    assert_same(finished(folder), alone)


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send Ctrl-C to one process")
def test_when_one_is_asked_to_stop_all_stop(tmp_path):
    process, workers = two_workers(tmp_path)
    workers[1].send_signal(signal.SIGINT)
    out = process.communicate(timeout=120)[0]
    assert out.count("and saved: run again to go on") == 1
    state = torch.load(next(tmp_path.glob("*.resume.pt")), weights_only=True)
    assert f"stopped at step {state['step']} of 24" in out


def test_too_many_processes_are_told_so(tmp_path):
    process = start(tmp_path / "many", 2, "--accumulation=1")
    out = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert out.count("set accumulation to 2") == 1
