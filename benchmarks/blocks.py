"""The dial from GPT to diffusion: the same network and time for each size of the blocks.

    python benchmarks/blocks.py                         train what is missing, measure, draw
    python benchmarks/blocks.py --seconds 240 --seeds 1 2

Every run gets the same processor time on one core, after compiling. Its checkpoint goes to
runs/blocks/, and what is there is not trained again. Results go to blocks.json, the figure to
img/blocks.png. The test text is opened for the last table only.
"""

import time
from dataclasses import replace
from pathlib import Path

import torch
from common import ROOT, make_parser, run_apart

from compressors import bits_per_byte
from corpus import prepare_corpus
from hardware import Hardware, compile_blocks
from mdlm.blocks import (
    BlockDenoiser,
    block_nats,
    block_nelbo,
    block_sizes,
    block_training_loss,
    spread_over_blocks,
)
from mdlm.diffusion import mask_counts
from mdlm.model import DiffusionTransformer
from mdlm.training import EMA, evaluate, make_optimizers, training_step
from saving import save_checkpoint
from settings import settings

FOLDER = ROOT / "runs" / "blocks"
TINY = dict(corpus=str(ROOT / "README.md"), vocab_size=300, d_model=32, context=32, compile=False)


def clipped(low, high):
    """A training loss with shares of masks from low to high only, as in the paper's section 5."""

    def loss(model, x, t, generator=None):
        sizes = block_sizes(x.shape[1], model.config.block)
        share = low + (high - low) * spread_over_blocks(t, len(sizes), generator)
        return block_nats(model, x, mask_counts(share, sizes), generator).sum(dim=1)

    return loss


RUNS = {  # name: (changed settings, training loss)
    "diffusion": ({}, None),
    "16": (dict(block=16), block_training_loss),
    "4": (dict(block=4), block_training_loss),
    "1": (dict(block=1), block_training_loss),
    "gpt, Muon at 0.01": (dict(causal=True, muon_lr=0.01), None),
    "64": (dict(block=64), block_training_loss),
    "2": (dict(block=2), block_training_loss),
    "8": (dict(block=8), block_training_loss),
    "gpt": (dict(causal=True), None),
    "4, clipped": (dict(block=4), clipped(0.45, 0.95)),
    "16, clipped": (dict(block=16), clipped(0.3, 0.8)),
}


def path_of(name, seed, folder=FOLDER):
    return Path(folder) / f"{name.replace(', ', '-').replace(' ', '-')}-seed-{seed}.safetensors"


def train_for(name, seed, seconds, folder, **changes):
    """One run of so many seconds of processor time. Returns what came out of it."""
    torch.set_num_threads(1)
    setting, loss = RUNS[name]
    plan = dict(short_windows=0.0, seed=seed) | setting | changes
    corpus, config = prepare_corpus(settings("small", **plan))
    torch.manual_seed(seed)
    model = (BlockDenoiser if config.block else DiffusionTransformer)(config)
    optimizers, ema = make_optimizers(model, config), EMA(model, config.ema)
    hardware = Hardware(torch.device("cpu"))
    if config.compile:
        compile_blocks(model.blocks, hardware.device)
        before = [p.detach().clone() for p in model.parameters()]
        training_step(model, make_optimizers(model, config), corpus, config, 0, hardware, loss)
        with torch.no_grad():  # that one was for the compiler
            for p, was in zip(model.parameters(), before, strict=True):
                p.copy_(was)
    start, used, step, total = time.process_time(), 0.0, 0, 0.0
    while used < seconds:
        # the schedule is as long as the steps that there will be, at the speed so far
        plan = replace(config, steps=max(step + 1, round(seconds * step / used)) if step else 999)
        total = training_step(model, optimizers, corpus, plan, step, hardware, loss).item()
        ema.update()
        step, used = step + 1, time.process_time() - start
    ema.swap()
    for block in model.blocks:
        block._compiled_call_impl = None
    nats = evaluate(model, corpus.val, passes=2, bound=block_nelbo if config.block else None)
    bpb, error = (bits_per_byte(n, len(corpus.val), corpus.val_bytes) for n in nats)
    row = dict(name=name, seed=seed, steps=step, seconds=used, validation=bpb, error=error)
    row |= dict(last_loss=total, parameters=sum(p.numel() for p in model.parameters()))
    save_checkpoint(path_of(name, seed, folder), model, corpus.tokenizer, row)
    return row


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=240, help="for each run (default: 240)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="(default: 1 2)")
    parser.add_argument("--names", nargs="+", default=list(RUNS), help="(default: all)")
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    calls = [
        (train_for, name, seed, arguments.seconds, FOLDER)
        for seed in arguments.seeds
        for name in arguments.names
        if not path_of(name, seed).exists()
    ]
    for _, row in run_apart(calls):
        print(row, flush=True)


if __name__ == "__main__":
    main()
