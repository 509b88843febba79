"""What makes the model learn faster: runs of the same length, one thing changed in each.

    python benchmarks/quality.py                       every variant, two seeds: hours
    python benchmarks/quality.py base untied --seeds 1 2 --jobs 2
    python benchmarks/quality.py --together checkpoints/*.safetensors    the mean of several models

The base is the preset "small" with uniform mask rates and whole windows only. Each run computes on
one thread, so that `--jobs` of them side by side do not wait for each other; "CPU" is its processor
time, the last evaluation's included, compared with the base's. Results are added to quality.json,
and the tables of quality.md are written from it. The figures are bounds on all of the validation
text.
"""

import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from common import ROOT, make_parser, run_apart
from torch import nn

import corpus
from compressors import bits_per_byte
from files import UserError, write_atomically
from mdlm import diffusion, model, training
from saving import load_checkpoint
from settings import LARGE, nearest, settings

RESULTS = Path(__file__).with_suffix(".json")
Network = model.DiffusionTransformer


# -- changes that are no setting: each replaces a part of the package for one run


def add_to_network(make):
    """Give every network what make(network, config) adds, after its own weights are drawn."""
    usual = Network.__init__

    def __init__(self, config):
        usual(self, config)
        make(self, config)

    Network.__init__ = __init__


def untied():
    """The output layer has weights of its own."""

    def make(network, config):
        weights = 0.02 * torch.randn(config.vocab_size - 1, config.d_model)
        network.unembedding = nn.Parameter(weights)

    add_to_network(make)
    Network.head = lambda self, h: F.linear(h, self.unembedding).float()


class Convolution(nn.Module):
    """Adds each channel's five neighbours, with learned weights that begin at zero."""

    def __init__(self, dim):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(5, 1, dim))  # no matrix, so not for Muon

    def forward(self, x):
        padded = F.pad(x, (0, 0, 2, 2))  # (B, L + 4, C)
        return x + sum(padded[:, i : i + x.shape[1]] * self.weights[i] for i in range(5))


def convolution():
    """A convolution of width 5 before every attention."""
    usual = model.Block.__init__

    def __init__(self, config):
        usual(self, config)
        self.norm1 = nn.Sequential(self.norm1, Convolution(config.d_model))

    model.Block.__init__ = __init__


def value_residual():
    """Values are mixed with those of the first layer, in learned proportions."""
    usual, first = model.Attention.heads, {}

    def heads(self, x, cos, sin):
        q, k, v = usual(self, x, cos, sin)
        if self.number == 0:
            first["values"] = v
        return q, k, self.mix[0] * v + self.mix[1] * first["values"]

    def make(network, config):
        for number, block in enumerate(network.blocks):
            block.attention.number = number
            block.attention.mix = nn.Parameter(torch.tensor([1.0, 0.0]))

    add_to_network(make)
    model.Attention.heads = heads


def head_gates():
    """Each head's output is scaled by a gate that looks at the token."""
    usual = model.Attention.__init__

    def __init__(self, dim, n_heads, *arguments):
        usual(self, dim, n_heads, *arguments)
        self.gate = nn.Linear(dim, n_heads, bias=False)

    def forward(self, x, cos, sin):
        q, k, v = self.heads(x, cos, sin)
        y = self.weights(q, k).type_as(v) @ v  # (B, H, L, D)
        y = 2 * torch.sigmoid(self.gate(x)).transpose(1, 2)[..., None] * y
        return self.out(y.transpose(1, 2).flatten(2))

    model.Attention.__init__, model.Attention.forward = __init__, forward


def skips():
    """The later half of the layers also gets what went into the earlier half, as in a U-Net."""

    def make(network, config):
        network.shares = nn.Parameter(torch.zeros(config.n_layers // 2))

    def features(self, z_t, t=None):
        x, L, half, kept = self.embedding(z_t), z_t.shape[1], len(self.shares), []
        for number, block in enumerate(self.blocks):
            if number < half:
                kept.append(x)
            elif kept:  # the last one first
                x = x + self.shares[number - half] * kept.pop()
            x = block(x, self.cos[:L], self.sin[:L])
        return self.norm(x)

    add_to_network(make)
    Network.features = features


def more_masks():
    """Shares of masks are drawn from Beta(1.5, 1): the same objective as rate_power=0.5."""
    usual = training.training_loss
    training.training_loss = lambda network, x, t, generator=None: usual(
        network, x, t ** (1 / 1.5), generator
    )


def complementary_masks():
    """Half as many texts, each twice: with its masks, and with all other tokens masked."""

    def training_loss(network, x, t, generator=None):
        half, L = len(x) // 2, x.shape[1]
        x, k = x[:half], diffusion.mask_counts(t[:half], L).clamp(max=L - 1)
        moment = torch.rand(x.shape, generator=generator, dtype=torch.float64)
        masked = moment.argsort().argsort() < k[:, None]
        z = torch.where(torch.cat([masked, ~masked]), network.mask_id, x.repeat(2, 1))
        nats, row = diffusion.masked_nats(network, x.repeat(2, 1), z)
        return torch.zeros(len(z)).index_add(0, row, nats) * L / torch.cat([k, L - k])

    training.training_loss = training_loss


def distilled():
    """As `small`; half of the loss compares with what the included model predicts."""
    teacher = load_checkpoint(ROOT / "checkpoints" / "kjv.safetensors", Network)[0]

    def masked_nats(network, x, z_t, t=None):
        row, column = (z_t == network.mask_id).nonzero(as_tuple=True)  # (N,) each
        logits = network.head(network.features(z_t, t)[row, column])  # (N, V - 1)
        nats = F.cross_entropy(logits, x[row, column], reduction="none")
        if network.training:
            with torch.no_grad():
                p = teacher.head(teacher.features(z_t, t)[row, column]).softmax(dim=-1)
            nats = (nats + F.cross_entropy(logits, p, reduction="none")) / 2
        return nats, row

    diffusion.masked_nats = masked_nats
    return VARIANTS["small"]


def old_split():
    """As `small`, validated on the last tenth, Acts to Revelation, as before November 2026."""

    def split_text(text, seed=0):
        tenth = len(text) * 9 // 10
        return text[:tenth], text[tenth:], text[tenth:]

    corpus.split_text = split_text
    return VARIANTS["small"]


def old_split_included():
    """As `old-split`, at the size of the included model."""
    return LARGE | old_split()


BASE = dict(rate_power=0.0, short_windows=0.0)
VARIANTS = {  # name: changed settings, or a function that changes the package, and may return some
    "base": {},
    **{f"rate-power-{power}": dict(rate_power=power) for power in (0.3, 0.6, 1.0)},
    "rates-beta-1.5": more_masks,
    "short-windows": dict(short_windows=0.25),
    "small": dict(rate_power=0.5, short_windows=0.25),
    "complementary-masks": complementary_masks,
    "loss-of-t": dict(loss="time"),
    "time-conditioning": dict(time_conditioning=True),
    "adamw": dict(optimizer="adamw"),
    "no-qk-norm": dict(qk_norm=False),
    "no-ema": dict(ema=0.0),
    "weight-decay-1": dict(weight_decay=1.0),
    "dropout": dict(dropout=0.1),
    "untied": untied,
    "convolution": convolution,
    "value-residual": value_residual,
    "head-gates": head_gates,
    "skips": skips,
    "distilled": distilled,
    "vocabulary-4096": dict(vocab_size=4096),
    "muon-lr-0.005": dict(muon_lr=0.005),
    **{f"bibles-{n}": dict(corpus=f"bibles-{n}") for n in (2, 4, 8, 12)},
    "twin": dict(causal=True),
    **{f"twin-bibles-{n}": dict(causal=True, corpus=f"bibles-{n}") for n in (2, 4, 8, 12)},
    "old-split": old_split,
    "old-split-included": old_split_included,
}
TINY = dict(corpus=str(ROOT / "README.md"), vocab_size=300, d_model=32, context=32, compile=False)


def train_for(name, steps, seed, **plan):
    """One run. Returns what came out of it."""
    torch.set_num_threads(1)
    variant = VARIANTS[name]
    changes = (variant() or {}) if callable(variant) else variant
    plan |= BASE | dict(steps=steps, seed=seed, eval_every=10**8, save_every=10**8) | changes
    text, config = corpus.prepare_corpus(settings("small", **plan))
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        run = training.train(config, text, folder)
        cpu = time.process_time() - start
    last = run.history[-1]
    parameters = sum(p.numel() for p in run.model.parameters())
    return dict(bpb=last["bpb"], error=last["error"], cpu=cpu, parameters=parameters)


class Together(nn.Module):
    """The mean of what several networks predict. It is a prediction, too, so it has a bound."""

    def __init__(self, networks):
        super().__init__()
        self.networks, self.config = nn.ModuleList(networks), networks[0].config
        self.mask_id, self.embedding = networks[0].mask_id, networks[0].embedding

    def features(self, z_t, t=None):
        return torch.cat([network.features(z_t, t) for network in self.networks], dim=-1)

    def head(self, h):
        parts = zip(self.networks, h.chunk(len(self.networks), dim=-1), strict=True)
        log_p = torch.stack([network.head(part).log_softmax(dim=-1) for network, part in parts])
        return log_p.logsumexp(dim=0) - math.log(len(log_p))


def together(paths):
    """Print the bound of each of these models, and of their mean, on the validation text."""
    loaded = [load_checkpoint(path, Network) for path in paths]
    networks, (_, tokenizer, metadata) = [each[0] for each in loaded], loaded[0]
    text = corpus.corpus_of(networks[0].config, tokenizer, metadata)
    for name, net in [*zip(paths, networks, strict=True), ("their mean", Together(networks))]:
        nats = training.evaluate(net, text.val, passes=4)
        bpb, error = (bits_per_byte(n, len(text.val), text.val_bytes) for n in nats)
        print(f"{name}: at most {bpb:.3f} ± {error:.3f} bits per byte")


def tables(rows):
    """Results as Markdown: a table for each number of steps, the best first."""
    lines = []
    for steps in sorted({row["steps"] for row in rows}):
        some = [row for row in rows if row["steps"] == steps]
        base = statistics.mean([r["cpu"] for r in some if r["name"] == "base"] or [math.nan])
        lines += [
            f"\n## {steps:,} steps\n",
            "| run | changed | parameters | CPU | bits per byte, mean over seeds | seeds |",
            "|---|---|---:|---:|---:|---:|",
        ]
        groups = {}
        for row in some:
            groups.setdefault(row["name"], []).append(row)
        means = {name: statistics.mean(r["bpb"] for r in group) for name, group in groups.items()}
        for name in sorted(groups, key=means.get):
            group, variant = groups[name], VARIANTS.get(name, {})
            changed = (
                ", ".join(f"{k}={v!r}" for k, v in variant.items())
                if isinstance(variant, dict)
                else variant.__doc__
            )
            cpu = statistics.mean(row["cpu"] for row in group) / base
            cpu = "" if math.isnan(cpu) else f"{cpu:.2f} x"
            lines.append(
                f"| `{name}` | {changed or 'nothing'} | {group[0]['parameters'] / 1e6:.2f}M "
                f"| {cpu} | {means[name]:.3f} | {len(group)} |"
            )
    return "\n".join(lines)


def keep(rows):
    """Write the results, and the page with their tables."""
    write_atomically(RESULTS, (json.dumps(rows, indent=0) + "\n").encode())
    page = RESULTS.with_suffix(".md")
    head = page.read_text(encoding="utf-8").partition("\n## ")[0]
    write_atomically(page, f"{head.rstrip()}\n{tables(rows)}\n".encode())


def draw_translations(rows):
    """Bits per byte against the number of translations read, as img/translations.png."""
    matplotlib.use("Agg")
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for first, label in {"base": "diffusion (a bound)", "twin": "twin"}.items():
        numbers = {first: 1}
        numbers |= {f"{first}-bibles-{n}".removeprefix("base-"): n for n in (2, 4, 8, 12)}
        points = [(numbers[r["name"]], r["bpb"]) for r in rows if r["name"] in numbers]
        axes.scatter(*zip(*points, strict=True), s=12)
        means = {n: statistics.mean(y for m, y in points if m == n) for n, _ in sorted(points)}
        axes.plot(means.keys(), means.values(), label=label)
    axes.set(xlabel="translations in the training text", ylabel="validation bits per byte")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(ROOT / "img" / "translations.png", dpi=120)


def main():
    parser = make_parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="VARIANT", help="(default: all)")
    parser.add_argument("--steps", type=int, default=1500, help="(default: 1500)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="(default: 1 2)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time (default: 1)")
    parser.add_argument("--together", nargs="+", metavar="CHECKPOINT", help="of the same text")
    arguments = parser.parse_args()
    if arguments.together:
        together(arguments.together)
        return
    if arguments.smoke:
        for name in ("base", "complementary-masks", "value-residual"):
            print(train_for(name, 2, 1, **TINY))
        return
    for name in arguments.names:
        if name not in VARIANTS:
            raise UserError(f"no variant {name!r}{nearest(name, VARIANTS)}")
    names = arguments.names or list(VARIANTS)
    calls = [(train_for, n, arguments.steps, seed) for seed in arguments.seeds for n in names]
    for (_, *call), result in run_apart(calls, arguments.jobs):
        row = dict(zip(("name", "steps", "seed"), call, strict=True))
        rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
        rows = [r for r in rows if any(r[k] != row[k] for k in row)]  # measured anew
        keep([*rows, row | result])
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))
    draw_translations([row for row in rows if row["steps"] == 1500])
    print(tables(rows))


if __name__ == "__main__":
    main()
