"""When text is scarce: diffusion against its autoregressive twin, over many epochs of 400 kB.

    python benchmarks/data_limited.py --seeds 1 2 --jobs 2     two hours on an older 2-core CPU
    python benchmarks/data_limited.py --seeds 1 --steps 400

Prabhudesai et al. (2025, arXiv 2507.15857) and Ni et al. (2025, arXiv 2511.03276) report that
masked diffusion, trained for long on little text, overtakes autoregression. Here both models have
the same size, text and tokenizer: the first 400 kB of the King James text to train on, the next
100 kB to validate. The twin gets shorter runs: one that will be stopped early should have let its
learning rate fall by then. Writes data_limited.json and img/data-limited.png.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from apart import run_apart  # noqa: E402

from bpe_tokenizer import BPETokenizer, write_atomically  # noqa: E402
from mdlm.config import Config  # noqa: E402
from mdlm.corpus import load_text, tokenize  # noqa: E402
from mdlm.training import train  # noqa: E402

# Muon's usual rate: at the default one, diffusion learns so short a text by heart (1.53)
SIZE = dict(vocab_size=1024, n_layers=4, d_model=128, n_heads=2, muon_lr=0.02)
RESULTS, PLOT = Path(__file__).with_name("data_limited.json"), ROOT / "img/data-limited.png"


def prepare():
    """400 kB to train on, the next 100 kB to validate."""
    text = load_text("kjv", ROOT / "data")
    train_text, val_text = text[:400_000], text[400_000:500_000]
    return tokenize(train_text, val_text, BPETokenizer.train(train_text, SIZE["vocab_size"]))


def run_once(corpus, causal, steps, seed):
    """One run. Returns its curve: a dict of lists."""
    config = Config(
        **SIZE,
        causal=causal,
        steps=steps,
        seed=seed,
        warmup=min(100, steps // 4),
        eval_every=max(1, steps // 25),
        eval_windows=10**6,  # all of the validation text, every time
        save_every=10**8,
    )
    with tempfile.TemporaryDirectory() as folder:
        history = train(config, corpus, folder).history
    epochs = [h["tokens"] / len(corpus.train) for h in history]
    return dict(
        causal=causal,
        steps=steps,
        seed=seed,
        epochs=epochs,
        bpb=[h["bpb"] for h in history],
        error=[h["error"] for h in history],
    )


def best(curves, causal, seed):
    """(bits per byte, epochs, error) of a model's best moment in all its runs with one seed."""
    own = [c for c in curves if c["causal"] == causal and c["seed"] == seed]
    return min(pair for c in own for pair in zip(c["bpb"], c["epochs"], c["error"], strict=True))


def draw(curves, seeds):
    """Validation bits per byte over epochs, both models on one plot."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for causal, name, color in [(False, "diffusion (a bound)", "C0"), (True, "twin", "C1")]:
        for curve in [c for c in curves if c["causal"] == causal]:
            axes.plot(curve["epochs"], curve["bpb"], color=color, alpha=0.5, linewidth=1.2)
        points = np.array([best(curves, causal, seed) for seed in seeds])
        axes.scatter(points[:, 1], points[:, 0], color=color, zorder=3, label=f"{name}, best")
    axes.set(xscale="log", xlabel="epochs of 400 kB (compute: the same for both)")
    axes.set(ylabel="validation bits per byte", ylim=(None, 3.2))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(PLOT, dpi=120)


def main(argv=None):
    """Command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=5000, help="of diffusion (default: 5000)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time (default: 1)")
    arguments = parser.parse_args(argv)
    corpus, curves = prepare(), []
    twins = [max(4, arguments.steps // part) for part in (16, 8, 3)]  # it overfits sooner
    runs = [(False, arguments.steps, seed) for seed in arguments.seeds]  # the long ones first
    runs += [(True, steps, seed) for seed in arguments.seeds for steps in twins]
    for _, curve in run_apart([(run_once, corpus, *run) for run in runs], arguments.jobs):
        curves.append(curve)
        write_atomically(RESULTS, json.dumps(curves, indent=1).encode())
    for seed in arguments.seeds:
        for causal, name in ((True, "twin"), (False, "diffusion")):
            bpb, epochs, error = best(curves, causal, seed)
            print(f"seed {seed}: {name} at best {bpb:.3f} ± {error:.3f} after {epochs:.0f} epochs")
    draw(curves, arguments.seeds)
    for causal, name in ((True, "twin"), (False, "diffusion")):
        points = np.array([best(curves, causal, seed) for seed in arguments.seeds])
        spread = f" ± {points[:, 0].std(ddof=1):.3f}" if len(points) > 1 else ", one seed"
        print(f"| {name} | {points[:, 1].mean():.0f} | {points[:, 0].mean():.3f}{spread} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
