"""Time three choices of ours against the other way of doing it, on this machine.

    python benchmarks/choices.py

A block of the network with attention written out, as we do it on a CPU, against one with PyTorch's
fused kernel, forward and backward. A matrix product in float32, against bfloat16. Muon's
orthogonalisation of all matrices of one shape at once, against one after the other. The two of a
pair take turns, and the figures are medians.
"""

import argparse
import statistics
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.training import milliseconds  # noqa: E402
from mdlm.config import PRESETS, Config  # noqa: E402
from mdlm.model import Attention, Block, rope_tables, rotate  # noqa: E402
from mdlm.training import autocast, device_choices, orthogonalise  # noqa: E402


def in_turns(a, b, rounds):
    """Median milliseconds of two functions that take turns, after one call of each to warm up."""
    a(), b()
    pairs = [(milliseconds(a), milliseconds(b)) for _ in range(rounds)]
    return [statistics.median(times) for times in zip(*pairs, strict=True)]


class Fused(Attention):
    """The same attention with PyTorch's fused kernel on every device."""

    def forward(self, x, cos, sin):
        B, L, C = x.shape
        qkv = self.qkv(x).view(B, L, 3, self.n_heads, C // self.n_heads)  # (B, L, 3, H, D)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, L, D) each
        q, k = (rotate(F.rms_norm(u, u.shape[-1:]), cos, sin) for u in (q, k))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(B, L, C))


def block_steps(preset, compiled):
    """Two functions that take a block of the network forward and backward: ours, and fused."""
    config = Config(**PRESETS[preset])
    tables = rope_tables(config.context, config.d_model // config.n_heads)
    x = torch.randn(config.batch_size, config.context, config.d_model, requires_grad=True)
    steps = []
    for kind in (Attention, Fused):
        block = Block(config)
        block.attention = kind(config.d_model, config.n_heads, causal=False)
        if compiled:
            block.compile()

        def step(block=block):
            with autocast(x.device):
                y = block(x, *tables)
            torch.autograd.grad(y.sum(), [x, *block.parameters()])

        steps.append(step)
    return steps


def rows(rounds):
    """(what, ours, the other way), with the two times in milliseconds."""
    for preset in ("small", "cpu", "shipped"):
        for compiled in (False, True)[: 1 + device_choices(torch.device("cpu")).compile]:
            times = in_turns(*block_steps(preset, compiled), rounds)
            how = ", compiled" if compiled else ""
            yield (f"a block of `{preset}`{how}: attention written out, against fused", *times)
    x = torch.randn(1024, 1024)
    low = x.bfloat16()
    times = in_turns(lambda: x @ x, lambda: low @ low, rounds)
    yield ("product of 1,024 x 1,024: float32, against bfloat16", *times)
    stack = torch.randn(Config().n_layers, 256, 256)
    times = in_turns(
        lambda: orthogonalise(stack), lambda: [orthogonalise(g) for g in stack], rounds
    )
    yield (f"Muon on {len(stack)} matrices of 256 x 256 at once, against one by one", *times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=21, help="times each is run (default 21)")
    args = parser.parse_args()
    torch.manual_seed(0)
    print("| | ours | the other | other / ours |\n|---|---:|---:|---:|")
    for what, ours, other in rows(args.rounds):
        print(f"| {what} | {ours:.1f} ms | {other:.1f} ms | {other / ours:.1f} |", flush=True)


if __name__ == "__main__":
    main()
