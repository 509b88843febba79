"""What makes the model learn fast: runs with the same budget of time, one thing changed in each.

    python benchmarks/quality.py --time             how long a step of each takes here
    python benchmarks/quality.py                    train each as long as 2,000 steps of the base
    python benchmarks/quality.py --steps 500 base adamw

The base is the preset "medium". The budget is the time that a number of its steps takes: a run
whose steps take twice as long gets half as many, and its learning rate falls over just these. What
a run learns depends on its steps, not on the machine. So the times are those of the machine where
`--time` was run, say a 2-core CPU, and the training may be done on another one, such as a GPU, with
`--jobs` runs side by side. Results are kept in runs/quality.json, which begins as a copy of the
one that is here; tables of them are printed and written to runs/quality.md.
"""

import itertools
import json
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from common import ROOT, in_turns, make_parser, run_apart, trainer

from corpus import prepare_corpus
from files import UserError, write_atomically
from mdlm import model, training
from settings import nearest, settings

OURS, RESULTS = Path(__file__).with_suffix(".json"), ROOT / "runs" / "quality.json"


# -- changes that are no setting: each replaces a part of the package for one run


def muon_in_parts():
    """Muon for queries, keys and values apart, and for gate and up."""
    usual = training.orthogonalise

    def orthogonalise(g):
        rows, columns = g.shape[-2:]
        n = 3 if rows == 3 * columns else 2 if rows > columns else 1
        return torch.cat([usual(part) for part in g.chunk(n, dim=-2)], -2) / n**0.5

    training.orthogonalise = orthogonalise


def few_masks_first():
    """A curriculum: at most 15 % of the masks at first, all of them from half of the run on."""
    usual, steps = training.training_loss, itertools.count(1)

    def training_loss(network, x, t, generator):
        part = min(1.0, 0.15 + 0.85 * next(steps) / (0.5 * network.config.steps))
        return usual(network, x, t * part, generator)

    training.training_loss = training_loss


def usual_rope():
    """RoPE's slowest pair turns once in 10,000 positions or more, as in long-context models."""
    usual = model.rope_tables
    model.rope_tables = lambda length, dim: [table[:length] for table in usual(10_000, dim)]


def usual_init():
    """Initial weights as PyTorch draws them: those of the embedding are 50 times ours."""
    model.DiffusionTransformer.initialise = lambda self: None


class AttentionAfterConvolution(model.Attention):
    """Each channel is mixed with its two neighbours' before attention."""

    def __init__(self, dim, *arguments):
        super().__init__(dim, *arguments)
        # three dimensions: no matrix, to be drawn anew or given to Muon
        middle = torch.tensor([0.0, 1.0, 0.0])[:, None, None]
        self.convolution = torch.nn.Parameter(middle.repeat(1, 1, dim))  # (3, 1, C)

    def forward(self, x, cos, sin):
        padded = F.pad(x, (0, 0, 1, 1))  # (B, L + 2, C)
        x = sum(padded[:, i : i + x.shape[1]] * self.convolution[i] for i in range(3))
        return super().forward(x, cos, sin)


def convolution():
    """A convolution of width 3 before attention."""
    model.Attention = AttentionAfterConvolution


SMALL = dict(n_layers=4, d_model=128, n_heads=2, batch_size=16)
VARIANTS = {  # name: changed settings
    "base": {},
    "adamw": dict(optimizer="adamw"),
    "muon-in-parts": {},
    "no-qk-norm": dict(qk_norm=False),
    "rope-10000": {},
    "usual-init": {},
    "loss-of-t": dict(loss="time"),
    "few-masks-first": {},
    "convolution": {},
    **{f"muon-lr-{lr}": dict(muon_lr=lr) for lr in (0.00125, 0.005, 0.01, 0.02)},
    "batch-16": dict(batch_size=16),
    "context-256": dict(context=256, batch_size=16),
    "wide-shallow": dict(d_model=384, n_layers=3, n_heads=6),
    "4-by-192": SMALL | dict(d_model=192, n_heads=3),
    "4-by-128": SMALL,
    "4-by-128-batch-8": SMALL | dict(batch_size=8),
    **{f"4-by-128-muon-lr-{lr}": SMALL | dict(muon_lr=lr) for lr in (0.00125, 0.005)},
    "4-by-128-adamw-lr-6e-3": SMALL | dict(adamw_lr=6e-3),
    "4-by-128-vocabulary-4096": SMALL | dict(vocab_size=4096),
    "4-by-128-vocabulary-4096-adamw-lr-6e-3": SMALL | dict(vocab_size=4096, adamw_lr=6e-3),
    "4-by-128-vocabulary-8192-adamw-lr-6e-3": SMALL | dict(vocab_size=8192, adamw_lr=6e-3),
    "4-by-128-few-masks-first": SMALL,
    "4-by-128-muon-in-parts": SMALL,
    "4-by-96": SMALL | dict(d_model=96),
    "6-by-128": SMALL | dict(n_layers=6),
    "no-ema": dict(ema=0.0),
    "time-conditioning": dict(time_conditioning=True),
    "cosine": dict(loss="time", schedule="cosine"),
    "polynomial": dict(loss="time", schedule="polynomial"),
}
TINY = dict(corpus=str(ROOT / "README.md"), vocab_size=300, d_model=32, context=32, compile=False)
CHANGES = {  # name: what else is changed
    "muon-in-parts": muon_in_parts,
    "rope-10000": usual_rope,
    "usual-init": usual_init,
    "few-masks-first": few_masks_first,
    "convolution": convolution,
    "4-by-128-few-masks-first": few_masks_first,
    "4-by-128-muon-in-parts": muon_in_parts,
}


def config_of(name, **plan):
    """Change the package as the variant NAME says. Returns its Config."""
    if name in CHANGES:
        CHANGES[name]()
    return settings("medium", **VARIANTS[name] | plan)


def time_step(name):
    """Median seconds of a step, once everything is compiled; with few masks first, the last."""
    corpus, config = prepare_corpus(config_of(name, steps=1))
    step = trainer(config, corpus)[2]
    for _ in range(3):
        step()
    return in_turns({name: step}, 10)[name]


def train_for(name, steps):
    """One run of so many steps. Returns what came out of it."""
    plan = dict(steps=steps, warmup=min(100, steps // 4), eval_every=10**8, save_every=10**8)
    corpus, config = prepare_corpus(config_of(name, **plan))
    with tempfile.TemporaryDirectory() as folder:
        run = training.train(config, corpus, folder)
    return dict(
        what=CHANGES[name].__doc__ if name in CHANGES else "",
        settings=VARIANTS[name],
        parameters=sum(p.numel() for p in run.model.parameters()),
        steps=steps,
        **{key: run.history[-1][key] for key in ("tokens", "bpb", "error")},
    )


def tables(results):
    """Results as Markdown: a table for each budget, the best first."""
    lines, budget, usual = [], None, settings("medium")
    rows = results["runs"].values()
    for row in sorted(rows, key=lambda row: (row["budget"], row["bpb"])):
        if row["budget"] != budget:
            budget = row["budget"]
            lines += [
                f"\n## As long as {budget:,} steps of the base\n",
                "| run | changed | parameters | a step takes | steps | tokens | bits per byte |",
                "|---|---|---:|---:|---:|---:|---:|",
            ]
        changed = row["what"] or ", ".join(
            f"{k} {v}" for k, v in row["settings"].items() if getattr(usual, k) != v
        )
        lines.append(
            f"| `{row['name']}` | {changed or 'nothing'} | {row['parameters'] / 1e6:.1f}M "
            f"| {row['budget'] / row['steps']:.2f} x | {row['steps']:,} "
            f"| {row['tokens'] / 1e6:.1f}M | {row['bpb']:.3f} ± {row['error']:.3f} |"
        )
    return "\n".join(lines)


def keep(results):
    """Write the results, and beside them a page with the tables of all runs."""
    write_atomically(RESULTS, (json.dumps(results, indent=1) + "\n").encode())
    head = OURS.with_suffix(".md").read_text(encoding="utf-8").partition("\n## ")[0]
    write_atomically(RESULTS.with_suffix(".md"), f"{head}{tables(results)}\n".encode())


def timed_as(name):
    """The run whose steps take as long: rates, schedule and initial weights cost nothing."""

    def costs(name):
        free = ("muon_lr", "adamw_lr", "schedule")
        change = CHANGES.get(name)
        paid = {k: v for k, v in VARIANTS[name].items() if k not in free}
        return paid, change if change is not usual_init else None

    return next(other for other in VARIANTS if costs(other) == costs(name))


def run_all(names, arguments):
    """Time, or train, every run named; what each gives is kept at once. Returns all results."""
    begun = RESULTS if RESULTS.exists() else OURS
    results = json.loads(begun.read_text(encoding="utf-8"))
    seconds = results["seconds"]
    if arguments.time:
        if "base" in names:  # on another machine, perhaps: what was timed before does not count
            seconds.clear()
        for (_, name), took in run_apart([(time_step, name) for name in names]):
            seconds[timed_as(name)] = took
            keep(results)
        return results
    calls = []
    for name in names:
        if not {"base", timed_as(name)} <= set(seconds):
            raise UserError(f"how long does it take? First: --time {name} base")
        ratio = seconds[timed_as(name)] / seconds["base"]
        calls.append((train_for, name, max(1, round(arguments.steps / ratio))))
    for (_, name, _), result in run_apart(calls, arguments.jobs):
        row = dict(name=name, budget=arguments.steps) | result
        results["runs"][f"{name}, {arguments.steps}"] = row
        keep(results)
    return results


def main():
    parser = make_parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="RUN", help="(default: all in quality.md)")
    parser.add_argument("--time", action="store_true", help="time a step of each, training none")
    parser.add_argument("--steps", type=int, default=2000, help="of the base (default: 2000)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time (default: 1)")
    arguments = parser.parse_args()
    names = arguments.names or list(VARIANTS)
    if arguments.smoke:
        VARIANTS["tiny"] = TINY
        print(time_step("tiny"), train_for("tiny", 2))
        return
    for name in names:
        if name not in VARIANTS:
            raise UserError(f"no run {name!r}{nearest(name, VARIANTS)}")
    if min(arguments.steps, arguments.jobs) < 1:
        raise UserError("--steps and --jobs must be above 0")
    print(tables(run_all(names, arguments)))


if __name__ == "__main__":
    main()
