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

import train
from conftest import OPTIONS, TEXT
from mdlm.model import DiffusionTransformer
from saving import load_checkpoint, load_state

# train.py as it is, but in float32 everywhere: only the order of the sums may differ; and so slow,
# if asked to be, that we are in time for whatever is to happen to it
SCRIPT = """
import os, sys, time
import hardware, train
hardware.cpu_has_bfloat16 = lambda: False
usual = hardware.Hardware.parts
hardware.Hardware.parts = lambda *given: (time.sleep(float(os.environ["PAUSE"])), usual(*given))[1]
code = train.main([option.replace("RANK", os.environ.get("RANK", "")) for option in sys.argv[1:]])
sys.stdout.flush(), sys.stderr.flush()
os._exit(code)
"""
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed"
)


def start(folder, n, *options, pause=0.0):
    """n processes that train in a folder."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
    command = [sys.executable, *(several if n > 1 else []), folder / "script.py", *OPTIONS]
    command += ["--accumulation=3", "--dropout=0.1", "--steps=24", f"--data={folder}/text.txt"]
    own = dict(CUDA_VISIBLE_DEVICES="", PAUSE=str(pause), PYTHONPATH=Path(train.__file__).parent)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    given = [*command, f"--folder={folder}", *options]
    return subprocess.Popen(list(map(str, given)), env=os.environ | own, **pipes)


def end(process):
    """(all that was printed, whether it went well)"""
    return process.communicate(timeout=300)[0], process.returncode == 0


def finished(folder):
    state = load_state(next(folder.glob("*.resume.pt")))
    figures = [(row["bpb"], row["error"]) for row in state["history"]]
    return torch.tensor(state["losses"]), torch.tensor(figures), *state["model"].values()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    out, went_well = end(start(folder, 1))
    assert went_well, out
    return folder


def assert_same(folder, other):
    for a, b in zip(finished(folder), finished(other), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4)


def test_two_processes_do_what_one_does(alone, tmp_path):
    out, went_well = end(start(tmp_path, 2))
    assert went_well, out
    assert out.count("bits per byte\n") == 1 and out.count("tokens to train on") == 1
    assert_same(tmp_path, alone)


def two_workers(folder):
    """What started two slow processes, and these, as soon as they have saved something."""
    process, limit = start(folder, 2, "--save-every=2", pause=0.3), time.monotonic() + 300
    while not list(folder.glob("*.resume.pt")):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    return process, psutil.Process(process.pid).children()


def test_when_one_is_killed_all_end_and_one_goes_on(alone, tmp_path):
    process, workers = two_workers(tmp_path)
    workers[1].kill()
    assert not end(process)[1]
    load_checkpoint(next(tmp_path.glob("*.safetensors")), DiffusionTransformer)  # usable
    out, went_well = end(start(tmp_path, 1, "--save-every=2"))  # another number of processes
    assert went_well and "from step" in out, out
    assert_same(tmp_path, alone)


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send Ctrl-C to one process")
def test_when_one_is_asked_to_stop_all_stop(tmp_path):
    process, workers = two_workers(tmp_path)
    workers[1].send_signal(signal.SIGINT)
    out = end(process)[0]
    step = load_state(next(tmp_path.glob("*.resume.pt")))["step"]
    assert out.count(f"stopped at step {step} of 24, and saved: run again to go on") == 1


def test_processes_that_cannot_work_together_are_told_so_in_one_line(tmp_path):
    out, went_well = end(start(tmp_path, 2, "--accumulation=1"))
    assert not went_well and out.count("set accumulation to 2") == 1
    folders = tmp_path / "of0", tmp_path / "of1"  # the first sees a run that is finished
    assert end(start(tmp_path, 1, f"--folder={folders[0]}"))[1]
    out, went_well = end(start(tmp_path, 2, f"--folder={tmp_path}/ofRANK"))
    assert not went_well and out.count("share that folder") == 1
