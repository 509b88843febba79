"""What takes too long for the tests: a million texts, a hundred megabytes, hours in one process.

    python benchmarks/robustness.py                      everything, about half an hour
    python benchmarks/robustness.py --fuzz 10000 --steps 200 --samples 50 --megabytes 10

Prints one line for each, and ends with exit code 1 if one of them fails.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
from tqdm import trange

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bpe_tokenizer import MASK, BPETokenizer  # noqa: E402
from mdlm.config import Config  # noqa: E402
from mdlm.corpus import load_text, prepare_corpus  # noqa: E402
from mdlm.sampling import sample  # noqa: E402
from mdlm.training import Run, read_losses, training_step  # noqa: E402

PARTS = [MASK, "<|", "|>", "mask", "a" * 70, " ", "\n", "\ud800", "\0", "’s", "\r\n", "\u202e"]


def resident_megabytes():
    """Memory that this process holds now."""
    return psutil.Process().memory_info().rss / 1e6


def any_text(chance):
    """Letters of any script, with what has a meaning for the tokenizer thrown in."""
    parts = []
    for _ in range(chance.randrange(12)):
        if chance.random() < 0.4:
            parts.append(chance.choice(PARTS))
        else:
            top = chance.choice([0x80, 0x800, 0x10000, 0x110000])
            parts.append("".join(chr(chance.randrange(top)) for _ in range(chance.randrange(6))))
    return "".join(parts)


def fuzz(tokenizer, n):
    """n random texts there and back."""
    chance, mask = random.Random(0), tokenizer.mask_id
    for _ in trange(n, unit="text", leave=False):
        text = any_text(chance)
        ids = tokenizer.encode(text)
        if mask in ids or tokenizer.decode_bytes(ids) != text.encode("utf-8", "surrogatepass"):
            print(f"tokenizer: {text!r} does not come back")
            return False
    print(f"tokenizer: {n:,} random texts came back, none with a mask in it")
    return True


def one_long_line(megabytes):
    """Train on and encode one line without a single line break."""
    line = (load_text("kjv", ROOT / "data").replace("\n", " ") * (megabytes // 4 + 1))[
        : megabytes * 10**6
    ]
    start, before = time.perf_counter(), resident_megabytes()
    tokenizer = BPETokenizer.train(line, 2048)
    ids = tokenizer.encode(line)
    seconds, held = time.perf_counter() - start, resident_megabytes() - before
    print(
        f"one line of {megabytes} MB: learned and encoded in {seconds:.0f} s, {len(ids):,} tokens, "
        f"{held:,.0f} MB more held"
    )
    back = tokenizer.decode_bytes(ids) == line.encode()
    if not back:
        print("FAILED: the line does not come back")
    return back


def flat(name, function, n):
    """Call function(i) n times: its memory may grow by 2 % from the second fifth to the last.

    Medians, as the number of masks, and with it what a step needs for a moment, changes each time.
    """
    held = []
    for i in trange(n, unit=name, leave=False):
        function(i)
        held.append(resident_megabytes())
    before, after = (statistics.median(held[n * a // 5 : n * (a + 1) // 5]) for a in (1, 4))
    print(f"{n:,} {name}s in one process: {before:,.0f} MB, then {after:,.0f} MB", end=" ")
    print(f"({after / before - 1:+.1%})")
    is_flat = after < 1.02 * before
    if not is_flat:
        print("FAILED: memory grows")
    return is_flat


def main(argv=None):
    """Command line. Returns the exit code: 1 if something failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fuzz", type=int, default=1_000_000, help="random texts")
    parser.add_argument("--megabytes", type=int, default=100, help="of one long line")
    parser.add_argument("--steps", type=int, default=2000, help="of training")
    parser.add_argument("--samples", type=int, default=500, help="sampled texts")
    arguments = parser.parse_args(argv)
    if min(arguments.steps, arguments.samples) < 5:
        parser.error("--steps and --samples must be at least 5")
    config = Config(n_layers=2, d_model=64, n_heads=2, steps=arguments.steps)
    corpus = prepare_corpus(config)
    good = []  # memory first, while the process is small
    with tempfile.TemporaryDirectory() as folder:
        run, pending = Run(config, corpus, folder), []

        def step(i):
            pending.append(training_step(run.model, run.optimizers, run.scaler, corpus, config, i))
            run.ema.update()
            if len(pending) == 10:
                read_losses(run, pending)

        good.append(flat("training step", step, arguments.steps))
        model = run.model.eval()
        masks = torch.full((1, config.context), model.mask_id)
        good.append(flat("sampling run", lambda i: sample(model, masks, 64), arguments.samples))
    good += [fuzz(corpus.tokenizer, arguments.fuzz), one_long_line(arguments.megabytes)]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
