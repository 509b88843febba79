"""Draw the figures of the learning guide.

python img/figures.py                 all of them; the third with the included model, in minutes
python img/figures.py --repeats 50    fewer estimates for the third, faster
python img/figures.py --checkpoint checkpoints/mine.safetensors
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from tqdm import trange

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "benchmarks"))
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from common import ROOT, make_parser  # noqa: E402

import pictures  # noqa: E402, F401 (the style of all plots)
import toy  # noqa: E402
from corpus import load_parts, windows  # noqa: E402
from hardware import autocast  # noqa: E402
from mdlm import diffusion  # noqa: E402
from mdlm.model import DiffusionTransformer  # noqa: E402
from saving import load_checkpoint  # noqa: E402

plt.rcParams.update({"figure.figsize": (7, 2.8), "savefig.dpi": 110, "savefig.bbox": "tight"})
GRID = [1, 2, 4, 8, 16, 32, 64]  # numbers of steps T


def forward():
    """Which tokens are masked, at all times."""
    x, times = torch.zeros(1, 64, dtype=torch.long), torch.linspace(0, 1, 41)
    noise = torch.Generator()  # the same each time: a mask stays a mask
    rows = [diffusion.forward_process(x, 1 - t[None], 1, noise.manual_seed(2)) for t in times]
    plt.imshow(torch.cat(rows).numpy(), aspect="auto", cmap="Blues", extent=(0, 64, 1, 0), vmax=1.3)
    plt.gca().set(xlabel="token", ylabel="t")
    plt.grid(False)


def bound():
    """The T-step bound against the entropy, exactly."""
    p = toy.some_language()
    exact, pairs = toy.ExactDenoiser(p), list(zip(p.tolist(), toy.TEXTS, strict=True))
    values = [sum(q * toy.exact_nelbo_in_steps(exact, x, T) for q, x in pairs) for T in GRID]
    plt.plot(GRID, values, "o-", label="bound with T steps")
    entropy = -(p * p.log()).sum().item()
    plt.axhline(entropy, color="k", ls=":", label="entropy of the language")
    plt.gca().set(xscale="log", xlabel="T", ylabel="nats per text")
    plt.xticks(GRID, GRID)
    plt.legend()


def steps():
    """Total variation of the ancestral sampler, exactly."""
    p = toy.some_language()
    exact, truth = toy.ExactDenoiser(p), dict(zip(toy.TEXTS, p.tolist(), strict=True))
    plt.plot(GRID, [toy.total_variation(toy.exact_sampler(exact, T), truth) for T in GRID], "o-")
    plt.gca().set(xscale="log", yscale="log", xlabel="T", ylabel="total variation")
    plt.xticks(GRID, GRID)


@torch.no_grad()
def variance(path, repeats):
    """How much four estimates of one batch's loss scatter, under a trained model."""
    model, tokenizer, _ = load_checkpoint(path, DiffusionTransformer)
    device, L, B = model.embedding.weight.device, model.config.context, 32
    train_text, _ = load_parts(model.config.corpus, ROOT / "data")
    tokens = np.array(tokenizer.encode(train_text[:400_000]))
    x = windows(tokens, np.linspace(0, len(tokens) - L, B).astype(int), L).to(device)
    noise = torch.Generator().manual_seed(0)

    def by_t(t):
        return diffusion.diffusion_loss(model, x, t.clamp_min(1e-4), generator=noise)

    def by_k(k):
        return diffusion.nelbo(model, x, k, noise)

    estimators = {
        "random t": lambda: by_t(torch.rand(B, generator=noise)),
        "low-discrepancy t": lambda: by_t(diffusion.low_discrepancy_t(B, noise)),
        "random k": lambda: by_k(torch.randint(1, L + 1, (B,), generator=noise)),
        "spread k": lambda: by_k(diffusion.spread_mask_counts(B, L, noise)),
    }
    values = {}
    with autocast(device):
        for name, estimate in estimators.items():
            rounds = trange(repeats, desc=name, leave=False)
            values[name] = [estimate().mean().item() / L for _ in rounds]
    base = np.var(values["random t"])
    _, axis = plt.subplots(figsize=(7, 2.4))
    for row, (name, v) in enumerate(values.items()):
        scatter, ratio = np.random.default_rng(0).uniform(-0.25, 0.25, len(v)), base / np.var(v)
        axis.plot(v, row + scatter, ".", alpha=0.5)
        print(f"{name:<18} mean {np.mean(v):.3f}, variance {np.var(v):.5f}, 1/{ratio:.1f}")
    axis.set(yticks=range(4), yticklabels=list(values), xlabel="estimate, nats per token")
    axis.invert_yaxis()


def main():
    parser = make_parser(__doc__)
    included = ROOT / "checkpoints" / "kjv.safetensors"
    parser.add_argument("--checkpoint", default=included, help="(default: the included model)")
    parser.add_argument("--repeats", type=int, default=200)
    arguments = parser.parse_args()
    repeats = 2 if arguments.smoke else arguments.repeats
    for draw in (forward, bound, steps, variance):
        draw(*([arguments.checkpoint, repeats] if draw is variance else []))
        if not arguments.smoke:
            plt.savefig(HERE / f"guide-{draw.__name__}.png")
        plt.close("all")


if __name__ == "__main__":
    main()
