"""A training step of "small" alone and beside busy programs, by how PyTorch's threads wait.

    python benchmarks/busy.py                 a table, and busy.json; five minutes on two cores
    python benchmarks/busy.py --seconds 1 --rounds 2

A step is split into small parts, and after each the threads wait for the slowest. They spin for a
while before they sleep; beside other programs, the core that one of them spins on is the one that
another needs. Environment variables of the OpenMP library say for how long, and are read once, when
PyTorch is imported. So each choice has a process of its own; they take turns. Beside them runs one
busy program for each core, at low priority (nice 19) or at the usual one, where half of the time,
and so twice as long a step, is a fair share; or another PyTorch program with a thread for each
core, which waits as PyTorch does by default.
"""

import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from common import keep, make_parser, random_corpus, seconds, start_table, trainer

from settings import settings

CHOICES = {
    "default": {},
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
    "GOMP_SPINCOUNT=30000": {"GOMP_SPINCOUNT": "30000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}
NICE, LOOP = "import os; os.nice(19)\n", "while True: pass"
PRODUCTS = "import torch; a = torch.ones(256, 256)\nwhile True: (a @ a).relu()"
BUSY = {  # what runs beside it, and whether once for each core
    "alone": ("", False),
    "low priority": (NICE + LOOP, True),
    "usual priority": (LOOP, True),
    "PyTorch, low priority": (NICE + PRODUCTS, False),
    "PyTorch, usual priority": (PRODUCTS, False),
}
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
SPINNING = re.compile("(G?OMP|KMP|MKL)_")
TINY = dict(vocab_size=300, n_layers=1, d_model=32, compile=False)  # for --smoke


def train(pipe, changes):
    """For each number of seconds that comes, send back the times of the steps done in them."""
    config = settings("small", **changes)
    step = trainer(config, random_corpus(config))[-1]
    for _ in range(3):  # the first of them compile
        step()
    pipe.send("ready")
    for turn in iter(pipe.recv, None):
        times, end = [], time.perf_counter() + turn
        while not times or time.perf_counter() < end:
            times.append(seconds(step))
        pipe.send(times)


def start_training(choice, changes):
    """Start a process that trains, in the environment of a choice. Returns the pipe to it."""
    spawn = multiprocessing.get_context("spawn")
    pipe, its_own = spawn.Pipe()
    for name in filter(SPINNING.match, list(os.environ)):
        del os.environ[name]
    os.environ.update(CHOICES[choice])
    spawn.Process(target=train, args=(its_own, changes), daemon=True).start()
    its_own.close()
    pipe.recv()
    return pipe


def take_turns(pipes, beside, turn):
    """Each trains for a turn, in seconds, while the others wait. Returns {name: times of steps}."""
    (program, on_each_core), times = BUSY[beside], {}
    environment = {k: v for k, v in os.environ.items() if not SPINNING.match(k)}
    others = [
        subprocess.Popen([sys.executable, "-c", program], env=environment)
        for _ in range(CORES if on_each_core else bool(program))
    ]
    try:
        time.sleep(3 if program.endswith(PRODUCTS) else 0.5)  # until torch is imported
        for name, pipe in pipes.items():
            pipe.send(turn)
            times[name] = pipe.recv()
    finally:
        for other in others:
            other.kill()
            other.wait()
    return times


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="a turn (default: %(default)s)")
    arguments = parser.parse_args()
    names, changes = list(CHOICES), {}
    if arguments.smoke:
        names, changes, arguments.rounds, arguments.seconds = names[:1], TINY, 1, 0.0
    files = [p.name for p in (Path(torch.__file__).parent / "lib").iterdir()]
    library = [name for name in files if re.match(r"(lib[gi]?|vc)omp[^a-z]", name)]
    print(f"OpenMP library: {', '.join(library) or 'unknown'}; {CORES} cores\n")
    pipes = {name: start_training(name, changes) for name in names}
    times = {name: {beside: [] for beside in BUSY} for name in names}
    for beside in list(BUSY) * arguments.rounds:
        for name, found in take_turns(pipes, beside, arguments.seconds).items():
            times[name][beside] += found
    for pipe in pipes.values():
        pipe.send(None)
    usual = statistics.median(times["default"]["alone"])
    print_row = start_table("median of a step (against the default alone)", *BUSY)
    for name, found in times.items():
        medians = [statistics.median(values) for values in found.values()]
        print_row(name, *(f"{1000 * m:.0f} ms ({m / usual:.2f} x)" for m in medians))
    if not arguments.smoke:
        keep(__file__, dict(openmp=library, seconds=times))


if __name__ == "__main__":
    main()
