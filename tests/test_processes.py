"""Several processes train what one would: same losses, same weights, same figures, same files."""

import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
import torch

import hardware
import train
from conftest import FORK, OPTIONS, ROOT, TEXT
from mdlm.model import DiffusionTransformer
from saving import load_checkpoint, load_state

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed"
)


def all_options(folder, *more):
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    own = ["--accumulation=3", "--dropout=0.1", "--steps=24", f"--data={folder}/text.txt"]
    return [*OPTIONS, *own, f"--folder={folder}", *more]


def work(environment, printed, options):
    """What torchrun has each process do, in float32: only the order of the sums may differ."""
    os.environ.update(environment)
    with printed.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    hardware.cpu_has_bfloat16 = lambda: False
    code = train.main([option.replace("RANK", os.environ.get("RANK", "")) for option in options])
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)


def run(folder, n, *more):
    """n processes train in a folder. Returns (all that was printed, whether it went well)."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    printed, options, processes = folder / "printed", all_options(folder, *more), []
    together = dict(WORLD_SIZE=str(n), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    for rank in range(n):
        environment = together | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if n > 1 else {}
        processes.append(FORK.Process(target=work, args=(environment, printed, options)))
        processes[rank].start()
    for process in processes:
        process.join(300 if processes[0].exitcode in (None, 0) else 0)
        process.kill()
    return printed.read_text(encoding="utf-8"), processes[0].exitcode == 0


def finished(folder):
    state = load_state(next(folder.glob("*.resume.pt")))
    figures = [(row["bpb"], row["error"]) for row in state["history"]]
    return torch.tensor(state["losses"]), torch.tensor(figures), *state["model"].values()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    out, went_well = run(folder, 1)
    assert went_well, out
    return folder


def assert_same(folder, other):
    for a, b in zip(finished(folder), finished(other), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4)


def test_two_processes_do_what_one_does(alone, tmp_path):
    out, went_well = run(tmp_path, 2)
    assert went_well, out
    assert out.count("bits per byte\n") == 1 and out.count("tokens to train on") == 1
    assert_same(tmp_path, alone)


@pytest.mark.parametrize("mistake", ["set accumulation to 2", "share that folder"])
def test_processes_that_cannot_work_together_are_told_so_in_one_line(mistake, alone, tmp_path):
    options = ["--accumulation=1"]
    if mistake == "share that folder":
        (tmp_path / "of0").symlink_to(alone)  # where a run is finished; the other sees none
        options = [f"--data={alone}/text.txt", f"--folder={tmp_path}/ofRANK"]
    out, went_well = run(tmp_path, 2, *options)
    assert not went_well and out.count(mistake) == 1


# train.py as it is, in float32; and so slow that we are in time for whatever is to happen to it
SLOWLY = """
import os, sys, time
import hardware, train
hardware.cpu_has_bfloat16 = lambda: False
usual = hardware.Hardware.parts
hardware.Hardware.parts = lambda *given: (time.sleep(0.3), usual(*given))[1]
code = train.main()
sys.stdout.flush(), sys.stderr.flush()
os._exit(code)
"""


def torchrun(folder):
    """What started two processes, and these, as soon as they have saved something."""
    (folder / "slowly.py").write_text(SLOWLY, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [folder / "slowly.py", *all_options(folder, "--save-every=2")]
    own = dict(CUDA_VISIBLE_DEVICES="", PYTHONPATH=str(ROOT))
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    process = subprocess.Popen(list(map(str, command)), env=os.environ | own, **pipes)
    limit = time.monotonic() + 300
    while not list(folder.glob("*.resume.pt")):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    return process, psutil.Process(process.pid).children()


def test_when_one_is_killed_all_end_and_one_goes_on(alone, tmp_path):
    process, workers = torchrun(tmp_path)
    workers[1].kill()
    process.communicate(timeout=300)
    assert process.returncode != 0
    load_checkpoint(next(tmp_path.glob("*.safetensors")), DiffusionTransformer)  # usable
    out, went_well = run(tmp_path, 1, "--save-every=2")  # another number of processes
    assert went_well and "from step" in out, out
    assert_same(tmp_path, alone)


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send Ctrl-C to one process")
def test_when_one_is_asked_to_stop_all_stop(tmp_path):
    process, workers = torchrun(tmp_path)
    workers[1].send_signal(signal.SIGINT)
    out = process.communicate(timeout=300)[0]
    step = load_state(next(tmp_path.glob("*.resume.pt")))["step"]
    assert out.count(f"stopped at step {step} of 24, and saved: run again to go on") == 1
