"""Runs in processes of their own, for the benchmarks that train several models."""

import contextlib
import io
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch
from tqdm import tqdm


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
