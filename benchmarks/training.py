"""Time a training step: three plain ways of writing it, and the limit.

    python benchmarks/training.py                     a table, and training.json
    python benchmarks/training.py --sizes small --rounds 3

All contestants take turns in one process, and the figures are medians. "Straightforward" is the
step as one would first write it: not compiled, output layer and cross-entropy at every position,
in float32; "full head" is the same, compiled. "Encoder" is PyTorch's own nn.TransformerEncoder of
the same widths, not compiled, trained with AdamW, with the output layer at every position.
The limit is the time that the matrix products of our step, Muon's included, take by themselves, at
the same shapes and dtype. MFU (model FLOP utilisation) is the arithmetic that the model asks for,
not counting Muon's, divided by what one large matrix product does in the same time.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from common import in_turns, keep, make_parser, random_corpus, seconds, start_table, trainer
from torch import nn

from hardware import autocast, device_choices, pick_device
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
        with autocast(z.device):
            return self.head(self.blocks(self.token(z) + self.position.weight[: z.shape[1]]))


def full_logits(model, z):
    """Our network with the output layer at every position, in float32. (B, L) -> (B, L, V - 1)"""
    with autocast(z.device):
        h = model.features(z)
    return F.linear(h.float(), model.embedding.weight[: model.mask_id])


def plain_step(logits, parameters, optimizers, x, mask_id):
    """A step on the texts x (B, L), as one would first write it. logits: (B, L) -> (B, L, V)"""
    t = low_discrepancy_t(len(x))  # (B,)
    z = forward_process(x, 1 - t, mask_id)
    nats = F.cross_entropy(logits(z).float().transpose(1, 2), x, reduction="none")  # (B, L)
    ((nats * (z == mask_id)).sum(dim=1) / t.to(x.device)).mean().div(x.shape[1]).backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def products(model, optimizers):
    """A function that does the matrix products of one step: forward, backward, and Muon's."""
    config, device = model.config, pick_device()
    B, L, C, H = config.batch_size, config.context, config.d_model, config.n_heads

    def random(*shape):
        return torch.randn(*shape, device=device).to(device_choices(device).dtype)

    shapes = [(p.shape, B * L) for p in model.blocks.parameters() if p.dim() == 2]
    shapes += [((config.vocab_size - 1, C), B * L // 2)]  # half of the places are masked
    layers = [(random(n, w[1]), random(n, w[0]), random(*w)) for w, n in shapes]
    q, k, v, g = (random(B, H, L, C // H) for _ in range(4))
    scores, stacks = random(B, H, L, L), {}
    for p in optimizers[0].param_groups[0]["params"]:
        stacks.setdefault(p.shape, []).append(random(*p.shape))
    stacks = [torch.stack(matrices) for matrices in stacks.values()]

    @torch.no_grad()
    def step():
        for x, dy, w in layers:
            x @ w.mT, dy @ w, dy.mT @ x  # forward; gradients of the input and of the weight
        for _ in range(config.n_layers):
            q @ k.mT, scores @ v  # forward
            g @ v.mT, scores.mT @ g, scores @ k, scores.mT @ q  # backward
        for stack in stacks:
            orthogonalise(stack)

    return step


def flops_used(model, step_seconds):
    """MFU: the part of the device's arithmetic that the model's own takes, forward and backward."""
    config, device = model.config, pick_device()
    C = config.d_model
    weights = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)
    weights += (config.vocab_size - 1) * C / 2  # half of the places are masked, on average
    weights += 2 * config.n_layers * config.context * C  # scores, and what they weigh
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(device_choices(device).dtype) for _ in "ab")
    possible = 2 * n**3 / min(seconds(lambda: a @ b) for _ in range(10))
    return 6 * config.batch_size * config.context * weights / step_seconds / possible


def measure(name, rounds):
    """Medians of everything at one size, in seconds."""
    torch.compiler.reset()  # each size is compiled as if it were the only one
    config = SIZES[name]
    corpus = random_corpus(config)
    model, optimizers, _, step = trainer(config, corpus)
    encoder = Encoder(config).to(pick_device())
    x = torch.from_numpy(corpus.train[: config.batch_size * config.context].astype("int64"))
    x, contestants = x.view(config.batch_size, -1).to(pick_device()), {"step": step}
    for other, compiled in (("straightforward", False), ("full head", config.compile)):
        net, own, *_ = trainer(replace(config, compile=compiled), corpus)
        contestants[other] = lambda net=net, own=own: plain_step(
            lambda z: full_logits(net, z), net.parameters(), own, x, net.mask_id
        )
    adamw = torch.optim.AdamW(encoder.parameters(), 1e-3, fused=True)
    contestants["encoder"] = lambda: plain_step(
        encoder, encoder.parameters(), [adamw], x, model.mask_id
    )
    contestants["limit"] = products(model, optimizers)
    row = in_turns(contestants, rounds)
    parameters = sum(p.numel() for p in model.parameters())
    speed = dict(tokens_per_s=x.numel() / row["step"], mfu=flops_used(model, row["step"]))
    return dict(size=name, parameters=parameters) | speed | row


def main():
    parser = make_parser(__doc__)
    usual = [s for s in SIZES if s != "tiny" and (s != "cuda" or torch.cuda.is_available())]
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=usual)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.sizes, arguments.rounds = ["tiny"], 1
    heads = ("size", "parameters", "tokens/s", "step", "limit", "of the limit", "MFU", *OTHERS)
    print_row, rows = start_table(*heads), []
    for name in arguments.sizes:
        rows.append(row := measure(name, arguments.rounds))
        step, limit = row["step"], row["limit"]
        cells = [f"{row['parameters'] / 1e6:.1f}M", f"{row['tokens_per_s']:,.0f}"]
        cells += [f"{1000 * step:.0f} ms", f"{1000 * limit:.0f} ms", f"{limit / step:.0%}"]
        cells += [f"{row['mfu']:.0%}"]
        cells += [f"{1000 * row[k]:.0f} ms ({row[k] / step:.2f} x)" for k in OTHERS]
        print_row(name, *cells)
    if not arguments.smoke:
        keep(__file__, rows)


if __name__ == "__main__":
    main()
