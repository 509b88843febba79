"""Time the samplers: idle steps skipped against the plain loop, and how far from the limit.

    python benchmarks/sampling.py                  the newest checkpoint; a table, and sampling.json
    python benchmarks/sampling.py --rounds 1 --texts 16 --steps 64

Plain and cached take turns in one process; the figures are medians. The column
"cached / products" divides by the time that the matrix products of the same network calls take by
themselves, with nothing around them.
"""

from functools import partial

import torch
import torch.nn.functional as F
from common import ROOT, in_turns, keep, make_parser, start_table

from hardware import device_choices
from mdlm.model import DiffusionTransformer
from mdlm.sampling import sample, sample_plain
from saving import load_checkpoint, newest_checkpoint

CPU = torch.device("cpu")
COLUMNS = {  # heading: (key, format)
    "texts": ("texts", "{}"),
    "T": ("T", "{}"),
    "calls": ("calls", "{:.1f}"),
    "plain": ("plain", "{:.2f} s"),
    "cached": ("cached", "{:.2f} s"),
    "faster": ("faster", "{:.1f} x"),
    "tokens/s": ("tokens_per_s", "{:,.0f}"),
    "products alone": ("products", "{:.2f} s"),
    "cached / products": ("times", "{:.2f}"),
}


@torch.no_grad()
def passes(model, n_texts):
    """A function that does the matrix products of one network call, on `n_texts` whole contexts."""
    config, dtype = model.config, device_choices(CPU).dtype
    weights = [p.to(dtype) for p in model.blocks[0].parameters() if p.dim() == 2]
    inputs = [torch.randn(n_texts * config.context, w.shape[1], dtype=dtype) for w in weights]
    shape = n_texts, config.n_heads, config.context, config.d_model // config.n_heads
    q, k, v = torch.randn(3, *shape).to(dtype)

    def one_pass():
        for _ in model.blocks:
            for w, x in zip(weights, inputs, strict=True):
                F.linear(x, w)
            (q @ k.mT) @ v

    return one_pass


def measure(model, n_texts, steps, rounds, with_plain):
    """A row of the table: medians, in seconds."""
    masks = torch.full((n_texts, model.config.context), model.mask_id)
    ways = {"plain": sample_plain, "cached": sample} if with_plain else {"cached": sample}
    row = in_turns({name: partial(way, model, masks, steps) for name, way in ways.items()}, rounds)
    calls = sample(model, masks, steps).network_calls  # per text: all together, full batches
    products = calls * in_turns({"": passes(model, n_texts)}, 5)[""]
    row |= dict(texts=n_texts, T=steps, calls=calls, products=products)
    row |= dict(tokens_per_s=masks.numel() / row["cached"], times=row["cached"] / products)
    return row | (dict(faster=row["plain"] / row["cached"]) if with_plain else {})


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--checkpoint", help="a .safetensors file (default: the newest)")
    parser.add_argument("--texts", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--steps", type=int, nargs="+", default=[64, 256, 1000], metavar="T")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.texts, arguments.steps, arguments.rounds = [1], [2], 1
    path = arguments.checkpoint or newest_checkpoint(ROOT / "checkpoints")
    model, _, _ = load_checkpoint(path, DiffusionTransformer, CPU)
    print_row, rows = start_table(*COLUMNS), []
    for n_texts in arguments.texts:
        for steps in arguments.steps:  # the plain loop is timed with the smallest batch only
            with_plain = n_texts == min(arguments.texts)
            rows.append(row := measure(model, n_texts, steps, arguments.rounds, with_plain))
            print_row(*(f.format(row[key]) if key in row else "" for key, f in COLUMNS.values()))
    if not arguments.smoke:
        keep(__file__, rows)


if __name__ == "__main__":
    main()
