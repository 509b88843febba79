"""What makes the model learn fast: runs with the same budget of time, one thing changed in each.

    python benchmarks/quality.py                         all of them, 4 minutes each
    python benchmarks/quality.py --minutes 10 default adamw
    python benchmarks/quality.py --list

A run's steps are chosen so that they take the budget (compiling and looking at the validation text
not counted), and its learning rate falls over just these steps. Results are added to quality.json;
the table of all of them is printed and written to quality.md. Nothing else should run meanwhile.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bpe_tokenizer import UserError, write_atomically  # noqa: E402
from mdlm import diffusion, model, training  # noqa: E402
from mdlm.config import Config  # noqa: E402
from mdlm.corpus import prepare_corpus  # noqa: E402

RESULTS = Path(__file__).with_name("quality.json")


# -- changes that are no setting of Config: each replaces a part of the package for one run


def use_adamw():
    """AdamW for the matrices as well."""

    def make_optimizers(network, config):
        matrices = [p for p in network.blocks.parameters() if p.dim() == 2]
        rest = [p for p in network.parameters() if all(p is not q for q in matrices)]
        options = dict(lr=config.adamw_lr, betas=(0.9, 0.95), fused=True)
        return [
            torch.optim.AdamW(matrices, weight_decay=config.weight_decay, **options),
            torch.optim.AdamW(rest, weight_decay=0.0, **options),
        ]

    training.make_optimizers = make_optimizers
    return dict(muon_lr=2e-3)


def train_on_t():
    """The paper's loss of a random time t, not of a random number of masks."""

    def loss_in_nats(network, x, k, noise):
        if network.config.causal:
            raise UserError("the twin has no t")
        t = diffusion.low_discrepancy_t(len(x), noise)
        return diffusion.diffusion_loss(network, x, t, "linear", noise)

    usual = training.loss_in_nats

    def only_in_training(network, x, k, noise):
        return (loss_in_nats if network.training else usual)(network, x, k, noise)

    training.loss_in_nats = only_in_training


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


class Convolution(torch.nn.Module):
    """Each channel mixed with its two neighbours' before attention."""

    def __init__(self, dim):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.0, 1.0, 0.0])[:, None].repeat(1, dim))

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


VARIANTS = {  # name: settings, or a function that changes the package and may return settings
    "default": {},
    "adamw": use_adamw,
    "no-qk-norm": no_qk_norm,
    "rope-10000": usual_rope,
    "loss-of-t": train_on_t,
    "few-masks-first": few_masks_first,
    "convolution": convolution,
    "muon-lr-0.01": dict(muon_lr=0.01),
    "muon-lr-0.04": dict(muon_lr=0.04),
    "adamw-lr-6e-3": dict(adamw_lr=6e-3),
    "batch-16": dict(batch_size=16),
    "context-256": dict(context=256, batch_size=16),
    "vocabulary-1024": dict(vocab_size=1024),
    "vocabulary-4096": dict(vocab_size=4096),
    "narrow-deep": dict(d_model=192, n_layers=10, n_heads=3),
    "wide-shallow": dict(d_model=384, n_layers=3, n_heads=6),
    "no-ema": dict(ema=0.0),
    "dropout-0.1": dict(dropout=0.1),
    "time-conditioning": dict(time_conditioning=True),
}
PLAN = {}  # the steps of the run under way, for few_masks_first


def seconds_a_step(config, corpus, folder):
    """Median time of a step, once everything is compiled."""
    run, times = training.Run(config, corpus, folder), []
    for step in range(20):
        start = time.perf_counter()
        training.training_step(run.model, run.optimizers, run.scaler, corpus, config, step).item()
        run.ema.update()
        times.append(time.perf_counter() - start)
    return statistics.median(times[5:])


def measure(name, minutes):
    """One run. Returns its row of the table."""
    change = VARIANTS[name]
    settings = change if isinstance(change, dict) else change() or {}
    config = Config(**settings, eval_every=10**8, save_every=10**8)
    corpus = prepare_corpus(config)
    with tempfile.TemporaryDirectory() as folder:
        PLAN["steps"] = config.steps
        step = seconds_a_step(config, corpus, folder)
        steps = max(1, round(60 * minutes / step))
        config = Config(**{**asdict(config), "steps": steps, "warmup": min(100, steps // 4)})
        PLAN["steps"] = steps
        run = training.train(config, corpus, folder)
    last = run.history[-1]
    return dict(
        name=name,
        minutes=minutes,
        what="" if isinstance(change, dict) else change.__doc__.split("\n")[0],
        settings=settings,
        parameters=sum(p.numel() for p in run.model.parameters()),
        steps=steps,
        tokens=last["tokens"],
        seconds_a_step=step,
        bpb=last["bpb"],
        error=last["error"],
    )


def table(rows):
    """Rows as Markdown, the best first."""
    lines = ["| run | changed | parameters | tokens | bits per byte |", "|---|---|---:|---:|---:|"]
    for row in sorted(rows, key=lambda row: (row["minutes"], row["bpb"])):
        changed = row["what"] or ", ".join(f"{k} {v}" for k, v in row["settings"].items())
        lines.append(
            f"| `{row['name']}`, {row['minutes']:g} min | {changed or 'nothing'} "
            f"| {row['parameters'] / 1e6:.1f}M | {row['tokens'] / 1e6:.1f}M "
            f"| {row['bpb']:.3f} ± {row['error']:.3f} |"
        )
    return "\n".join(lines)


def report(rows):
    """Print the table of all rows, and write it to quality.md."""
    head = (
        "# What makes the model learn fast\n\n"
        "Bits per byte of all of the validation text (a bound, with its standard error) after so "
        "many minutes of training on a 2-core CPU. Each row changes one thing of the CPU preset. "
        "The row `NAME, N min` is made by\n\n    python benchmarks/quality.py --minutes N NAME\n\n"
    )
    write_atomically(RESULTS.with_suffix(".md"), (head + table(rows) + "\n").encode("utf-8"))
    print(table(rows))


def main(argv=None):
    """Command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="RUN", help="(default: all; see --list)")
    parser.add_argument("--minutes", type=float, default=4.0, help="of each (default: 4)")
    parser.add_argument("--list", action="store_true", help="name the runs and stop")
    arguments = parser.parse_args(argv)
    if arguments.list:
        print("\n".join(VARIANTS))
        return 0
    unknown = [name for name in arguments.names if name not in VARIANTS]
    if unknown or not arguments.minutes > 0:
        print(
            f"quality.py: no run is called {unknown[0]}; see --list"
            if unknown
            else "quality.py: --minutes must be above 0",
            file=sys.stderr,
        )
        return 2
    names = arguments.names or list(VARIANTS)
    if len(names) > 1:  # a process each: a change of the package must not reach the next run
        import subprocess

        command = [sys.executable, __file__, "--minutes", str(arguments.minutes)]
        for name in tqdm(names, unit="run"):
            subprocess.run([*command, name], check=True, stdout=subprocess.DEVNULL)
        report(json.loads(RESULTS.read_text(encoding="utf-8")))
        return 0
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    row = measure(names[0], arguments.minutes)
    same = (row["name"], row["minutes"])
    rows = [r for r in rows if (r["name"], r["minutes"]) != same] + [row]
    write_atomically(RESULTS, json.dumps(rows, indent=1).encode())
    report(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
