"""Time a training step: three plain ways of writing it, and the limit.

    python benchmarks/training.py                     a table, and training.json
    python benchmarks/training.py --sizes small --rounds 3

All contestants take turns in one process, and the figures are medians. "Straightforward" is the
step as one would first write it: not compiled, output layer and cross-entropy at every position,
in float32; "full head" is the same, compiled. "Encoder" is PyTorch's own nn.TransformerEncoder of
the same widths, not compiled, trained with AdamW, with the output layer at every position.
The limit is the time that the matrix products of our step take by themselves, at the same shapes
and dtype. MFU (model FLOP utilisation) is the arithmetic that the model asks for, not counting
Muon's, divided by what one large matrix product does in the same time.
"""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from common import in_turns, keep, make_parser, random_corpus, run, seconds, start_table, trainer
from torch import nn

from corpus import windows
from hardware import autocast, device_choices
from mdlm.diffusion import forward_process, low_discrepancy_t
from mdlm.training import orthogonalise
from settings import settings

SIZES = {
    "tiny": settings("quick", vocab_size=300, n_layers=1, d_model=32, context=16, compile=False),
    "4 by 128": settings("medium", n_layers=4, d_model=128, n_heads=2),
    "small": settings("small"),
    "medium": settings("medium"),
    "large": settings("medium", n_layers=8, d_model=384, n_heads=6, batch_size=16),
    "cuda": settings("cuda", dropout=0.0),  # the encoder has none
}
OTHERS = ("straightforward", "full head", "encoder")


class Encoder(nn.Module):
    """PyTorch's encoder with our widths, learned positions, and an output layer of its own."""

    def __init__(self, config):
        super().__init__()
        C, V = config.d_model, config.vocab_size
        self.token, self.position = nn.Embedding(V, C), nn.Embedding(config.context, C)
        options = dict(activation="gelu", batch_first=True, norm_first=True, dropout=0.0)
        layer = nn.TransformerEncoderLayer(C, config.n_heads, 4 * C, **options)
        self.blocks = nn.TransformerEncoder(layer, config.n_layers, enable_nested_tensor=False)
        self.head = nn.Linear(C, V)

    def forward(self, z):
        return self.head(self.blocks(self.token(z) + self.position.weight[: z.shape[1]]))


def encoder_logits(model, z):
    """(B, L) -> (B, L, V) in the dtype of the device."""
    with autocast(z.device):
        return model(z)


def full_logits(model, z):
    """Our network with the output layer at every position, in float32. (B, L) -> (B, L, V - 1)"""
    with autocast(z.device):
        h = model.features(z)
    return F.linear(h.float(), model.embedding.weight[: model.mask_id])


def plain_step(logits, model, optimizers, x, mask_id):
    """A step on the texts x (B, L), as one would first write it."""
    t = low_discrepancy_t(len(x))  # (B,)
    z = forward_process(x, 1 - t, mask_id)
    nats = F.cross_entropy(logits(model, z).float().transpose(1, 2), x, reduction="none")  # (B, L)
    ((nats * (z == mask_id)).sum(dim=1) / t.to(x.device)).mean().div(x.shape[1]).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def product_functions(model, optimizers):
    """Functions that do the matrix products of one step of ours: forward and backward; Muon."""
    config, device = model.config, model.embedding.weight.device
    B, L, C, H = config.batch_size, config.context, config.d_model, config.n_heads
    dtype = device_choices(device).dtype

    def random(*shape):
        return torch.randn(*shape, device=device).to(dtype)

    layer = [(p.shape, B * L) for p in model.blocks[0].parameters() if p.dim() == 2]
    head = [((config.vocab_size - 1, C), B * L // 2)]  # half of the places are masked, on average
    products = [
        (random(rows, n_in), random(rows, n_out), random(n_out, n_in), times)
        for shapes, times in ((layer, config.n_layers), (head, 1))
        for (n_out, n_in), rows in shapes
    ]
    q, k, v, g = (random(B, H, L, C // H) for _ in range(4))
    scores, by_shape = random(B, H, L, L), {}
    for p in optimizers[0].param_groups[0]["params"]:
        by_shape.setdefault(p.shape, []).append(random(*p.shape))
    stacks = [torch.stack(matrices) for matrices in by_shape.values()]

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
        for stack in stacks:
            orthogonalise(stack)

    return step, muon


def model_flops(model):
    """Floating-point operations of one step, forward and backward: what the model asks for."""
    config = model.config
    tokens, C = config.batch_size * config.context, config.d_model
    blocks = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)
    head = (config.vocab_size - 1) * C / 2  # half of the places are masked, on average
    attention = 2 * config.n_layers * config.context * C  # scores, and what they weigh
    return 6 * tokens * (blocks + head + attention)


def flops_per_second(device):
    """Of one large matrix product, in the dtype that suits the device."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(device_choices(device).dtype) for _ in "ab")
    return 2 * n**3 / min(seconds(lambda: a @ b)[0] for _ in range(10))


def measure(name, rounds):
    """Medians of everything at one size, in milliseconds."""
    torch.compiler.reset()  # each size is compiled as if it were the only one
    config = SIZES[name]
    corpus = random_corpus(config)
    model, optimizers, step = trainer(config, corpus)
    full, straight = trainer(config, corpus), trainer(replace(config, compile=False), corpus)
    device = model.embedding.weight.device
    encoder = Encoder(config).to(device)
    adamw = torch.optim.AdamW(encoder.parameters(), 1e-3, fused=True)
    x = windows(corpus.train, np.arange(config.batch_size) * 100, config.context).to(device)
    products, muon = product_functions(model, optimizers)
    contestants = {
        "step": step,
        "straightforward": lambda: plain_step(full_logits, *straight[:2], x, model.mask_id),
        "full head": lambda: plain_step(full_logits, *full[:2], x, model.mask_id),
        "encoder": lambda: plain_step(encoder_logits, encoder, [adamw], x, model.mask_id),
        "products": products,
        "products of Muon": muon,
    }
    ms = {key: 1000 * value for key, value in in_turns(contestants, rounds).items()}
    return dict(
        size=name,
        parameters=sum(p.numel() for p in model.parameters()),
        tokens_per_s=1000 * x.numel() / ms["step"],
        mfu=model_flops(model) / (ms["step"] / 1000) / flops_per_second(device),
        limit_ms=ms["products"] + ms["products of Muon"],
        ms=ms,
    )


def main():
    parser = make_parser(__doc__)
    usual = [s for s in SIZES if s != "tiny" and (s != "cuda" or torch.cuda.is_available())]
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=usual)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.sizes, arguments.rounds = ["tiny"], 1
    heads = ("size", "parameters", "tokens/s", "step", "limit", "of the limit", "MFU", *OTHERS)
    print_row = start_table(*heads)
    rows = []
    for name in arguments.sizes:
        rows.append(row := measure(name, arguments.rounds))
        step, limit = row["ms"]["step"], row["limit_ms"]
        print_row(
            name,
            f"{row['parameters'] / 1e6:.1f}M",
            f"{row['tokens_per_s']:,.0f}",
            f"{step:.0f} ms",
            f"{limit:.0f} ms",
            f"{limit / step:.0%}",
            f"{row['mfu']:.0%}",
            *(f"{row['ms'][k]:.0f} ms ({row['ms'][k] / step:.2f} x)" for k in OTHERS),
        )
    if not arguments.smoke:
        keep(__file__, rows)


if __name__ == "__main__":
    run(main)
