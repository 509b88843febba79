"""Train from the command line: the code of train_model.ipynb, for long runs.

    python train.py                                     the notebook's run
    python train.py --data my_novel.txt --steps 2000    your own text
    python train.py --preset cuda --batch-size 32 --accumulation 2
    python train.py --preset shipped --ship checkpoints/kjv.safetensors
    torchrun --nproc-per-node 2 train.py --accumulation 2              two GPUs share each batch

Interrupted runs resume where they stopped. Every hyperparameter of the notebook is an option here.
"""

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path

from bpe_tokenizer import UserError, check_place, print_anything
from mdlm.config import PRESETS, Config, pick_device, usual_preset


def parse_arguments(argv=None):
    """Command line -> (Config, the other options)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--preset",
        choices=["auto", *PRESETS],
        default="auto",
        help="settings to start from (auto: cuda, cpu or small, what suits this machine)",
    )
    parser.add_argument(
        "--data",
        dest="corpus",
        metavar="PATH",
        help="kjv, shakespeare, a UTF-8 .txt file, or a folder made by prepare.py (default: kjv)",
    )
    parser.add_argument("--folder", default="checkpoints", help="where checkpoints go")
    parser.add_argument("--restart", action="store_true", help="ignore an interrupted run")
    parser.add_argument(
        "--ship",
        metavar="PATH",
        help="when done, also write the model there in bfloat16, half the size, measured again",
    )
    for field in fields(Config):
        if field.name == "corpus":
            continue
        values = {p: PRESETS[p].get(field.name, field.default) for p in ("small", "cuda")}
        others = [f"{p}: {value}" for p, value in values.items() if value != field.default]
        default = "; ".join([str(field.default), *others])
        kind = (
            {"action": argparse.BooleanOptionalAction}
            if field.type is bool
            else {"type": field.type}
        )
        parser.add_argument(
            "--" + field.name.replace("_", "-"), help=f"(default: {default})", **kind
        )
    arguments = parser.parse_args(argv)
    if arguments.preset == "auto":
        arguments.preset = usual_preset()
    given = {f.name: getattr(arguments, f.name) for f in fields(Config)}
    given = {name: value for name, value in given.items() if value is not None}
    return Config(**{**PRESETS[arguments.preset], **given}), arguments


def join_processes():
    """Find the other processes, if torchrun has started several. Returns this one's number."""
    import torch

    if "RANK" not in os.environ:
        return 0
    cuda = pick_device().type == "cuda"
    if cuda:
        n_processes, n_gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if n_processes > n_gpus:
            raise UserError(f"{n_processes} processes, but {n_gpus} GPU(s): one process for each")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    has_nccl = torch.distributed.is_nccl_available()  # not on Windows
    torch.distributed.init_process_group("nccl" if cuda and has_nccl else "gloo")
    return torch.distributed.get_rank()


def leave_processes():
    """Wait for the others; from here on each is by itself."""
    import torch

    if "RANK" in os.environ:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def ship(run, path):
    """Write a finished run's model in bfloat16, with the bound of what is stored.

    Returns (bits per byte, standard error).
    """
    import torch

    from mdlm.training import bits_per_byte, enough_passes, evaluate
    from saving import facts_of, save_checkpoint

    for p in run.model.parameters():
        p.data = p.data.bfloat16().float()
    corpus = run.corpus
    passes = enough_passes(corpus.val, run.config)
    nats = evaluate(run.model, corpus.val, run.config, passes=passes)
    bpb, error = (bits_per_byte(n, len(corpus.val), corpus.val_bytes) for n in nats)
    facts = facts_of(run) | dict(bpb=bpb, error=error)
    save_checkpoint(path, run.model, corpus.tokenizer, facts, torch.bfloat16)
    return bpb, error


def main(argv=None):
    """Train. Returns the exit code: 2 for a user's mistake, which gets one line."""
    print_anything()
    rank = int(os.environ.get("RANK", 0))
    try:
        config, arguments = parse_arguments(argv)
        if arguments.ship and Path(arguments.ship).suffix != ".safetensors":
            raise UserError(f"--ship {arguments.ship}: the name must end with .safetensors")
        if arguments.ship and config.causal and not arguments.ship.endswith("-twin.safetensors"):
            raise UserError(
                f"--ship {arguments.ship}: a causal model's must end with -twin.safetensors"
            )
        if arguments.ship and rank == 0:
            check_place(arguments.ship)
        from mdlm.corpus import prepare_corpus
        from mdlm.training import train

        join_processes()
        corpus = prepare_corpus(config)
        if rank == 0:
            print(
                f"{config.corpus}: {len(corpus.train):,} tokens to train on,",
                f"with the preset {arguments.preset}",
                flush=True,
            )
        run = train(config, corpus, arguments.folder, resume=not arguments.restart)
        leave_processes()
        if rank == 0:
            finish(run, arguments)
    except UserError as error:
        if rank == 0:
            print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # pressed twice, or before training began
        print("train.py: broken off; the last saved state stays as it is", file=sys.stderr)
        return 130
    except (RuntimeError, MemoryError) as error:
        from saving import memory_is_full

        if memory_is_full(error):
            print(f"train.py: the memory is full: try {advice(config)}", file=sys.stderr)
            return 1
        if "RANK" not in os.environ:
            raise
        line = " ".join(str(error).split())[:200]
        print(
            f"train.py: process {rank} failed, or lost the others ({line}); the last saved state "
            "stays as it is: run again to go on",
            file=sys.stderr,
        )
        return 1
    return 0


def advice(config):
    """What of the things that take less memory has not been done yet."""
    ways = []
    if not config.activation_checkpointing:
        ways.append("--activation-checkpointing, which goes on from what was saved")
    if config.accumulation < config.batch_size:
        parts = min(2 * config.accumulation, config.batch_size)
        ways.append(f"--accumulation {parts}, a run of its own with the batch in smaller parts")
    return ", or ".join(ways or ["a smaller --batch-size, --context or --d-model"])


def finish(run, arguments):
    """Say what came out, and ship it if asked to."""
    last, bound = run.history[-1], "" if run.config.causal else "at most "
    print(
        f"{run.path}: {run.step:,} steps in {run.seconds / 60:.1f} minutes, validation",
        f"{bound}{last['bpb']:.3f} ± {last['error']:.3f} bits per byte",
    )
    best = min(run.history, key=lambda row: row["bpb"])
    if last["bpb"] > best["bpb"] + 0.05:  # more than the looks at a part of the text may be off
        print(
            f"After {best['step']:,} steps it was {best['bpb']:.3f}: since then it has learned the "
            f"training text by heart. Try --steps {best['step']}, or more dropout."
        )
    if arguments.ship:
        bpb, error = ship(run, arguments.ship)
        print(f"{arguments.ship}: in bfloat16 {bpb:.3f} ± {error:.3f} bits per byte")


def leave(code):
    """End the program."""
    if "RANK" in os.environ:  # a thread of PyTorch's gloo may still run, and would abort us
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main())
