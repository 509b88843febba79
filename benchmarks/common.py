"""What the benchmarks share: options, times, tables, and runs in processes of their own.

It puts the repository's folder on Python's path, so a benchmark imports it before the rest.
"""

import contextlib
import datetime
import io
import json
import multiprocessing
import platform
import re
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from files import Parser, UserError, use_utf8, write_atomically  # noqa: E402


def show_error(kind, error, trace):
    """A user's mistake gets one line, also one that importing mdlm finds."""
    if issubclass(kind, UserError):
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


use_utf8()
sys.excepthook = show_error

from corpus import Corpus  # noqa: E402
from hardware import Hardware, compile_blocks, pick_device  # noqa: E402
from mdlm.training import EMA, make_optimizers, training_step  # noqa: E402
from train import parts  # noqa: E402


def make_parser(doc):
    """A parser with the option that every benchmark has."""
    parser = Parser(doc)
    parser.add_argument("--smoke", action="store_true", help="only see that it runs, in seconds")
    return parser


def seconds(function):
    """How long one call takes, a GPU's queue included."""
    start = time.perf_counter()
    function()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def in_turns(contestants, rounds):
    """Median seconds of each of {name: function}: they take turns, after a call that warms up."""
    times = [{name: seconds(f) for name, f in contestants.items()} for _ in range(rounds + 1)]
    return {name: statistics.median(row[name] for row in times[1:]) for name in contestants}


def start_table(*heads):
    """Print the head of a Markdown table. Returns a function that prints a row: row(*cells)."""

    def row(*cells):
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)

    row(*heads)
    row("---", *["---:"] * (len(heads) - 1))  # words to the left, figures to the right
    return row


def keep(script, rows):
    """Write rows, and what they were measured on, to a JSON file beside the script."""
    info, name = Path("/proc/cpuinfo"), platform.processor()
    if info.exists():  # on Linux
        name = re.search(r"model name\s*: (.+)|$", info.read_text(encoding="utf-8"))[1] or name
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    versions = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    report = dict(machine=f"{name}, {versions}, {datetime.date.today()}", rows=rows)
    write_atomically(Path(script).with_suffix(".json"), json.dumps(report, indent=1).encode())


def random_corpus(config):
    """Tokens drawn at random: the time of a step does not depend on what the text says."""
    tokens = np.random.default_rng(0).integers(0, config.vocab_size - 1, 100_000).astype(np.uint16)
    return Corpus(None, tokens, tokens[:1000], 400_000, 4000)


def trainer(config, corpus, loss=None, device=None):
    """(model, optimizers, ema, step): step() does one step of training, and waits for it."""
    torch.manual_seed(config.seed)
    hardware = Hardware(device or pick_device())
    model = parts(config)["network"](config).to(hardware.device)
    optimizers, ema = make_optimizers(model, config), EMA(model, config.ema)
    if config.compile:
        compile_blocks(model.blocks, hardware.device)

    def step():
        training_step(model, optimizers, corpus, config, ema.n_updates, hardware, loss).item()
        ema.update()

    return model, optimizers, ema, step


def one_of(jobs, function, *arguments):
    """Call it with its share of the threads, its progress bar going nowhere."""
    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    with contextlib.redirect_stderr(io.StringIO()):
        return function(*arguments)


def run_apart(calls, jobs=1):
    """Call every (function, *arguments) in a new process, `jobs` at the same time.

    Yields (call, result) as they end: what one changes in the package does not reach the others.
    """
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, spawn, max_tasks_per_child=1)
    try:
        waiting = {pool.submit(one_of, jobs, *call): call for call in calls}
        for done in tqdm(as_completed(waiting), total=len(calls), unit="run"):
            yield waiting[done], done.result()
    finally:
        pool.shutdown(cancel_futures=True)  # after a failure, or Ctrl-C, no further one begins
