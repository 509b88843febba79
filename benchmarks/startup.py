"""How long until there is something to see: the window's first frame, the first training step.

    python benchmarks/startup.py               medians of five starts of each; startup.json
    python benchmarks/startup.py --repeats 1

Each start is a new Python process, timed from before it is made. The window is drawn into memory
(SDL's dummy driver). Each program is started once before, uncounted: the disk's cache is warm, and
PyTorch has compiled the network before.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from bpe_tokenizer import BPETokenizer, write_atomically  # noqa: E402
from mdlm.corpus import load_text  # noqa: E402

WINDOW = """
import os, time
import sample_visual
import pygame
from visual import window
from visual.recording import MASKED
receive, written = window.receive, []

def watch(worker, record, state):
    record, state = receive(worker, record, state)
    written[:] = [bool((record.lanes[0].states[-1] != MASKED).any())]
    return record, state

class Window(pygame.Window):
    seen = False

    def flip(self):
        super().flip()
        if not self.seen:
            Window.seen = True
            print("the first frame: all masks", time.time())
        if written[0]:
            print("the first frame with words in it", time.time(), flush=True)
            os._exit(0)

window.receive, pygame.Window = watch, Window
sample_visual.main(["checkpoints/kjv.safetensors"])
"""

TRAINING = """
import tempfile, time
from mdlm.config import Config
from mdlm.corpus import prepare_corpus
from mdlm.training import Run, training_step
print("imported", time.time())
config = Config(compile={compile})
corpus = prepare_corpus(config)
print("text tokenized, vocabulary learned", time.time())
run = Run(config, corpus, tempfile.gettempdir())
training_step(run.model, run.optimizers, run.scaler, corpus, config, 0).item()
print("the first step{how}", time.time())
"""

TOKENIZER = """
import time
start = time.time()
from bpe_tokenizer import BPETokenizer
BPETokenizer.load({path!r})
print("a saved tokenizer of 4,096 tokens, import and all", {since} + time.time() - start)
"""


def start(code):
    """Run code in a new process: {what it reports: seconds since before the start}."""
    environment = {**os.environ, "SDL_VIDEODRIVER": "dummy", "PYTHONPATH": str(ROOT)}
    since = time.time()
    done = subprocess.run(
        [sys.executable, "-c", code.replace("{since}", repr(since))],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        sys.exit(f"startup.py: {done.stderr.strip().splitlines()[-1]}")
    lines = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    return {what: float(when) - since for what, when in lines if when.replace(".", "").isdigit()}


def main(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args(argv)
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "tokenizer-4096.json"
    BPETokenizer.train(load_text("kjv", ROOT / "data"), 4096).save(path)
    programs = {
        "`python sample_visual.py`": WINDOW,
        "training, compiled": TRAINING.format(
            compile=True, how=", with code that an earlier start has compiled"
        ),
        "training, not compiled": TRAINING.format(compile=False, how=""),
        "tokenizer": TOKENIZER.replace("{path!r}", repr(str(path))),
    }
    times = {}
    for i in range(arguments.repeats + 1):
        for program, code in programs.items():
            reported = start(code)
            if i > 0:  # the first time warms up
                for what, seconds in reported.items():
                    times.setdefault((program, what), []).append(seconds)
    print("| | seconds until | |\n|---|---|---:|")
    for (program, what), values in times.items():
        print(f"| {program} | {what} | {statistics.median(values):.2f} |")
    rows = [dict(program=p, until=what, seconds=values) for (p, what), values in times.items()]
    write_atomically(ROOT / "benchmarks" / "startup.json", json.dumps(rows, indent=1).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
