"""Several processes train what one would: same losses, same weights, same figures, same files."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train
from conftest import OPTIONS, TEXT
from mdlm.model import DiffusionTransformer
from saving import load_checkpoint, load_state

# train.py as it is, but in float32 everywhere: only the order of the sums may differ; and so slow,
# if asked to be, that we are in time for whatever is to happen to it
IN_FLOAT32 = """
import os, sys, time
import hardware, train
hardware.cpu_has_bfloat16 = lambda: False
usual = hardware.Hardware.parts
hardware.Hardware.parts = lambda *given: (time.sleep(float(os.environ["PAUSE"])), usual(*given))[1]
code = train.main()
sys.stdout.flush(), sys.stderr.flush()
os._exit(code)
"""
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed"
)


def start(folders, *options, pause=0.0, torchrun=False):
    """A process for each folder, which it is to write to (all in one, usually)."""
    folders[0].mkdir(exist_ok=True, parents=True)
    script, text, n = folders[0] / "script.py", folders[0] / "text.txt", str(len(folders))
    script.write_text(IN_FLOAT32, encoding="utf-8")
    text.write_text(TEXT, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    root = str(Path(train.__file__).parent)
    environment = os.environ | dict(CUDA_VISIBLE_DEVICES="", PAUSE=str(pause), PYTHONPATH=root)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    command = [str(script), *OPTIONS, "--accumulation=3", "--dropout=0.1", "--steps=24"]
    command += [f"--data={text}", *options]
    prefixes = [[sys.executable]] * len(folders)
    if torchrun:
        run = ["-m", "torch.distributed.run", f"--nproc-per-node={n}", f"--master-port={port}"]
        prefixes = [[sys.executable, *run]]
    processes = []
    for rank, prefix in enumerate(prefixes):
        if len(prefixes) > 1:  # what torchrun would do
            environment |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=n)
            environment |= dict(LOCAL_WORLD_SIZE=n, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        own = [*prefix, *command, f"--folder={folders[rank]}"]
        processes.append(subprocess.Popen(own, env=environment, **pipes))
    return processes


def end(processes):
    """(all that they print, their exit codes)"""
    out = "".join(process.communicate(timeout=300)[0] for process in processes)
    return out, [process.returncode for process in processes]


def finished(folder):
    state = load_state(next(folder.glob("*.resume.pt")))
    figures = [(row["bpb"], row["error"]) for row in state["history"]]
    return torch.tensor(state["losses"]), torch.tensor(figures), *state["model"].values()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    out, codes = end(start([folder]))
    assert codes == [0], out
    return folder


def assert_same(folder, other):
    for a, b in zip(finished(folder), finished(other), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4)


def test_two_processes_do_what_one_does(alone, tmp_path):
    out, codes = end(start([tmp_path] * 2, torchrun=True))
    assert codes == [0], out
    assert out.count("bits per byte\n") == 1 and out.count("tokens to train on") == 1
    assert_same(tmp_path, alone)


def two_workers(folder):
    """Two slow processes, as soon as they have saved something."""
    processes, limit = start([folder] * 2, "--save-every=2", pause=0.3), time.monotonic() + 300
    while not list(folder.glob("*.resume.pt")):
        assert processes[0].poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    return processes


def test_when_one_is_killed_all_end_and_one_goes_on(alone, tmp_path):
    processes = two_workers(tmp_path)
    processes[1].kill()
    out, codes = end(processes)
    assert 0 not in codes, out
    load_checkpoint(next(tmp_path.glob("*.safetensors")), DiffusionTransformer)  # usable
    out, codes = end(start([tmp_path], "--save-every=2"))  # another number of processes
    assert codes == [0] and "from step" in out, out
    assert_same(tmp_path, alone)


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send Ctrl-C to one process")
def test_when_one_is_asked_to_stop_all_stop(tmp_path):
    processes = two_workers(tmp_path)
    processes[1].send_signal(signal.SIGINT)
    out, codes = end(processes)
    assert out.count("and saved: run again to go on") == 1 and codes == [2, 2]
    step = load_state(next(tmp_path.glob("*.resume.pt")))["step"]
    assert f"stopped at step {step} of 24" in out


def test_processes_that_cannot_work_together_are_told_so_in_one_line(alone, tmp_path):
    out, codes = end(start([tmp_path / "many"] * 2, "--accumulation=1"))
    assert codes == [2, 2] and out.count("set accumulation to 2") == 1 == out.count("\n") - 1
    shutil.copytree(alone, tmp_path / "one")  # a run that is finished, but only one of them sees
    same = f"--data={alone / 'text.txt'}"
    out, codes = end(start([tmp_path / "one", tmp_path / "other"], same))
    assert codes == [2, 2] and out.count("share that folder") == 1
