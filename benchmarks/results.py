"""The published figures: this opens the sealed test text. Choose settings before, not by it.

    python benchmarks/results.py                                   the included models
    python benchmarks/results.py checkpoints/*.safetensors         these runs
    python benchmarks/results.py --orders 8                        and how loose the bound is

Training and validation never see the test text (`split_text` in corpus.py). Here it is read by the
compressors, which know the training text, and by the models. Runs that differ in their seed alone
are one row: their mean, and its standard error over the seeds. With one seed, ± is the error of the
measurement alone. All figures go to results.json as well.

A compressor goes on learning while it reads; a network with fixed weights does not. So there is a
second figure for PPMd, "frozen": a hundred windows of the test text, as long as the included
model's, are compressed right after the training text, each as if it were alone.

Along one order of writing, diffusion's cost of a text is exact. The mean probability along K random
orders gives a tighter bound than ours, which is that of K = 1 (section 5 of twin.ipynb): --orders K
says by how much, from windows evenly spread over the test text.
"""

import math
import re
import statistics
from dataclasses import asdict

import numpy as np
import pyppmd
import torch
from common import ROOT, keep, make_parser, start_table

from compressors import COMPRESSORS, bits_per_byte, compressed_bpb
from corpus import covering_windows, is_prepared, open_test, text_parts
from mdlm.model import DiffusionTransformer
from mdlm.training import evaluate
from mdlm.twin import nats_along
from saving import INCLUDED, load_checkpoint
from train import load_any, parts

OURS = [ROOT / "checkpoints" / f"{name}.safetensors" for name in INCLUDED]


def ppmd(data):
    """Size of data under PPMd (Shkarin 2002, variant I) with contexts of up to 16 bytes."""
    return len(pyppmd.compress(data, max_order=16, mem_size=1 << 28))


def frozen_ppmd(train_text, pieces):
    """Bits per byte of pieces of bytes, each after the training text alone: (mean, error)."""
    known = train_text.encode("utf-8")
    before = ppmd(known)
    sizes = [8 * (ppmd(known + piece) - before) / len(piece) for piece in pieces]
    return statistics.mean(sizes), statistics.stdev(sizes) / len(sizes) ** 0.5


def repeated(train_text, test_text, n=8):
    """Share of the test text's runs of n words that occur in the training text, too."""
    words = [re.findall(r"\w+", text.lower()) for text in (train_text, test_text)]
    known, runs = ([tuple(w[i : i + n]) for i in range(len(w) - n + 1)] for w in words)
    known = set(known)
    return sum(run in known for run in runs) / max(1, len(runs))


def compress(train_text, test_text, n_windows, length=1100):
    """What the compressors need for the test text: a list of rows."""
    rows = []
    for name, size in (COMPRESSORS | {"PPMd, order 16": ppmd}).items():
        rows.append(dict(name=name, test=compressed_bpb(size, train_text, test_text)[1]))
    test = test_text.encode("utf-8")
    starts = np.linspace(0, len(test) - length, n_windows).astype(int)
    mean, error = frozen_ppmd(train_text, [test[s : s + length] for s in starts])
    rows.append(dict(name="PPMd, order 16, frozen", test=mean, error=error))
    share = repeated(train_text, test_text)
    print(f"\nThe test text is open: {len(test_text):,} characters.", end=" ")
    print(f"Of its runs of eight words, {share:.1%} occur in the training text, too.\n")
    return rows


def measure(path, smoke):
    """What one checkpoint says of the test text, and what is known of its run: a dict."""
    model, tokenizer, metadata = load_any(path)
    tokens, n_bytes = open_test(model.config, tokenizer)
    if smoke:
        tokens, n_bytes = tokens[:300], 1200
    passes = 1 if model.config.causal or smoke else 8
    nats = evaluate(model, tokens, passes=passes, bound=parts(model.config)["bound"])
    bpb, error = (bits_per_byte(n, len(tokens), n_bytes) for n in nats)
    run = asdict(model.config) | {"code": metadata["code"]}
    seed = run.pop("seed")
    return dict(
        run=run,
        name=path.stem,
        seed=seed,
        parameters=metadata["parameters"],
        minutes=metadata["seconds"] / 60,
        validation=metadata["history"][-1]["bpb"],
        test=bpb,
        error=error,
    )


def looseness(path, n_orders, n_windows):
    """By how much a mean over orders lowers the bound, in bits per byte: (mean, error)."""
    model, tokenizer, _ = load_checkpoint(path, DiffusionTransformer)
    tokens, _ = open_test(model.config, tokenizer)
    gains, noise, device = [], torch.Generator().manual_seed(0), next(model.parameters()).device
    for x in covering_windows(tokens, model.config.context, max_windows=n_windows)[0]:
        orders = [torch.randperm(len(x), generator=noise) for _ in range(n_orders)]
        nats = nats_along(model, x.to(device), torch.stack(orders).to(device))  # (K,)
        gain = nats.mean() + (-nats).logsumexp(dim=0) - math.log(n_orders)
        gains.append(bits_per_byte(gain.item(), 1, len(tokenizer.decode_bytes(x.tolist()))))
    return statistics.mean(gains), statistics.stdev(gains) / n_windows**0.5


def main():
    parser = make_parser(__doc__)
    parser.add_argument(
        "--orders", type=int, default=0, metavar="K", help="(8: 20 minutes on a core)"
    )
    parser.add_argument("--windows", type=int, default=32, help="for --orders (default: 32)")
    parser.add_argument("checkpoints", nargs="*", default=OURS, help="(default: the included)")
    arguments = parser.parse_args()
    arguments.checkpoints = [ROOT / path for path in arguments.checkpoints]
    rows = [measure(path, arguments.smoke) for path in arguments.checkpoints]
    corpus, others = rows[0]["run"]["corpus"], []
    if not is_prepared(corpus):
        train_text, _, test_text = text_parts(corpus, ROOT / "data")
        most = (20_000, 2000, 3) if arguments.smoke else (None, None, 100)
        others = compress(train_text[: most[0]], test_text[: most[1]], most[2])
    row = start_table("", "parameters", "minutes", "validation", "test, bits per byte", "seeds")
    for other in others:
        error = f" ± {other['error']:.3f}" if "error" in other else ""
        row(other["name"], "", "", "", f"{other['test']:.3f}{error}", "")
    groups = {}
    for each in rows:
        groups.setdefault(str(each["run"]), []).append(each)
    for group in groups.values():
        tests = [each["test"] for each in group]
        seeds, first = len(tests), group[0]
        error = statistics.stdev(tests) / seeds**0.5 if seeds > 1 else first["error"]
        bound = "" if first["run"]["causal"] else "at most "
        row(
            ", ".join(each["name"] for each in group),
            f"{first['parameters'] / 1e6:.1f}M",
            f"{statistics.mean(each['minutes'] for each in group):.0f}",
            f"{statistics.mean(each['validation'] for each in group):.3f}",
            f"{bound}{statistics.mean(tests):.3f} ± {error:.3f}",
            seeds,
        )
    diffusion = [r["name"] for r in rows if not r["run"]["causal"] and not r["run"]["block"]]
    for path in (p for p in arguments.checkpoints if arguments.orders and p.stem in diffusion):
        gain, error = looseness(path, arguments.orders, arguments.windows)
        name = f"{path.stem}, mean over {arguments.orders} orders"
        print(f"\n{name}: the bound is lower by {gain:.4f} ± {error:.4f}")
        others.append(dict(name=name, gain=gain, error=error, windows=arguments.windows))
    if not arguments.smoke:
        keep(__file__, others + rows)


if __name__ == "__main__":
    main()
