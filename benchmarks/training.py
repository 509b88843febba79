"""Time a training step: its parts, three plain ways of writing it, and the limit.

    python benchmarks/training.py                     a table, and training.json
    python benchmarks/training.py --sizes "small preset" --rounds 3

All contestants take turns in one process, and the figures are medians. "Straightforward" is the
step as one would first write it: not compiled, output layer and cross-entropy at every position,
in float32; "full head" is the same, compiled. "Encoder" is PyTorch's own nn.TransformerEncoder of
the same widths, trained with AdamW, with the output layer at every position.
The limit is the time that the matrix products of our step take by themselves, at the same shapes
and dtype. MFU (model FLOP utilisation) is the arithmetic that the model asks for, not counting
Muon's, divided by what one large matrix product does in the same time.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bpe_tokenizer import BPETokenizer, UserError, write_atomically  # noqa: E402
from mdlm.config import PRESETS, Config  # noqa: E402
from mdlm.corpus import Corpus, windows  # noqa: E402
from mdlm.diffusion import spread_mask_counts  # noqa: E402
from mdlm.training import (  # noqa: E402
    Run,
    autocast,
    device_choices,
    in_stacks,
    orthogonalise,
    training_step,
)

SIZES = {
    "4 by 128": dict(n_layers=4, d_model=128, n_heads=2),
    "small preset": PRESETS["small"],
    "cpu preset": {},
    "large": dict(n_layers=8, d_model=384, n_heads=6, batch_size=16),
}
if torch.cuda.is_available():
    SIZES["cuda preset"] = PRESETS["cuda"]
OTHERS = ("straightforward", "full head", "encoder")


def milliseconds(function):
    """Time of one call, the device's queue included."""
    start = time.perf_counter()
    function()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return 1000 * (time.perf_counter() - start)


def random_corpus(config):
    """Tokens drawn at random: the time of a step does not depend on what the text says."""
    tokens = np.random.default_rng(0).integers(0, config.vocab_size - 1, 100_000).astype(np.uint16)
    tokenizer = BPETokenizer([])  # never asked anything
    return Corpus(tokenizer, tokens, tokens[:1000], 400_000, 4000)


def full_head_step(run, x, k, noise):
    """Same body and optimizers, but output layer and loss everywhere, in float32."""
    falls_at = torch.rand(x.shape, generator=noise)
    t = falls_at.sort(dim=1).values.gather(1, k[:, None] - 1)
    masked = (falls_at <= t).to(run.device)
    z_t = torch.where(masked, run.model.mask_id, x)
    with autocast(run.device):
        h = run.model.features(z_t)
    logits = F.linear(h.float(), run.model.embedding.weight[:-1])  # (B, L, V - 1)
    nats = F.cross_entropy(logits.transpose(1, 2), x, reduction="none")  # (B, L)
    loss = (nats * masked / k[:, None].to(run.device)).sum() / len(x)
    loss.backward()
    nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    for optimizer in run.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


class Encoder(nn.Module):
    """PyTorch's encoder with our widths, learned positions, and an output layer of its own."""

    def __init__(self, config):
        super().__init__()
        C = config.d_model
        self.token, self.position = (
            nn.Embedding(config.vocab_size, C),
            nn.Embedding(config.context, C),
        )
        layer = nn.TransformerEncoderLayer(
            C,
            config.n_heads,
            4 * C,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(layer, config.n_layers, enable_nested_tensor=False)
        self.head = nn.Linear(C, config.vocab_size)

    def forward(self, z):
        return self.head(self.blocks(self.token(z) + self.position.weight[: z.shape[1]]))


def encoder_step(model, optimizer, device, mask_id, x, k, noise):
    """One AdamW step of the encoder on the same loss."""
    falls_at = torch.rand(x.shape, generator=noise)
    t = falls_at.sort(dim=1).values.gather(1, k[:, None] - 1)
    masked = (falls_at <= t).to(device)
    with autocast(device):
        logits = model(torch.where(masked, mask_id, x))
    nats = F.cross_entropy(logits.float().transpose(1, 2), x, reduction="none")
    ((nats * masked / k[:, None].to(device)).sum() / len(x)).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def product_functions(run):
    """Functions that do the matrix products of one step of ours: forward and backward; Muon."""
    config, dtype = run.config, device_choices(run.device).dtype
    B, L, C, H = config.batch_size, config.context, config.d_model, config.n_heads

    def random(*shape):
        return torch.randn(*shape, device=run.device).to(dtype)

    layer = [(p.shape, B * L) for p in run.model.blocks[0].parameters() if p.dim() == 2]
    head = [((config.vocab_size - 1, C), B * L // 2)]  # half of the places are masked, on average
    products = [
        (random(rows, n_in), random(rows, n_out), random(n_out, n_in), times)
        for shapes, times in ((layer, config.n_layers), (head, 1))
        for (n_out, n_in), rows in shapes
    ]
    q, k, v, g = (random(B, H, L, C // H) for _ in range(4))
    scores = random(B, H, L, L)

    @torch.no_grad()
    def step():
        for x, dy, w, times in products:
            for _ in range(times):
                x @ w.mT  # forward
                dy @ w  # gradient of the input
                dy.mT @ x  # gradient of the weight
        for _ in range(config.n_layers):
            q @ k.mT, scores @ v  # forward
            g @ v.mT, scores.mT @ g, scores @ k, scores.mT @ q  # backward

    @torch.no_grad()
    def muon():
        for params in in_stacks(run.optimizers[0].param_groups[0]["params"]):
            orthogonalise(torch.stack(params).to(dtype))

    return step, muon


def model_flops(run):
    """Floating-point operations of one step, forward and backward: what the model asks for."""
    config = run.config
    tokens, C = config.batch_size * config.context, config.d_model
    blocks = sum(p.numel() for p in run.model.blocks.parameters() if p.dim() == 2)
    head = (config.vocab_size - 1) * C / 2  # half of the places are masked, on average
    attention = 2 * config.n_layers * config.context * C  # scores, and what they weigh
    return 6 * tokens * (blocks + head + attention)


def flops_per_second(device):
    """Of one large matrix product, in the dtype that suits the device."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(device_choices(device).dtype) for _ in "ab")
    return 2 * n**3 / (min(milliseconds(lambda: a @ b) for _ in range(10)) / 1000)


def measure(name, rounds):
    """One row: medians in milliseconds of everything, at one size."""
    torch.compiler.reset()  # each size is compiled as if it were the only one
    config = Config(**SIZES[name] | {"dropout": 0.0})  # the encoder has none
    corpus = random_corpus(config)
    run, full = Run(config, corpus), Run(config, corpus)
    straight = Run(dataclasses.replace(config, compile=False), corpus)
    device = run.device
    encoder = Encoder(config).to(device)
    optimizer = torch.optim.AdamW(encoder.parameters(), 1e-3, fused=True)
    x = windows(corpus.train, np.arange(config.batch_size) * 100, config.context).to(device)
    noise = torch.Generator().manual_seed(0)
    k = spread_mask_counts(*x.shape, noise)
    products, muon = product_functions(run)

    contestants = {
        "step": lambda: training_step(run.model, run.optimizers, run.scaler, corpus, config, 5),
        "straightforward": lambda: full_head_step(straight, x, k, noise),
        "full head": lambda: full_head_step(full, x, k, noise),
        "encoder": lambda: encoder_step(encoder, optimizer, device, run.model.mask_id, x, k, noise),
        "products": products,
        "products of Muon": muon,
    }
    for function in contestants.values():  # compiles
        milliseconds(function)
    times = {key: [] for key in contestants}
    for _ in range(rounds):
        for key, function in contestants.items():
            times[key].append(milliseconds(function))
    ms = {key: statistics.median(values) for key, values in times.items()}
    return {
        "size": name,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "tokens_per_s": 1000 * x.numel() / ms["step"],
        "mfu": model_flops(run) / (ms["step"] / 1000) / flops_per_second(device),
        "limit_ms": ms["products"] + ms["products of Muon"],
        "ms": ms,
    }


def table(rows):
    """The rows as Markdown."""
    heads = [
        "size",
        "parameters",
        "tokens/s",
        "step",
        "limit",
        "of the limit",
        "MFU",
        *OTHERS,
    ]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for r in rows:
        step, limit = r["ms"]["step"], r["limit_ms"]
        others = [f"{r['ms'][k]:.0f} ms ({r['ms'][k] / step:.2f} x)" for k in OTHERS]
        row = [r["size"], f"{r['parameters'] / 1e6:.1f}M", f"{r['tokens_per_s']:,.0f}"]
        row += [
            f"{step:.0f} ms",
            f"{limit:.0f} ms",
            f"{limit / step:.0%}",
            f"{r['mfu']:.0%}",
            *others,
        ]
        lines.append(row)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", default=str(ROOT / "benchmarks" / "training.json"))
    arguments = parser.parse_args(argv)
    rows = []
    for name in arguments.sizes:
        rows.append(measure(name, arguments.rounds))
        ms = rows[-1]["ms"]
        print(f"{name}: " + ", ".join(f"{k} {v:.0f} ms" for k, v in ms.items()), flush=True)
    report = {"threads": torch.get_num_threads(), "rows": rows}
    try:
        write_atomically(arguments.json, json.dumps(report, indent=1).encode("utf-8"))
    except UserError as error:
        print(f"training.py: {error}", file=sys.stderr)
        return 2
    print(f"\n{table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
