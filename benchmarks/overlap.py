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
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import ROOT, make_parser, start_table

from compressors import bits_per_byte
from corpus import corpus_of, windows
from files import UserError
from hardware import over_batches
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


def block_nats(model, x, k, generator, size):
    """Nats of the last `size` tokens of x (B, L), given those before them. Returns (B,).

    Exact for a twin; else an unbiased estimate of the NELBO, from k masks (B,) in 1..size.
    """
    if model.config.causal:
        return next_token_nats(model, x) - next_token_nats(model, x[:, :-size])
    order = torch.rand((len(x), size), generator=generator, dtype=torch.float64).argsort(dim=1)
    masked = F.pad(order.argsort(dim=1) < k[:, None], (x.shape[1] - size, 0)).to(x.device)  # (B, L)
    nats, row = masked_nats(model, x, torch.where(masked, model.mask_id, x))
    return torch.zeros(len(x), device=x.device).index_add(0, row, nats) * size / k.to(x.device)


@torch.no_grad()
def measure(model, corpus, n_given, passes):
    """Bits per byte of the validation text: (mean, standard error); the twin's is exact."""
    before = corpus.train[len(corpus.train) - n_given :]
    tokens = np.concatenate([before, corpus.val[:]])  # also of a folder of tokens
    noise, n = torch.Generator().manual_seed(0), len(corpus.val)
    total = torch.zeros(passes, dtype=torch.float64)  # nats of each reading
    for x, size in blocks(tokens, n_given, model.config.context - n_given):
        k = spread_mask_counts(passes * len(x), size, noise)
        nats = over_batches(partial(block_nats, size=size), model, x.repeat(passes, 1), k)
        total += nats.view(passes, -1).sum(dim=1)
    bpb = [bits_per_byte(each / n, n, corpus.val_bytes) for each in total.tolist()]
    return np.mean(bpb), np.std(bpb, ddof=1) / math.sqrt(passes) if passes > 1 else 0.0


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
            causal = model.config.causal
            bpb, error = measure(model, corpus, n_given, 1 if causal else arguments.passes)
            figure = f"{bpb:.3f}" if causal else f"at most {bpb:.3f} ± {error:.3f}"
            print_row(Path(path).stem, n_given, figure)


if __name__ == "__main__":
    main()
