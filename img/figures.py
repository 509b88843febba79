"""Draw the figures of the learning guide.

python img/figures.py                 all of them; the third with the included model, in minutes
python img/figures.py --repeats 50    fewer estimates for the third, faster
python img/figures.py --checkpoint checkpoints/mine.safetensors
"""

import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from tqdm import trange

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from bpe_tokenizer import UserError  # noqa: E402
from mdlm.corpus import load_parts, windows  # noqa: E402
from mdlm.diffusion import (  # noqa: E402
    diffusion_loss,
    forward_process,
    low_discrepancy_t,
    nelbo,
    spread_mask_counts,
)
from mdlm.training import autocast  # noqa: E402
from saving import load_checkpoint  # noqa: E402
from toy import (  # noqa: E402
    TEXTS,
    ExactDenoiser,
    exact_nelbo_in_steps,
    exact_sampler,
    some_language,
    total_variation,
)

plt.rcParams.update(
    {"figure.figsize": (7, 2.8), "axes.spines.top": False, "axes.spines.right": False}
    | {"axes.grid": True, "grid.alpha": 0.3, "savefig.dpi": 110, "savefig.bbox": "tight"}
)


def save(name):
    """Write the current figure and forget it."""
    plt.savefig(HERE / f"guide-{name}.png")
    plt.close()
    print(f"img/guide-{name}.png")


def forward():
    """Which tokens are masked, at all times."""
    x, times = torch.zeros(1, 64, dtype=torch.long), torch.linspace(0, 1, 41)
    rows = [forward_process(x, 1 - t[None], 1, torch.Generator().manual_seed(2))[0] for t in times]
    plt.imshow(torch.stack(rows), aspect="auto", cmap="Blues", extent=(0, 64, 1, 0), vmax=1.3)
    plt.gca().set(xlabel="token", ylabel="t")
    plt.grid(False)
    save("forward")


def bound():
    """The T-step bound against the entropy, exactly."""
    language = some_language()
    exact, weights = ExactDenoiser(language), language.tolist()
    steps = [1, 2, 4, 8, 16, 32, 64]
    values = [
        sum(p * exact_nelbo_in_steps(exact, x, T) for p, x in zip(weights, TEXTS, strict=True))
        for T in steps
    ]
    plt.plot(steps, values, "o-", label="bound with T steps")
    entropy = -(language * language.log()).sum().item()
    plt.axhline(entropy, color="k", ls=":", label="entropy of the language")
    plt.gca().set(xscale="log", xlabel="T", ylabel="nats per text")
    plt.xticks(steps, steps)
    plt.legend()
    save("bound")


def steps():
    """Total variation of the ancestral sampler, exactly."""
    language = some_language()
    exact, truth = ExactDenoiser(language), dict(zip(TEXTS, language.tolist(), strict=True))
    grid = [1, 2, 4, 8, 16, 32, 64]
    plt.plot(grid, [total_variation(exact_sampler(exact, T), truth) for T in grid], "o-")
    plt.gca().set(xscale="log", yscale="log", xlabel="T", ylabel="total variation")
    plt.xticks(grid, grid)
    save("steps")


@torch.no_grad()
def variance(path, repeats):
    """How much four estimates of one batch's loss scatter, under a trained model."""
    model, tokenizer, _ = load_checkpoint(path)
    device, L, B = next(model.parameters()).device, model.config.context, 32
    train_text, _ = load_parts(model.config.corpus, HERE.parent / "data")
    tokens = np.array(tokenizer.encode(train_text[:400_000]), dtype=np.uint16)
    x = windows(tokens, np.linspace(0, len(tokens) - L, B).astype(int), L).to(device)
    noise = torch.Generator().manual_seed(0)

    def by_t(t):
        return diffusion_loss(model, x, t.to(device), generator=noise)

    def by_k(k):
        return nelbo(model, x, k, noise)

    estimators = {
        "random t": lambda: by_t(torch.rand(B, generator=noise).clamp_min(1e-4)),
        "low-discrepancy t": lambda: by_t(low_discrepancy_t(B, noise).clamp_min(1e-4)),
        "random k": lambda: by_k(torch.randint(1, L + 1, (B,), generator=noise)),
        "spread k": lambda: by_k(spread_mask_counts(B, L, noise)),
    }
    values = {}
    for name, estimate in estimators.items():
        with autocast(device):
            values[name] = [
                estimate().mean().item() / L for _ in trange(repeats, desc=name, leave=False)
            ]
    base = np.var(values["random t"])
    _, axis = plt.subplots(figsize=(7, 2.4))
    for row, (name, v) in enumerate(values.items()):
        scatter = np.random.default_rng(0).uniform(-0.25, 0.25, len(v))
        axis.plot(v, row + scatter, ".", alpha=0.5)
        print(
            f"{name:<18} mean {np.mean(v):.3f}, variance {np.var(v):.5f}, 1/{base / np.var(v):.1f}"
        )
    axis.set(yticks=range(4), yticklabels=list(values), xlabel="estimate, nats per token")
    axis.invert_yaxis()
    save("variance")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=200)
    included = HERE.parent / "checkpoints" / "kjv.safetensors"
    parser.add_argument("--checkpoint", default=included, help="(default: the included model)")
    arguments = parser.parse_args()
    for draw in (forward, bound, steps):
        draw()
    try:
        variance(arguments.checkpoint, arguments.repeats)
    except UserError as error:
        print(f"figures.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
