"""What it costs that every window is begun blind: bits per byte with known text before each block.

    python benchmarks/overlap.py                                  the included pair, ten minutes
    python benchmarks/overlap.py checkpoints/mine.safetensors --given 0 64

The other figures of this repository cut the validation text into windows, and a window's first
tokens are predicted from nothing. Here a window begins with `given` tokens that count as known, and
only the rest, a block, is paid for; the next window is given the end of this one. By the chain rule
the blocks' costs add up to that of the text. For a diffusion model each is a bound on
-log p(block | given): the masks fall among the block's tokens only. Its sampler would write block
by block (`sample_long`). With 0 tokens given, this is the usual figure.
"""

import argparse
import math
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bpe_tokenizer import UserError, print_anything  # noqa: E402
from mdlm.corpus import corpus_of, windows  # noqa: E402
from mdlm.diffusion import masked_nats, next_token_nats, spread_mask_counts  # noqa: E402
from mdlm.training import autocast, bits_per_byte  # noqa: E402
from saving import load_checkpoint  # noqa: E402


def blocks(tokens, n_given, size):
    """Cut tokens[n_given:] into blocks, each after what is given. Yields (windows, block length).

    tokens: (N,), the first n_given known. Windows: (B, n_given + block length); the last block, if
    it is shorter, comes by itself.
    """
    n_whole, rest = divmod(len(tokens) - n_given, size)
    starts = size * np.arange(n_whole + 1)
    if n_whole:
        yield windows(tokens, starts[:-1], n_given + size), size
    if rest:
        yield windows(tokens, starts[-1:], n_given + rest), rest


def bound_nats(model, x, size, k, noise):
    """Unbiased estimate of the NELBO of the last `size` tokens, given those before them.

    x: (B, L), k: (B,) numbers of masks in 1..size. Returns (B,), as `nelbo` does.
    """
    rank = torch.rand((len(x), size), generator=noise, dtype=torch.float64).argsort(1).argsort(1)
    masked = F.pad(rank < k[:, None], (x.shape[1] - size, 0)).to(x.device)  # (B, L)
    nats, row = masked_nats(model, x, torch.where(masked, model.mask_id, x))
    total = torch.zeros(len(x), device=x.device).index_add(0, row, nats)
    return total * size / k.to(x.device)


def exact_nats(twin, x, size):
    """-log p of the last `size` tokens, given those before them. x: (B, L) -> (B,)"""
    return next_token_nats(twin, x) - next_token_nats(twin, x[:, :-size])


@torch.no_grad()
def one_reading(model, tokens, n_given, noise, batch=32):
    """Nats of tokens[n_given:], each counted once: exact for a twin, else an unbiased estimate."""
    device, total = model.embedding.weight.device, 0.0
    for texts, size in blocks(tokens, n_given, model.config.context - n_given):
        k = spread_mask_counts(len(texts), size, noise)
        for x, masks in zip(texts.split(batch), k.split(batch), strict=True):
            with autocast(device):
                if model.config.causal:
                    nats = exact_nats(model, x.to(device), size)
                else:
                    nats = bound_nats(model, x.to(device), size, masks, noise)
            total += nats.double().sum().item()
    return total


def measure(model, corpus, n_given, passes, progress=lambda: None):
    """Bits per byte of the validation text: (mean, standard error); the twin's is exact."""
    before = corpus.train[len(corpus.train) - n_given :]
    tokens = np.concatenate([before, corpus.val[:]])  # also of a folder of tokens
    noise, readings = torch.Generator().manual_seed(0), []
    for _ in range(1 if model.config.causal else passes):
        nats = one_reading(model, tokens, n_given, noise)
        readings.append(bits_per_byte(nats / len(corpus.val), len(corpus.val), corpus.val_bytes))
        progress()
    error = statistics.stdev(readings) / math.sqrt(passes) if len(readings) > 1 else 0.0
    return statistics.mean(readings), error


def main(argv=None):
    """Command line."""
    print_anything()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "checkpoints",
        nargs="*",
        default=["checkpoints/kjv.safetensors", "checkpoints/kjv-twin.safetensors"],
        help="(default: the included pair)",
    )
    parser.add_argument("--given", type=int, nargs="+", default=[0, 128, 192], help="in tokens")
    parser.add_argument("--passes", type=int, default=4, help="readings of the text (default: 4)")
    arguments = parser.parse_args(argv)
    if arguments.passes < 2:
        parser.error("--passes must be at least 2: the error comes from their differences")
    print("| model | tokens given | bits per byte |\n|---|---:|---:|")
    for path in arguments.checkpoints:
        model, tokenizer, _ = load_checkpoint(path)
        if model.config.time_conditioning:
            raise UserError(f"{path}: not for a model that is told the time of its whole window")
        corpus = corpus_of(model.config, tokenizer)
        for n_given in arguments.given:
            if not 0 <= n_given < model.config.context:
                raise UserError(f"--given {n_given}: from 0 to {model.config.context - 1}")
            n = 1 if model.config.causal else arguments.passes
            with tqdm(total=n, desc=f"{n_given} given", leave=False) as bar:
                bpb, error = measure(model, corpus, n_given, arguments.passes, bar.update)
            figure = f"{bpb:.3f}" if model.config.causal else f"at most {bpb:.3f} ± {error:.3f}"
            print(f"| {Path(path).stem} | {n_given} | {figure} |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"overlap.py: {error}")
