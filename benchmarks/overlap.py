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

import math
import statistics
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import ROOT, make_parser, run, start_table
from tqdm import tqdm

from compressors import bits_per_byte
from corpus import corpus_of, windows
from files import UserError
from hardware import autocast
from mdlm.diffusion import masked_nats, next_token_nats, spread_mask_counts
from mdlm.model import DiffusionTransformer
from saving import load_checkpoint


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
        pairs = list(zip(texts.split(batch), k.split(batch), strict=True))
        for x, masks in tqdm(pairs, desc=f"{n_given} given", leave=False):
            with autocast(device):
                if model.config.causal:
                    nats = exact_nats(model, x.to(device), size)
                else:
                    nats = bound_nats(model, x.to(device), size, masks, noise)
            total += nats.double().sum().item()
    return total


def measure(model, corpus, n_given, passes):
    """Bits per byte of the validation text: (mean, standard error); the twin's is exact."""
    before = corpus.train[len(corpus.train) - n_given :]
    tokens = np.concatenate([before, corpus.val[:]])  # also of a folder of tokens
    noise, n = torch.Generator().manual_seed(0), len(corpus.val)
    nats = [
        one_reading(model, tokens, n_given, noise) / n
        for _ in range(1 if model.config.causal else passes)
    ]
    bpb = [bits_per_byte(x, n, corpus.val_bytes) for x in nats]
    error = statistics.stdev(bpb) / math.sqrt(passes) if len(bpb) > 1 else 0.0
    return statistics.mean(bpb), error


def main():
    parser = make_parser(__doc__)
    pair = [str(ROOT / "checkpoints" / f"{name}.safetensors") for name in ("kjv", "kjv-twin")]
    parser.add_argument("checkpoints", nargs="*", default=pair, help="(default: the included pair)")
    parser.add_argument("--given", type=int, nargs="+", default=[0, 128, 192], help="in tokens")
    parser.add_argument("--passes", type=int, default=4, help="readings of the text (default: 4)")
    arguments = parser.parse_args()
    if arguments.passes < 2:
        raise UserError("--passes must be at least 2: the error comes from their differences")
    print_row = start_table("model", "tokens given", "bits per byte")
    for path in arguments.checkpoints:
        model, tokenizer, metadata = load_checkpoint(path, DiffusionTransformer)
        if model.config.time_conditioning:
            raise UserError(f"{path}: not for a model that is told the time of its whole window")
        corpus = corpus_of(model.config, tokenizer, metadata)
        if arguments.smoke:
            corpus.val, corpus.val_bytes = corpus.val[:300], 1200
        for n_given in arguments.given:
            if not 0 <= n_given < model.config.context:
                raise UserError(f"--given {n_given}: from 0 to {model.config.context - 1}")
            bpb, error = measure(model, corpus, n_given, arguments.passes)
            figure = f"{bpb:.3f}" if model.config.causal else f"at most {bpb:.3f} ± {error:.3f}"
            print_row(Path(path).stem, n_given, figure)


if __name__ == "__main__":
    run(main)
