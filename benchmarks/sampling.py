"""Time the samplers: idle steps skipped against the plain loop, and how far from the limit.

    python benchmarks/sampling.py                  the newest checkpoint; a table, and sampling.json
    python benchmarks/sampling.py --repeats 1 --texts 16 --steps 64

Plain and cached take turns in one process; the figures are medians. The column
"cached / products" divides by the time that the matrix products of the same network calls take by
themselves, with nothing around them.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bpe_tokenizer import UserError, write_atomically  # noqa: E402
from mdlm.sampling import sample, sample_plain  # noqa: E402
from mdlm.training import device_choices  # noqa: E402
from prepare import peak_memory  # noqa: E402
from saving import load_checkpoint, newest_checkpoint  # noqa: E402


def seconds(function, *arguments):
    """(seconds, result) of one call."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


@torch.no_grad()
def product_seconds(model, n_texts, repeats=5):
    """Seconds that the matrix products of one pass over `n_texts` contexts take by themselves."""
    dtype, L = device_choices(torch.device("cpu")).dtype, model.config.context
    weights = [p.to(dtype) for p in model.blocks[0].parameters() if p.dim() == 2]
    inputs = [torch.randn(n_texts * L, w.shape[1], dtype=dtype) for w in weights]
    heads, width = model.config.n_heads, model.config.d_model // model.config.n_heads
    q, k, v = torch.randn(3, n_texts, heads, L, width).to(dtype)

    def layer():
        for w, x in zip(weights, inputs, strict=True):
            F.linear(x, w)
        return (q @ k.mT) @ v

    layer()
    times = [seconds(layer)[0] for _ in range(repeats)]
    return statistics.median(times) * len(model.blocks)


def measure(model, n_texts, steps, repeats, with_plain):
    """One row of the table."""
    masks = torch.full((n_texts, model.config.context), model.mask_id)
    plain, cached = [], []
    for i in range(repeats):
        if with_plain:
            plain.append(
                seconds(sample_plain, model, masks, steps, torch.Generator().manual_seed(i))[0]
            )
        took, result = seconds(sample, model, masks, steps, torch.Generator().manual_seed(i))
        cached.append(took)
    calls = result.network_calls
    products = calls * product_seconds(
        model, n_texts
    )  # calls are per text: all together, so many full batches
    own, _ = peak_memory() or (None, None)
    row = {
        "texts": n_texts,
        "T": steps,
        "calls": calls,
        "plain_s": statistics.median(plain) if plain else None,
        "cached_s": statistics.median(cached),
        "tokens_per_s": masks.numel() / statistics.median(cached),
        "products_s": products,
        "times_products": statistics.median(cached) / products,
        "peak_MiB": own / 2**20 if own else None,  # unknown on Windows
    }
    row["speedup"] = row["plain_s"] / row["cached_s"] if plain else None
    return row


COLUMNS = {  # heading: (key, format)
    "texts": ("texts", "{}"),
    "T": ("T", "{}"),
    "calls": ("calls", "{:.1f}"),
    "plain": ("plain_s", "{:.2f} s"),
    "cached": ("cached_s", "{:.2f} s"),
    "faster": ("speedup", "{:.1f} x"),
    "tokens/s": ("tokens_per_s", "{:,.0f}"),
    "products alone": ("products_s", "{:.2f} s"),
    "cached / products": ("times_products", "{:.2f}"),
    "peak memory": ("peak_MiB", "{:.0f} MiB"),
}


def table(rows):
    """The rows as Markdown."""
    lines = [list(COLUMNS), ["---:"] * len(COLUMNS)]
    for row in rows:
        cells = [(row[key], form) for key, form in COLUMNS.values()]
        lines.append(["" if value is None else form.format(value) for value, form in cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", help="a .safetensors file (default: the newest)")
    parser.add_argument("--texts", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--steps", type=int, nargs="+", default=[64, 256, 1000], metavar="T")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", default=str(ROOT / "benchmarks" / "sampling.json"))
    arguments = parser.parse_args(argv)
    try:
        path = arguments.checkpoint or newest_checkpoint(ROOT / "checkpoints")
        model, _, facts = load_checkpoint(path, "cpu")
        sample(model, torch.full((1, 8), model.mask_id), 4)  # warm up
        rows = []
        for n_texts in arguments.texts:
            for steps in arguments.steps:  # the plain loop is timed on the smallest batch only
                with_plain = n_texts == min(arguments.texts)
                rows.append(measure(model, n_texts, steps, arguments.repeats, with_plain))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
        facts = {"parameters": facts["parameters"], "threads": torch.get_num_threads()}
        report = {"context": model.config.context, **facts, "rows": rows}
        write_atomically(arguments.json, json.dumps(report, indent=1).encode("utf-8"))
    except UserError as error:
        print(f"sampling.py: {error}", file=sys.stderr)
        return 2
    print(f"\n{table(rows)}\n\n{arguments.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
