"""What makes the model learn fast: runs with the same budget of time, one thing changed in each.

    python benchmarks/quality.py --time             how long a step of each takes here
    python benchmarks/quality.py                    train each as long as 2,000 steps of the base
    python benchmarks/quality.py --steps 500 base adamw
    python benchmarks/quality.py --list

The base is the CPU preset. The budget is the time that a number of its steps takes: a run whose
steps take twice as long gets half as many, and its learning rate falls over just these. What a run
learns depends on its steps, not on the machine. So the times are those of the machine where
`--time` was run, say a 2-core CPU, and the training may be done on another one, such as a GPU, with
`--jobs` runs side by side. Results are kept in runs/quality.json, which begins as a copy of the
one that is here; tables of them are printed and written to runs/quality.md.
"""

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from apart import run_apart  # noqa: E402

from bpe_tokenizer import UserError, write_atomically  # noqa: E402
from mdlm import diffusion, model, training  # noqa: E402
from mdlm.config import Config  # noqa: E402
from mdlm.corpus import prepare_corpus  # noqa: E402

RESULTS = ROOT / "runs" / "quality.json"
OURS = Path(__file__).with_name("quality.json")


# -- changes that are no setting of Config: each replaces a part of the package for one run


def use_adamw():
    """AdamW for the matrices as well."""

    def make_optimizers(network, config):
        matrices = [p for p in network.blocks.parameters() if p.dim() == 2]
        taken = {id(p) for p in matrices}
        rest = [p for p in network.parameters() if id(p) not in taken]
        options = dict(lr=config.adamw_lr, betas=(0.9, 0.95), fused=True)
        return [
            torch.optim.AdamW(matrices, weight_decay=config.weight_decay, **options),
            torch.optim.AdamW(rest, weight_decay=0.0, **options),
        ]

    training.make_optimizers = make_optimizers
    return dict(muon_lr=2e-3)


def muon_in_parts():
    """Muon for queries, keys and values apart, and for gate and up."""
    usual = training.orthogonalise

    def orthogonalise(g):
        rows, columns = g.shape[-2:]
        n = 3 if rows == 3 * columns else 2 if rows > columns else 1
        return torch.cat([usual(part) for part in g.chunk(n, dim=-2)], -2) / n**0.5

    training.orthogonalise = orthogonalise


def train_on_t():
    """The paper's loss of a random time t, not of a random number of masks."""

    usual = training.loss_in_nats

    def loss_in_nats(network, x, k, noise):
        if not network.training:
            return usual(network, x, k, noise)
        t = diffusion.low_discrepancy_t(len(x), noise).to(x.device)
        return diffusion.diffusion_loss(network, x, t, "linear", noise)

    training.loss_in_nats = loss_in_nats


def few_masks_first():
    """A curriculum: at most 15 % of the masks at first, all of them from half of the run on."""
    usual, calls = training.spread_mask_counts, []

    def spread_mask_counts(n, length, noise):
        calls.append(1)  # evaluation comes at the end, when part is 1
        part = min(1.0, 0.15 + 0.85 * len(calls) / (0.5 * PLAN["steps"]))
        return (usual(n, length, noise) * part).ceil().long()

    training.spread_mask_counts = spread_mask_counts


class AttentionWithoutNorm(model.Attention):
    """Queries and keys as they come, scaled by the root of their width."""

    def forward(self, x, cos, sin):
        B, L, C = x.shape
        q, k, v = self.qkv(x).view(B, L, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = model.rotate(q, cos, sin), model.rotate(k, cos, sin)
        y = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1).type_as(v) @ v
        return self.out(y.transpose(1, 2).reshape(B, L, C))


def no_qk_norm():
    """Attention without the norm of queries and keys."""
    model.Attention = AttentionWithoutNorm


def usual_rope():
    """RoPE's slowest pair turns once in 10,000 positions or more, as in long-context models."""
    usual = model.rope_tables

    def rope_tables(length, dim):
        cos, sin = usual(10_000, dim)
        return cos[:length], sin[:length]

    model.rope_tables = rope_tables


def usual_init():
    """Initial weights as PyTorch draws them: those of the embedding are 50 times ours."""
    model.DiffusionTransformer.initialise = lambda self: None


class Convolution(torch.nn.Module):
    """Each channel mixed with its two neighbours' before attention."""

    def __init__(self, dim):
        super().__init__()
        # three dimensions: no matrix, to be drawn anew or given to Muon
        self.weight = torch.nn.Parameter(
            torch.tensor([0.0, 1.0, 0.0])[:, None, None].repeat(1, 1, dim)
        )

    def forward(self, x):
        padded = F.pad(x, (0, 0, 1, 1))
        return sum(padded[:, i : i + x.shape[1]] * self.weight[i] for i in range(3))


class AttentionAfterConvolution(model.Attention):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.convolution = Convolution(self.qkv.in_features)

    def forward(self, x, cos, sin):
        return super().forward(self.convolution(x), cos, sin)


def convolution():
    """A convolution of width 3 before attention."""
    model.Attention = AttentionAfterConvolution


def also(change, settings):
    """That change of the package, and these settings."""

    @functools.wraps(change)
    def both():
        return settings | (change() or {})

    return both


SMALL = dict(n_layers=4, d_model=128, n_heads=2, batch_size=16)
VARIANTS = {  # name: settings, or a function that changes the package and may return settings
    "base": {},
    "adamw": use_adamw,
    "muon-in-parts": muon_in_parts,
    "no-qk-norm": no_qk_norm,
    "rope-10000": usual_rope,
    "usual-init": usual_init,
    "loss-of-t": train_on_t,
    "few-masks-first": few_masks_first,
    "convolution": convolution,
    "muon-lr-0.00125": dict(muon_lr=0.00125),
    "muon-lr-0.005": dict(muon_lr=0.005),
    "muon-lr-0.01": dict(muon_lr=0.01),
    "muon-lr-0.02": dict(muon_lr=0.02),
    "batch-16": dict(batch_size=16),
    "context-256": dict(context=256, batch_size=16),
    "wide-shallow": dict(d_model=384, n_layers=3, n_heads=6),
    "4-by-192": SMALL | dict(d_model=192, n_heads=3),
    "4-by-128": SMALL,
    "4-by-128-batch-8": SMALL | dict(batch_size=8),
    "4-by-128-muon-lr-0.00125": SMALL | dict(muon_lr=0.00125),
    "4-by-128-muon-lr-0.005": SMALL | dict(muon_lr=0.005),
    "4-by-128-adamw-lr-6e-3": SMALL | dict(adamw_lr=6e-3),
    "4-by-128-vocabulary-4096": SMALL | dict(vocab_size=4096),
    "4-by-128-vocabulary-4096-adamw-lr-6e-3": SMALL | dict(vocab_size=4096, adamw_lr=6e-3),
    "4-by-128-vocabulary-8192-adamw-lr-6e-3": SMALL | dict(vocab_size=8192, adamw_lr=6e-3),
    "4-by-128-few-masks-first": also(few_masks_first, SMALL),
    "4-by-128-muon-in-parts": also(muon_in_parts, SMALL),
    "4-by-96": SMALL | dict(d_model=96),
    "6-by-128": SMALL | dict(n_layers=6),
    "no-ema": dict(ema=0.0),
    "time-conditioning": dict(time_conditioning=True),
}
PLAN = {}  # the steps of the run under way, for few_masks_first


def settings_of(name):
    """Change the package as the variant NAME says. Returns its settings."""
    change = VARIANTS[name]
    return change if isinstance(change, dict) else change() or {}


def time_step(name):
    """Median seconds of a step, once everything is compiled."""
    config, times = Config(**settings_of(name)), []
    PLAN["steps"] = 1  # with few masks a step is shorter: time one with all of them
    corpus = prepare_corpus(config)
    run = training.Run(config, corpus)
    for step in range(14):
        start = time.perf_counter()
        training.training_step(run.model, run.optimizers, run.scaler, corpus, config, step).item()
        run.ema.update()
        times.append(time.perf_counter() - start)
    return statistics.median(times[4:])


def train_for(name, steps):
    """One run of so many steps. Returns what came out of it."""
    settings = settings_of(name)
    plan = dict(steps=steps, warmup=min(100, steps // 4), eval_every=10**8, save_every=10**8)
    config = Config(**settings, **plan)
    PLAN["steps"] = steps
    with tempfile.TemporaryDirectory() as folder:
        run = training.train(config, prepare_corpus(config), folder)
    last, change = run.history[-1], VARIANTS[name]
    return dict(
        what="" if isinstance(change, dict) else change.__doc__.split("\n")[0],
        settings=settings,
        parameters=sum(p.numel() for p in run.model.parameters()),
        steps=steps,
        **{key: last[key] for key in ("tokens", "bpb", "error")},
    )


def tables(results):
    """Results as Markdown: a table for each budget, the best first."""
    lines, budget, usual = [], None, Config()
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


HEAD = """# What makes the model learn fast

Bits per byte of all of the validation text (a bound, with its standard error). Each run changes
what its row says, either in the base (the CPU preset) or in the smaller model that its name
begins with. All runs in a table train for the same time: what the base takes on a 2-core CPU
for the number of steps in the table's heading. So a run whose steps take longer gets fewer of
them. Times are good to 7 % among the runs of one model (`few-masks-first`, `rope-10000`,
`no-qk-norm` and `no-ema` cost no time, and got 4 to 6 % fewer steps than they should have).
Those of `4-by-128` took up
to a third longer when they were timed again beside the base, so they had up to twelve minutes
where it had nine. 300 steps take about nine minutes on a CPU with AVX2 only; 2,000 take eleven
on one with AVX512-BF16; 3,000 are the whole run of the preset. To make a run:

    python benchmarks/quality.py --time base RUN
    python benchmarks/quality.py --steps STEPS RUN
"""


def keep(results, path):
    """Write the results, and beside them a page with the tables of all runs."""
    write_atomically(path, (json.dumps(results, indent=1) + "\n").encode())
    page = HEAD + tables(results) + "\n"
    write_atomically(path.with_suffix(".md"), page.encode("utf-8"))


def timed_as(name):
    """The run whose steps take as long: other learning rates and initial weights cost nothing."""
    change = {} if VARIANTS[name] is usual_init else VARIANTS[name]
    if isinstance(change, dict):
        costly = {k: v for k, v in change.items() if k not in ("muon_lr", "adamw_lr")}
        name = next((other for other, c in VARIANTS.items() if c == costly), name)
    return name


def step_takes(name, results):
    """Seconds a step of that run, on the CPU that was timed."""
    return results["seconds"].get(timed_as(name))


def run_all(names, arguments, results):
    """Time, or train, every run named; what each gives is kept at once."""
    if arguments.time:
        if "base" in names:  # on another machine, perhaps: what was timed before does not count
            results["seconds"].clear()
        for (_, name), seconds in run_apart([(time_step, name) for name in names]):
            results["seconds"][timed_as(name)] = seconds
            keep(results, arguments.results)
        return

    def steps_of(name):
        ratio = step_takes(name, results) / step_takes("base", results)
        return max(1, round(arguments.steps / ratio))

    calls = [(train_for, name, steps_of(name)) for name in names]
    for (_, name, _), result in run_apart(calls, arguments.jobs):
        row = dict(name=name, budget=arguments.steps) | result
        results["runs"][f"{name}, {arguments.steps}"] = row
        keep(results, arguments.results)


def main(argv=None):
    """Command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="RUN", help="(default: all; see --list)")
    parser.add_argument("--time", action="store_true", help="time a step of each, training none")
    parser.add_argument("--steps", type=int, default=2000, help="of the base (default: 2000)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time (default: 1)")
    parser.add_argument("--list", action="store_true", help="name the runs and stop")
    parser.add_argument("--results", type=Path, default=RESULTS, help="(default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.list:
        print("\n".join(VARIANTS))
        return 0
    begun = arguments.results if arguments.results.exists() else OURS
    results = json.loads(begun.read_text(encoding="utf-8"))
    names = arguments.names or list(VARIANTS)
    try:
        for name in names:
            if name not in VARIANTS:
                raise UserError(f"no run is called {name}; see --list")
            if not (arguments.time or (step_takes("base", results) and step_takes(name, results))):
                raise UserError(f"how long does it take? First: --time {name} base")
        if not (arguments.steps > 0 and arguments.jobs > 0):
            raise UserError("--steps and --jobs must be above 0")
        run_all(names, arguments, results)
    except UserError as error:
        print(f"quality.py: {error}", file=sys.stderr)
        return 2
    if results["runs"]:
        print(tables(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
