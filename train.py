"""Train from the command line: the code of train_model.ipynb, for long runs.

    python train.py                                     the notebook's run
    python train.py --data my_novel.txt --steps 2000    your own text
    python train.py --preset cuda --batch-size 32 --accumulation 2
    python train.py --preset included --export checkpoints/kjv.safetensors
    python train.py --block 16                          from left to right, in blocks of 16 tokens
    python train.py --compare                           all runs so far: curves, and what differs
    torchrun --nproc-per-node 2 train.py --accumulation 2              two GPUs share each batch

Interrupted runs resume where they stopped. Every setting of the notebook is an option here.
"""

import argparse
import inspect
import os
import re
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

from files import Parser, UserError, check_writable, use_utf8
from settings import PRESETS, Config, kind, settings


def parse_arguments(argv=None):
    """Command line -> (Config, the other options)."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--preset",
        choices=["auto", *PRESETS],
        default="auto",
        help="settings to start from (auto: cuda on such a GPU, else small)",
    )
    parser.add_argument(
        "--data",
        dest="corpus",
        metavar="PATH",
        help="kjv, shakespeare, bbe, bibles, a UTF-8 .txt file, or a folder made by prepare.py "
        "(default: kjv)",
    )
    parser.add_argument("--folder", default="checkpoints", help="where checkpoints go")
    parser.add_argument("--restart", action="store_true", help="ignore an interrupted run")
    parser.add_argument(
        "--compare", action="store_true", help="show what the runs in the folder differ in, and end"
    )
    parser.add_argument(
        "--export",
        metavar="PATH",
        help="when done, also write the model there in bfloat16, half the size, measured again",
    )
    meanings = dict(re.findall(r"    (\w+): \w+ = .*?  # (.+)", inspect.getsource(Config)))
    for field in fields(Config):
        if field.name != "corpus":
            values = {p: PRESETS[p].get(field.name, field.default) for p in ("medium", "cuda")}
            default = PRESETS["small"].get(field.name, field.default)
            others = [f"; {p}: {value}" for p, value in values.items() if value != default]
            boolean = {"action": argparse.BooleanOptionalAction}
            parser.add_argument(
                "--" + field.name.replace("_", "-"),
                help=f"{meanings.get(field.name, '')} (small: {default}{''.join(others)})",
                **(boolean if field.type is bool else {"type": field.type}),
            )
    arguments = parser.parse_args(argv)
    given = {field.name: getattr(arguments, field.name) for field in fields(Config)}
    config = settings(arguments.preset, **given)
    if arguments.vocab_size is None:
        config = replace(config, vocab_size=enough_tokens(config))
    return config, arguments


def enough_tokens(config):
    """The preset's vocabulary, or a smaller one for a short text, and says so."""
    from corpus import is_named, is_prepared, text_parts, usual_vocab_size

    if is_named(config.corpus) or is_prepared(config.corpus):  # long: not to be read twice
        return config.vocab_size
    text = text_parts(config.corpus)[0]
    n_tokens = min(config.vocab_size, usual_vocab_size(text))
    if n_tokens < config.vocab_size and os.environ.get("RANK", "0") == "0":
        print(
            f"a short text ({len(text):,} characters to train on): {n_tokens} tokens, "
            f"not {config.vocab_size} (--vocab-size); soon memorised: --dropout 0.1 delays that, "
            "--steps ends before it",
            file=sys.stderr,
        )
    return n_tokens


def parts(config):
    """The network, the training loss and the bound of a config, as `train` takes them."""
    from mdlm.blocks import BlockDenoiser, block_nelbo, block_training_loss
    from mdlm.model import DiffusionTransformer

    if not config.block:
        return dict(network=DiffusionTransformer, loss=None, bound=None)
    return dict(network=BlockDenoiser, loss=block_training_loss, bound=block_nelbo)


def load_any(path, device=None):
    """(model, tokenizer, metadata) of a checkpoint of any kind. Raises UserError if it is none."""
    from saving import load_checkpoint, read_metadata

    return load_checkpoint(path, parts(read_metadata(path)[0])["network"], device)


def export(run, path):
    """Write a finished run's model in bfloat16, with the bound of what is stored.

    Returns (bits per byte, standard error).
    """
    import torch

    from compressors import bits_per_byte
    from mdlm.training import evaluate
    from saving import save_checkpoint

    for p in run.model.parameters():
        p.data = p.data.bfloat16().float()
    tokens, passes = run.corpus.val, 1 if run.config.causal else 8
    nats = evaluate(run.model, tokens, passes=passes, bound=parts(run.config)["bound"])
    bpb, error = (bits_per_byte(n, len(tokens), run.corpus.val_bytes) for n in nats)
    metadata = run.metadata() | dict(bpb=bpb, error=error)
    save_checkpoint(path, run.model, run.corpus.tokenizer, metadata, torch.bfloat16)
    return bpb, error


def main(argv=None):
    """Train. Returns the exit code: 2 for a user's mistake, which gets one line."""
    use_utf8()
    rank = int(os.environ.get("RANK", 0))
    try:
        config, arguments = parse_arguments(argv)
        if arguments.compare:
            show_runs(arguments.folder)
            return 0
        if arguments.export:
            ending = f"{kind(config)}.safetensors"
            if not arguments.export.endswith(ending):
                raise UserError(f"--export {arguments.export}: its name must end with {ending}")
            check_writable(arguments.export)
        from hardware import join_processes, leave_processes

        join_processes()
        run = train_from(config, arguments, rank)
        leave_processes()
        if rank == 0:
            finish(run, arguments)
    except UserError as error:
        if rank > 0:  # torchrun ends all processes when one ends: let the first say why
            time.sleep(10)
        else:
            print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # pressed twice, or before training began
        print("train.py: broken off; the last saved state stays as it is", file=sys.stderr)
        return 130
    except (RuntimeError, MemoryError) as error:
        from running import memory_is_full

        if not memory_is_full(error):
            raise
        print(
            "train.py: the memory is full: try --activation-checkpointing, which goes on from what "
            f"was saved, or --accumulation {2 * config.accumulation}, or a smaller --batch-size",
            file=sys.stderr,
        )
        return 1
    return 0


def train_from(config, arguments, rank):
    """Do what the notebook does. Returns the finished run."""
    import numpy as np
    import torch

    from corpus import prepare_corpus, windows
    from mdlm.blocks import sample_blocks
    from mdlm.diffusion import forward_process
    from mdlm.training import train, write_one_by_one
    from running import make_watch

    corpus, config = prepare_corpus(config)
    watch, write = None, write_one_by_one
    if config.block:

        def write(model, z, noise):
            return sample_blocks(model, z, generator=noise).tokens

    if rank == 0:
        n = len(corpus.train)
        print(f"{config.corpus}: {n:,} tokens to train on, preset {arguments.preset}", flush=True)
        if not config.causal:
            x = windows(corpus.val, np.array([0]), min(24, config.context))
            noise = torch.Generator().manual_seed(1)
            z = forward_process(x, torch.tensor([0.6]), corpus.tokenizer.mask_id, noise)
            if config.block:  # what stands before a block has no masks
                last = (x.shape[1] - 1) // config.block * config.block
                z[:, :last] = x[:, :last]
            watch = make_watch(corpus.tokenizer, z, write)
    resume = not arguments.restart
    its = parts(config)
    return train(config, corpus, arguments.folder, resume=resume, watch=watch, **its)


def show_runs(folder):
    """The table of all runs, and their curves as a picture."""
    import matplotlib

    from compare import compare

    matplotlib.use("Agg")
    Path("runs").mkdir(exist_ok=True)
    compare(folder, save=Path("runs") / "compare.png")


def finish(run, arguments):
    """Say what came out and what to do next, and export it if asked to."""
    last, bound = run.history[-1], "" if run.config.causal else "at most "
    print(
        f"{run.path}: {run.step:,} steps in {run.seconds / 60:.1f} minutes, validation",
        f"{bound}{last['bpb']:.3f} ± {last['error']:.3f} bits per byte",
    )
    best = min(run.history, key=lambda row: row["bpb"])
    passes = last["tokens"] / len(run.corpus.train)
    if last["bpb"] > 8:
        print("More than 8 bits: worse than no model at all. Is the text too short to learn from?")
    elif passes >= 2 and last["bpb"] > best["bpb"] + 0.05:  # more than a part of it may be off
        print(f"After {best['step']:,} steps it was {best['bpb']:.3f}: since then it has", end=" ")
        print(f"memorised the training text, read {passes:.0f} times.", end=" ")
        print(f"Try --steps {best['step']}, or more dropout.")
    if arguments.export:
        bpb, error = export(run, arguments.export)
        print(f"{arguments.export}: in bfloat16 {bound}{bpb:.3f} ± {error:.3f} bits per byte")
    print(f"now: python sample_visual.py {run.path}")


if __name__ == "__main__":
    code = main()
    if "RANK" in os.environ:  # a thread of PyTorch's gloo may still run, and would abort us
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
