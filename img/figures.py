"""Draw the figures of the learning guide.

python img/figures.py                        all of them, in minutes
python img/figures.py --only cube variance   some of them
python img/figures.py --checkpoint checkpoints/mine.safetensors    (and mine-twin.safetensors)
"""

import itertools
import re
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

import pictures  # noqa: E402 (the style of all plots)
import toy  # noqa: E402
from corpus import load_parts, windows  # noqa: E402
from hardware import autocast  # noqa: E402
from mdlm import diffusion  # noqa: E402
from mdlm.model import DiffusionTransformer  # noqa: E402
from saving import load_checkpoint  # noqa: E402

plt.rcParams.update({"figure.figsize": (7, 2.8), "savefig.dpi": 150, "savefig.bbox": "tight"})
GRID = [1, 2, 4, 8, 16, 32, 64]  # numbers of steps T


def forward():
    """Which tokens are masked, at all times."""
    x, times = torch.zeros(1, 64, dtype=torch.long), torch.linspace(0, 1, 41)
    noise = torch.Generator()  # the same each time: a mask stays a mask
    rows = [diffusion.forward_process(x, 1 - t[None], 1, noise.manual_seed(2)) for t in times]
    plt.imshow(torch.cat(rows).numpy(), aspect="auto", cmap="Blues", extent=(0, 64, 1, 0), vmax=1.3)
    plt.gca().set(xlabel="token", ylabel="t")
    plt.grid(False)


def sixty():
    """The guide's own sixty lines: how the bound falls while they train, and what they write."""
    guide = (ROOT / "learning_guide.md").read_text(encoding="utf-8")
    section = guide.split("## Sixty lines")[1].split("\n## ")[0]
    code = {}
    for block in re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE):
        exec(block, code)
    _, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    steps, values = zip(*code["curve"].items(), strict=True)
    left.plot(steps, values, label="bound")
    left.axhline(code["entropy"], color="k", ls=":", label="entropy of the language")
    left.set(xlabel="step", ylabel="nats per text", ylim=(code["entropy"] - 0.03, 2.8))
    left.legend()
    n, p = 20_000, code["language"].numpy()
    right.plot([1e-4, 1], [1e-4, 1], color="k", ls=":", label="as often as in the language")
    for T, marker, color in ((100, "o", "C0"), (1, "x", "C1")):
        z = code["sample_toy"](code["network"], n, T)
        found = (z * torch.tensor([9, 3, 1])).sum(dim=1).bincount(minlength=27).numpy() / n
        label = f"{T} step{'s' if T > 1 else ''}, chi-square {code['chi_square'](z[:1000]):,.0f}"
        right.plot(p, found, marker, color=color, ms=5, label=label)
    right.set(xscale="log", yscale="log", xlabel="probability", ylabel="share of 20,000 samples")
    right.legend(fontsize=8)


TEXT = (0, 2, 1)  # the text of the cube
PLACES = ("#1b6ca8", "#c05621", "#2f855a")  # a colour for each place
CORNERS = {z: None for z in itertools.product(*((x, toy.MASK) for x in TEXT))}


def corner(z):
    """Where a mask pattern is drawn: all masks at the bottom, a direction for each place."""
    seen = np.array([v != toy.MASK for v in z])
    return seen @ np.array([[-1.0, 0.98], [0.22, 1.04], [1.0, 0.98]])


def draw_cube(axis, size, paths=(), corners=CORNERS, labels=None):
    """The cube of TEXT. paths: to emphasise, lists of states; labels: {(from, to): text}.

    Without labels the corners are dots, grey if they are not among `corners`.
    """
    strong = {pair for path in paths for pair in itertools.pairwise(path)}
    for z, place in itertools.product(CORNERS, range(3)):
        if z[place] != toy.MASK:
            continue
        up = tuple(TEXT[i] if i == place else v for i, v in enumerate(z))
        color = PLACES[place] if labels or (z, up) in strong else "#cbd5e0"
        width = size / 3.6 if (z, up) in strong else size / 12
        axis.plot(*zip(corner(z), corner(up), strict=True), color=color, lw=width, zorder=width)
        if labels:
            at = 0.5
            if z.count(toy.MASK) == 2:  # where edges cross, the labels keep out of each other's way
                at = 0.3 if place == 0 else 0.55 if place == 1 else 0.3 if z[0] == TEXT[0] else 0.72
            axis.text(*corner(z) + at * (corner(up) - corner(z)), labels[z, up], size=0.85 * size,
                      ha="center", va="center", color=color, zorder=size,
                      bbox=dict(fc="white", ec="none", pad=1.5))  # fmt: skip
    for z in CORNERS:
        edge = "#4a5568" if z in corners else "#cbd5e0"
        if not labels:
            axis.plot(*corner(z), "o", color=edge, ms=size, zorder=size)
            continue
        box = dict(boxstyle="round,pad=0.3", fc="white", ec=edge, lw=size / 12)
        word = dict(size=size, ha="center", va="center", family="monospace", zorder=size)
        axis.text(*corner(z), "     ", bbox=box, **word)
        for place, v in enumerate(z):
            color = edge if v == toy.MASK else PLACES[place]
            shown = ["  "] * place + ["_" if v == toy.MASK else str(v)] + ["  "] * (2 - place)
            axis.text(*corner(z), "".join(shown), color=color, weight="bold", **word)
    axis.set(xlim=(-1.4, 1.55), ylim=(-0.25, 3.25))
    axis.axis("off")


def cube():
    """Three tokens: eight mask patterns, six ways to write the text, and what is said of them."""
    p = toy.some_language()
    exact, random = toy.ExactDenoiser(p), toy.inconsistent_denoiser()
    full, empty = TEXT, (toy.MASK,) * 3
    paths = {}
    for order in itertools.permutations(range(3)):
        states = [empty]
        for place in order:
            states.append(tuple(TEXT[i] if i == place else v for i, v in enumerate(states[-1])))
        paths[order] = states

    def cost(model, z, up):
        place = next(i for i in range(3) if z[i] != up[i])
        return -model.table[z][place, TEXT[place]].item()

    def total(model, path):
        return sum(cost(model, z, up) for z, up in itertools.pairwise(path))

    edges = {pair for path in paths.values() for pair in itertools.pairwise(path)}
    labels = {edge: f"{cost(exact, *edge):.2f}" for edge in edges}
    figure = plt.figure(figsize=(8, 6.8))
    grid = figure.add_gridspec(2, 30, height_ratios=(2.7, 1), hspace=0.04, wspace=0.05,
                               left=0.01, right=0.99, top=0.99, bottom=0.085)  # fmt: skip
    axis = figure.add_subplot(grid[0, :18])
    draw_cube(axis, 12, labels=labels)
    for x, (start, end), word in ((-1.52, (3, 0), "forward: mask"), (1.52, (0, 3), "back: write")):
        axis.annotate("", (x, end), (x, start), arrowprops=dict(arrowstyle="->", color="0.5"))
        axis.text(x, 1.5, word, rotation=90, ha="center", va="center", color="0.4",
                  bbox=dict(fc="white", ec="none"))  # fmt: skip
    axis.set(xlim=(-1.6, 1.6))

    side = figure.add_subplot(grid[0, 19:])
    side.axis("off")
    side.set(xlim=(0, 1), ylim=(0, 1))
    side.text(0, 0.93, "The six paths, in nats", weight="bold", size=11)
    for x, head in ((0, "places in order"), (0.64, "perfect\nnetwork"), (0.97, "random\ntable")):
        side.text(x, 0.84, head, ha="right" if x else "left", size=9, linespacing=1.1)
    for row, (order, path) in enumerate(paths.items()):
        y = 0.77 - 0.07 * row
        for column, place in enumerate(order):
            name = ("1st", "2nd", "3rd")[place]
            side.text(0.13 * column, y, name, color=PLACES[place], weight="bold", size=9)
        side.text(0.64, y, f"{total(exact, path):.3f}", ha="right")
        side.text(0.97, y, f"{total(random, path):.3f}", ha="right")
    both = (exact, random)
    chances = [np.mean([np.exp(-total(m, path)) for path in paths.values()]) for m in both]
    rows = {
        "mean: NELBO": [toy.exact_nelbo(m, TEXT) for m in both],
        "−log p(text)": -np.log(chances),
    }
    side.plot([0, 0.97], [0.385, 0.385], color="0.6", lw=0.8)
    for row, (name, values) in enumerate(rows.items()):
        y = 0.34 - 0.07 * row
        side.text(0, y, name, size=10)
        for x, value in zip((0.64, 0.97), values, strict=True):
            side.text(x, y, f"{value:.3f}", ha="right", weight="bold")
    likeliest = p.argmax().item()
    for row, line in enumerate([
        f"The language: p(0 2 1) = {p[toy.TEXTS.index(TEXT)]:.3f},",
        f"likeliest p({' '.join(map(str, toy.TEXTS[likeliest]))}) = {p[likeliest]:.3f},",
        f"entropy {-(p * p.log()).sum():.3f} nats",
    ]):  # fmt: skip
        side.text(0, 0.15 - 0.055 * row, line, size=9)

    walk = paths[1, 2, 0]
    drawn, z = [empty], empty
    while toy.MASK in z:  # confidence: the likeliest of the drawn values is kept
        free = [i for i in range(3) if z[i] == toy.MASK]
        best = max(free, key=lambda i: exact.table[z][i, TEXT[i]].item())
        z = tuple(TEXT[i] if i == best else v for i, v in enumerate(z))
        drawn.append(z)
    given = (TEXT[0], toy.MASK, toy.MASK)
    inside = [path for path in paths.values() if path[1] == given]
    one_step = toy.exact_nelbo_in_steps(exact, TEXT, 1)
    pictures = [
        ("forward process:\na walk down", [walk], CORNERS),
        ("NELBO: the mean\ncost of six paths", list(paths.values()), CORNERS),
        (f"T = 1: one jump,\n{one_step:.3f} nats", [], [full, empty]),
        ("confidence: drawn\nvalues pick the path", [drawn], CORNERS),
        ("a prompt (0 given):\na smaller cube", [path[1:] for path in inside],
         {z for z in CORNERS if z[0] == TEXT[0]}),
    ]  # fmt: skip
    for column, (title, some, corners) in enumerate(pictures):
        axis = figure.add_subplot(grid[1, 6 * column : 6 * column + 6])
        draw_cube(axis, 7, some, corners)
        if not some:
            bow = dict(arrowstyle="->", lw=2, color="#6b46c1", connectionstyle="arc3,rad=0.2")
            gap = np.array([0, 0.3])
            axis.annotate("", corner(full) - gap, corner(empty) + gap, arrowprops=bow)
        axis.text(0, -0.42, title, ha="center", va="top", size=9, linespacing=1.25)


def bound():
    """What the T-step bound is above the entropy, exactly."""
    p = toy.some_language()
    exact, pairs = toy.ExactDenoiser(p), list(zip(p.tolist(), toy.TEXTS, strict=True))
    values = [sum(q * toy.exact_nelbo_in_steps(exact, x, T) for q, x in pairs) for T in GRID]
    excess = np.array(values) + (p * p.log()).sum().item()
    plt.plot(GRID, excess, "o-", label="bound with T steps, above the entropy")
    plt.plot(GRID, excess[-1] * GRID[-1] / np.array(GRID), "k:", label="proportional to 1/T")
    plt.gca().set(xscale="log", yscale="log", xlabel="T", ylabel="nats per text")
    plt.xticks(GRID, GRID)
    plt.yticks([0.01, 0.1, 1], ["0.01", "0.1", "1"])
    plt.minorticks_off()
    plt.legend()


def validation_tokens(model, tokenizer):
    text = load_parts(model.config.corpus, ROOT / "data")[1]
    return np.array(tokenizer.encode(text))


@torch.no_grad()
def gaps(path, n):
    """A word missing in validation text: what diffusion and the twin say. n: gaps for the mean."""
    model, tokenizer, _ = load_checkpoint(path, DiffusionTransformer)
    twin, _, _ = load_checkpoint(path.with_stem(path.stem + "-twin"), DiffusionTransformer)
    tokens, L, noise = (
        validation_tokens(model, tokenizer),
        model.config.context,
        np.random.default_rng(1),
    )
    words = [i for i, b in enumerate(tokenizer.token_bytes) if re.fullmatch(rb" [a-z]{2,}", b)]
    ends = np.array(
        [not re.match(rb"\w", b) for b in tokenizer.token_bytes]
    )  # begins no word's end
    middle = L // 2 + noise.permutation(len(tokens) - L)
    middle = [i for i in middle if tokens[i] in words and ends[tokens[i + 1]]][:n]
    x = windows(tokens, np.array(middle) - L // 2, L)  # (n, L), the word in the middle
    z = x.clone()
    z[:, L // 2] = model.mask_id
    shifted = torch.cat([torch.full_like(x[:, :1], twin.mask_id), x[:, :-1]], dim=1)
    p = {  # (n, V - 1) at the gap
        "diffusion": model.head(model.features(z)[:, L // 2]).softmax(dim=-1),
        "twin": twin.head(twin.features(shifted)[:, L // 2]).softmax(dim=-1),
    }
    figure, axes = plt.subplots(4, 2, figsize=(8, 5.6), layout="constrained")
    for row in range(4):
        true, text = x[row, L // 2].item(), [tokenizer.show(i) for i in x[row].tolist()]
        before, after = "".join(text[L // 2 - 11 : L // 2]), "".join(text[L // 2 + 1 : L // 2 + 9])
        line = f"...{before} [{text[L // 2].strip()}]{after} ...".replace("\n", " ")
        for axis, all_p in zip(axes[row], p.values(), strict=True):
            best = all_p[row].topk(5)
            names = [pictures.readable(tokenizer.show(i)) for i in best.indices]
            color = ["C0" if i == true else "0.8" for i in best.indices]
            axis.barh(range(5), best.values, color=color, tick_label=names)
            axis.invert_yaxis()
            axis.set(
                xlim=(0, 1), xticks=(0, 0.5, 1), xticklabels=("0", "1/2", "1")[: 3 * (row == 3)]
            )
            axis.tick_params("y", labelsize=8.5)
            axis.set_title(line if axis is axes[row, 0] else "", fontsize=8.5, loc="left")
    nats = {name: -all_p[torch.arange(n), x[:, L // 2]].log() for name, all_p in p.items()}

    def mean(values):
        return f"{values.mean():.1f} ± {values.std() / n**0.5:.1f} nats"

    for axis, side in zip(axes[-1], ("reads both sides", "reads what stands before"), strict=True):
        name = "diffusion" if axis is axes[-1, 0] else "twin"
        axis.set_xlabel(f"probability\n{name}, {side}: {mean(nats[name])}")
    figure.supxlabel(
        f"mean cost of the author's word in {n} gaps; "
        f"difference in the same gap: {mean(nats['twin'] - nats['diffusion'])}",
        size=10,
    )


@torch.no_grad()
def estimates(path, repeats):
    """{name: estimates} of the loss of one batch under a trained model, made in four ways."""
    model, tokenizer, _ = load_checkpoint(path, DiffusionTransformer)
    device, L, B = model.embedding.weight.device, model.config.context, 32
    tokens = validation_tokens(model, tokenizer)
    x = windows(tokens, np.linspace(0, len(tokens) - L, B).astype(int), L).to(device)
    noise = torch.Generator().manual_seed(0)

    def by_t(t):
        return diffusion.diffusion_loss(model, x, t, generator=noise)

    def by_k(k):
        return diffusion.nelbo(model, x, k, noise)

    estimators = {
        "random t": lambda: by_t(torch.rand(B, generator=noise)),
        "spread t": lambda: by_t(diffusion.low_discrepancy_t(B, noise)),
        "random k": lambda: by_k(torch.randint(1, L + 1, (B,), generator=noise)),
        "spread k": lambda: by_k(diffusion.spread_mask_counts(B, L, noise)),
    }
    values = {name: [] for name in estimators}
    with autocast(device):
        for _ in trange(repeats, leave=False):
            for name, estimate in estimators.items():
                values[name].append(estimate().mean().item() / L)
    return values


def variance(path, repeats):
    """How much four estimates of one batch's loss scatter."""
    values, luck = estimates(path, repeats), np.random.default_rng(0)
    values = {name: np.array(v) for name, v in values.items()}
    first = values["random t"]
    _, axis = plt.subplots(figsize=(8, 3), layout="constrained")
    for row, v in enumerate(values.values()):
        axis.plot(v, row + luck.uniform(-0.25, 0.25, len(v)), ".", alpha=0.5)
        again = luck.integers(len(v), size=(2, 1000, len(v)))  # the bootstrap
        ratios = v[again[0]].var(axis=1) / first[again[1]].var(axis=1)
        low, high = np.quantile(ratios, (0.16, 0.84))
        note = f"{v.mean():.2f} ± {v.std():.2f}"
        if row:
            note += f"\nvariance × {v.var() / first.var():.2f} ({low:.2f} to {high:.2f})"
        axis.text(1.02, row, note, size=9, va="center", transform=axis.get_yaxis_transform())
    axis.set(yticks=range(4), yticklabels=list(values))
    axis.set_xlabel(f"nats per token, {len(first)} estimates; right: mean ± standard deviation")
    axis.invert_yaxis()


def main():
    figures = {f.__name__: f for f in (sixty, forward, cube, bound, gaps, variance)}
    parser = make_parser(__doc__)
    included = ROOT / "checkpoints" / "kjv.safetensors"
    parser.add_argument("--checkpoint", type=Path, default=included, help="(or the included one)")
    parser.add_argument("--repeats", type=int, default=200, help="estimates, gaps (default: 200)")
    parser.add_argument("--only", nargs="+", choices=figures, default=list(figures))
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.repeats = 4
        arguments.only.remove("sixty")  # the guide's own blocks, which run in the tests
    for name in arguments.only:
        measured = name in ("gaps", "variance")
        figures[name](*([arguments.checkpoint, arguments.repeats] if measured else []))
        if not arguments.smoke:
            plt.savefig(HERE / f"guide-{name}.png")
        plt.close("all")


if __name__ == "__main__":
    main()
