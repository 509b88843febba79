"""A training step of "small" alone and beside busy programs, by how PyTorch's threads wait.

    python benchmarks/busy.py                 a table, and busy.json; five minutes on two cores
    python benchmarks/busy.py --seconds 1 --rounds 2

A step is split into small parts, and after each the threads wait for the slowest. They spin for a
while before they sleep; beside other programs, the core that one of them spins on is the one that
another needs. Environment variables of the OpenMP library say for how long, and are read once, when
PyTorch is imported. So each choice has a process of its own; they take turns. There is one busy
program for each core, at low priority (nice 19) or at the usual one, where half of the time, and so
twice as long a step, is a fair share.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from common import keep, make_parser, random_corpus, run, seconds, start_table, trainer

from files import UserError
from settings import settings

CHOICES = {
    "default": {},
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
    "GOMP_SPINCOUNT=30000": {"GOMP_SPINCOUNT": "30000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}
BUSY = {  # what runs beside it, on each core
    "alone": None,
    "low priority": "import os; os.nice(19)\nwhile True: pass",
    "usual priority": "while True: pass",
}
TINY = dict(vocab_size=300, n_layers=1, d_model=32, compile=False)  # for --smoke


def worker(changes):
    """Train: for each line, a number of seconds, print the times of the steps done in them."""
    config = settings("small", **changes)
    step = trainer(config, random_corpus(config))[2]
    for _ in range(3):  # the first of them compile
        step()
    print("ready", flush=True)
    for line in sys.stdin:
        times, end = [], time.perf_counter() + float(line)
        while not times or time.perf_counter() < end:
            times.append(seconds(step)[0])
        print(json.dumps(times), flush=True)


@contextmanager
def processes(commands, **options):
    """Run commands side by side, and end them at the end of the block."""
    started = [subprocess.Popen(command, **options) for command in commands]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def start_workers(stack, changes, choices):
    """{name: process} of one worker for each choice."""
    names = ("OMP_", "GOMP_", "KMP_", "MKL_")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(names)}
    command = [sys.executable, __file__, "--worker", json.dumps(changes)]
    workers = {}
    for name in choices:
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        options = pipes | dict(env=clean | CHOICES[name])
        workers[name] = stack.enter_context(processes([command], **options))[0]
        if not workers[name].stdout.readline():
            raise UserError(f"the process for {name} has failed")
    return workers


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="a turn (default: %(default)s)")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--worker", metavar="JSON", help="(how it starts itself)")
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(json.loads(arguments.worker))
    changes, choices, cores = {}, list(CHOICES), os.cpu_count()
    if arguments.smoke:
        changes, choices, arguments.rounds, arguments.seconds = TINY, choices[:1], 1, 0.0
    elif arguments.eager:
        changes = dict(compile=False)
    files = (Path(torch.__file__).parent / "lib").iterdir()
    library = ", ".join(p.name for p in files if re.match(r"(lib[gi]?|vc)omp[^a-z]", p.name))
    print(f"OpenMP library: {library or 'unknown'}; {cores} cores\n")
    times = {name: {beside: [] for beside in BUSY} for name in choices}
    with ExitStack() as stack:
        workers = start_workers(stack, changes, choices)
        for _ in range(arguments.rounds):
            for beside, code in BUSY.items():
                with processes([[sys.executable, "-c", code]] * cores if code else []):
                    time.sleep(0.5)
                    for name, process in workers.items():
                        process.stdin.write(f"{arguments.seconds}\n")
                        process.stdin.flush()
                        times[name][beside] += json.loads(process.stdout.readline())
    usual = statistics.median(times["default"]["alone"])
    print_row = start_table("median of a step (against the default alone)", *BUSY)
    for name, found in times.items():
        medians = [statistics.median(values) for values in found.values()]
        print_row(name, *(f"{1000 * m:.0f} ms ({m / usual:.2f} x)" for m in medians))
    if not arguments.smoke:
        keep(__file__, dict(openmp=library, seconds=times))


if __name__ == "__main__":
    run(main)
