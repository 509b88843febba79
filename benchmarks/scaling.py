"""How much two processes gain: 2 x 1 thread against 1 x 2 threads, the same run, taking turns.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --processes 4 --steps 40

The run is `train.py` with the CPU preset and as many parts as processes; figures are the median
time of a step by its own clock, compiling left out.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

WORKER = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
import torch, train
from mdlm.config import Config
from mdlm.corpus import prepare_corpus
from mdlm.training import Run, training_step

steps, parts, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
rank, config = train.join_processes(), Config(accumulation=parts)
corpus = prepare_corpus(config)
run, times = Run(config, corpus, folder), []
for step in range(steps):
    start = time.perf_counter()
    training_step(run.model, run.optimizers, run.scaler, corpus, config, step).item()
    times.append(time.perf_counter() - start)
if rank == 0:
    print("milliseconds", 1000 * sorted(times[5:])[len(times[5:]) // 2], flush=True)
train.leave(0)
"""


def step_time(processes, threads, parts, steps):
    """Median milliseconds of a step."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "worker.py"
        script.write_text(WORKER, encoding="utf-8")
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *(launch if processes > 1 else []), str(script)]
        done = subprocess.run(
            [*command, str(steps), str(parts), folder],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
    if done.returncode:
        sys.exit(f"scaling.py: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout.split("milliseconds")[1].split()[0])


def main(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    if arguments.steps < 6:
        parser.error("--steps must be above 5: those compile and are not counted")
    n, start = arguments.processes, time.perf_counter()
    ways = {f"1 process x {n} threads": (1, n), f"{n} processes x 1 thread": (n, 1)}
    ways["1 process x 1 thread"] = (1, 1)
    times = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, (processes, threads) in ways.items():
            times[name].append(step_time(processes, threads, n, arguments.steps))
    one = statistics.median(times["1 process x 1 thread"])
    print("| | step | faster than one thread | efficiency |\n|---|---:|---:|---:|")
    for name, values in times.items():
        median = statistics.median(values)
        used = 1 if name == "1 process x 1 thread" else n
        print(f"| {name} | {median:.0f} ms | {one / median:.2f} x | {one / median / used:.0%} |")
    print(f"({time.perf_counter() - start:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
