"""When text is scarce: diffusion against its autoregressive twin, over many epochs of 400 kB.

    python benchmarks/data_limited.py --seeds 1 2 --jobs 2     two hours on an older 2-core CPU
    python benchmarks/data_limited.py --seeds 1 --steps 400

Prabhudesai et al. (2025, arXiv 2507.15857) and Ni et al. (2025, arXiv 2511.03276) report that
masked diffusion, trained for long on little text, overtakes autoregression. Here both models have
the same size, text and tokenizer: the first 400 kB of the King James text to train on, the next
100 kB to validate. The twin gets shorter runs: one that will be stopped early should have let its
learning rate fall by then. Writes data_limited.json and img/data-limited.png.
"""

import tempfile

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from common import ROOT, keep, make_parser, run_apart, start_table

from bpe_tokenizer import BPETokenizer
from corpus import load_text, tokenize
from mdlm.training import train
from settings import settings

# Muon's usual rate: at the default one, diffusion memorises so short a text (1.53)
SIZE = dict(vocab_size=1024, n_layers=4, d_model=128, n_heads=2, muon_lr=0.02)
NAMES = {True: "twin", False: "diffusion, at most"}


def prepare(n):
    """The first n characters of the book to train on, the next n / 4 to validate."""
    text = load_text("kjv", ROOT / "data")
    train_text, val_text = text[:n], text[n : n * 5 // 4]
    return tokenize(train_text, val_text, BPETokenizer.train(train_text, SIZE["vocab_size"]))


def run_once(n, causal, steps, seed):
    """One run on n characters. Returns its curve: a dict with lists of the same length."""
    plan = dict(steps=steps, warmup=min(100, steps // 4), eval_every=max(1, steps // 25))
    plan |= dict(eval_windows=10**6, save_every=10**8)  # all of the validation text, every time
    plan |= dict(compile=steps >= 100)  # which takes longer than a few steps
    config = settings("medium", **SIZE, causal=causal, seed=seed, **plan)
    corpus = prepare(n)
    with tempfile.TemporaryDirectory() as folder:
        history = train(config, corpus, folder).history
    epochs = [row["tokens"] / len(corpus.train) for row in history]
    curve = {key: [row[key] for row in history] for key in ("bpb", "error")}
    return dict(causal=causal, steps=steps, seed=seed, epochs=epochs, **curve)


def best(curves, causal, seed):
    """(bits per byte, epochs, error) of a model's best moment in all its runs with one seed."""
    own = [c for c in curves if c["causal"] == causal and c["seed"] == seed]
    return min(pair for c in own for pair in zip(c["bpb"], c["epochs"], c["error"], strict=True))


def draw(curves, seeds):
    """Validation bits per byte over epochs, both models on one plot."""
    matplotlib.use("agg")
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for causal, name, color in [(False, "diffusion (a bound)", "C0"), (True, "twin", "C1")]:
        for curve in [c for c in curves if c["causal"] == causal]:
            style = ("-", "--", ":")[seeds.index(curve["seed"]) % 3]
            x, y = curve["epochs"][1:], curve["bpb"][1:]  # a logarithmic axis has no zero
            axes.plot(x, y, style, color=color, alpha=0.6, linewidth=1.2)
        points = np.array([best(curves, causal, seed) for seed in seeds])
        axes.scatter(points[:, 1], points[:, 0], color=color, zorder=3, label=f"{name}, best")
    axes.set(xscale="log", xlabel="epochs of 400 kB")
    axes.set(ylabel="validation bits per byte", ylim=(None, 3.2))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(ROOT / "img" / "data-limited.png", dpi=120)


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=5000, help="of diffusion (default: 5000)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time (default: 1)")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.seeds, arguments.steps = [1], 1
    n, curves = 8_000 if arguments.smoke else 400_000, []
    twins = {max(1, arguments.steps // part) for part in (16, 8, 3)}  # it overfits sooner
    runs = [(False, arguments.steps, seed) for seed in arguments.seeds]  # the long ones first
    runs += [(True, steps, seed) for seed in arguments.seeds for steps in twins]
    for _, curve in run_apart([(run_once, n, *each) for each in runs], arguments.jobs):
        curves.append(curve)
        if not arguments.smoke:
            keep(__file__, curves)
    print_row = start_table("", "best after, epochs", "validation, bits per byte", "each seed")
    for causal, name in NAMES.items():
        points = np.array([best(curves, causal, seed) for seed in arguments.seeds])
        k = len(points)
        spread = f" ± {points[:, 0].std(ddof=1) / k**0.5:.3f}" if k > 1 else ""
        figure = f"{points[:, 0].mean():.3f}{spread}"
        print_row(name, f"{points[:, 1].mean():.0f}", figure, np.round(points[:, 0], 3))
    if not arguments.smoke:
        draw(curves, arguments.seeds)


if __name__ == "__main__":
    main()
