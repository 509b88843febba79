"""What a run saves, and how it is read back: checkpoints, states to resume from, and Ctrl-C.

A checkpoint is one `.safetensors` file with all that sampling needs: averaged weights, settings,
tokenizer, a history of the run, and a fingerprint of all of these. It may come from a stranger, so
`load_checkpoint` believes nothing. Beside it lies what only training needs: the last weights, their
average and the optimisers' state. The last two such states are kept, and each ends with a digest of
itself. No file can run code when it is loaded, and each is written whole or not at all.

The mathematics is in the notebooks; `train` in train_model.ipynb calls this.
"""

import contextlib
import hashlib
import io
import json
import os
import pickle
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from tqdm import tqdm

from bpe_tokenizer import (
    BPETokenizer,
    UserError,
    check_place,
    remove_half_written,
    rename,
    write_atomically,
)
from mdlm.config import Config, pick_device
from mdlm.model import DiffusionTransformer

CHECKPOINT_VERSION = "2"
DAMAGE = (  # what reading a damaged or foreign .safetensors file may raise
    safetensors.SafetensorError,
    OSError,
    LookupError,
    TypeError,
    ValueError,
    OverflowError,
    RecursionError,
)
INCLUDED = ("kjv", "kjv-twin")  # a `git pull` makes them new, but nobody has just trained them
AGAIN = "delete it, or start again (resume = False, or train.py --restart)"


# ------------------------------------------------------------------------------------------------
# Checkpoints


def run_name(config):
    """Name of a run: its corpus and a digest of its settings, so that no run overwrites another."""
    no_matter = ("eval_every", "save_every", "compile", "activation_checkpointing")
    settings = {k: v for k, v in asdict(config).items() if k not in no_matter}
    settings["corpus"] = Path(config.corpus).as_posix()  # ./novel.txt is novel.txt
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return f"{Path(config.corpus).stem}-{digest[:6]}" + ("-twin" if config.causal else "")


def fingerprint(weights, metadata):
    """SHA-256 of everything in a checkpoint: one flipped bit, and it is another one."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_checkpoint(path, model, tokenizer, facts, dtype=torch.float32):
    """Write one file with all that sampling needs. `facts`: what to know about the run.

    dtype: of the stored weights; bfloat16 takes half the room.
    """
    weights = {name: p.to("cpu", dtype).contiguous() for name, p in model.state_dict().items()}
    metadata = {
        "format": "mdlm",
        "version": CHECKPOINT_VERSION,
        "config": json.dumps(asdict(model.config)),
        "tokenizer": tokenizer.to_json(),
        "facts": json.dumps(facts),
    }
    metadata["fingerprint"] = fingerprint(weights, metadata)
    write_atomically(path, safetensors.torch.save(weights, metadata))


def check_parts(file):
    """Check an open checkpoint without reading its weights. Returns (config, tokenizer, facts)."""
    metadata, names = file.metadata() or {}, list(file.keys())
    if metadata.get("format") != "mdlm" or metadata.get("version") != CHECKPOINT_VERSION:
        raise UserError(
            f"not a checkpoint of this project's version {CHECKPOINT_VERSION} "
            f"(it says {metadata.get('format')} {metadata.get('version')}): train one"
        )
    config = Config(**json.loads(metadata["config"]))
    tokenizer = BPETokenizer.from_json(metadata["tokenizer"])
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"damaged (its tokenizer has {tokenizer.vocab_size} tokens, "
            f"its model {config.vocab_size})"
        )
    if tokenizer.mask_id != config.vocab_size - 1:
        raise UserError("damaged (its last token is not the mask)")
    if config.n_layers > len(names):  # a forged number must not make us build a giant
        raise UserError("damaged (it has fewer weights than its settings say)")
    with torch.device("meta"):  # shapes only, no memory
        expected = DiffusionTransformer(config).state_dict()
    found = {name: file.get_slice(name) for name in names}
    if {name: part.get_shape() for name, part in found.items()} != {
        name: list(p.shape) for name, p in expected.items()
    } or not {part.get_dtype() for part in found.values()} <= {"F32", "BF16"}:
        raise UserError(
            "damaged (its weights do not fit its settings), or the network's code has been changed"
        )
    return config, tokenizer, json.loads(metadata["facts"])


def load_checkpoint(path, device=None):
    """Read a checkpoint: (model in eval mode, tokenizer, facts).

    Raises UserError if it is missing, damaged, of another version, or does not fit together.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            config, tokenizer, facts = check_parts(file)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata())
        if metadata.pop("fingerprint", None) != fingerprint(weights, metadata):
            raise UserError("damaged (its fingerprint is not that of its content)")
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; train one with: python train.py") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except DAMAGE as error:
        line = " ".join(str(error).split())
        raise UserError(f"{path}: not a checkpoint, or a damaged one ({line})") from None
    model = DiffusionTransformer(config)
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return model.to(device or pick_device()).eval(), tokenizer, facts


def newest_checkpoint(folder="checkpoints", twin=False):
    """Path of the diffusion model, or twin, written last; the included one only if alone.

    Raises UserError if there is none.
    """
    paths = [p for p in Path(folder).glob("*.safetensors") if p.stem.endswith("-twin") == twin]
    paths = [p for p in paths if p.stem not in INCLUDED] or paths
    if not paths:
        if twin:
            raise UserError(f"no autoregressive twin in {folder}: train one with twin.ipynb")
        raise UserError(f"no checkpoint in {folder}: train one with train_model.ipynb or train.py")
    return max(paths, key=lambda path: path.stat().st_mtime)


# ------------------------------------------------------------------------------------------------
# States to go on from


def facts_of(run):
    """What a checkpoint says about its run."""
    return dict(
        steps=run.step,
        seconds=run.seconds,
        history=run.history,
        device=str(run.device),
        parameters=sum(p.numel() for p in run.model.parameters()),
    )


def diverged(run):
    """What to say when numbers have grown beyond all bounds."""
    kept = f"; what was saved before stays in {run.path}" if run.path.exists() else ""
    return UserError(
        f"the loss is not a number any more at step {run.step}: try a smaller muon_lr and "
        f"adamw_lr{kept}"
    )


def make_ready(run):
    """Raise UserError at once, and not after the first 250 steps, if nothing can be saved.

    Removes what a run that was killed has left half written.
    """
    check_place(run.older_path)
    remove_half_written(run.path.parent, lambda name: name.startswith(f"{run.path.stem}."))


def save_run(run):
    """Write the checkpoint, and what training needs to go on; each file whole or not at all.

    Raises UserError, and keeps the files that are there, if a weight is no number.
    """
    if not all(p.isfinite().all() for p in run.model.parameters()):
        raise diverged(run)
    if run.replaces:  # the states of the run before it must not be taken for its own
        try:
            for path in (run.resume_path, run.older_path):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be removed ({error.strerror})") from None
        run.replaces = False
    with run.ema.applied():
        save_checkpoint(run.path, run.model, run.corpus.tokenizer, facts_of(run))
    state = dict(
        model=run.model.state_dict(),
        average=run.ema.average,
        n_updates=run.ema.n_updates,
        optimizers=[optimizer.state_dict() for optimizer in run.optimizers],
        scaler=run.scaler.state_dict(),
        text_digest=run.text_digest,
        **{name: getattr(run, name) for name in ("step", "seconds", "losses", "history")},
    )
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    try:
        if run.resume_path.exists() and not run.fell_back:  # a damaged file must not take its place
            rename(run.resume_path, run.older_path)
    except OSError as error:
        raise UserError(f"{run.resume_path}: cannot be renamed ({error.strerror})") from None
    write_atomically(run.resume_path, data + hashlib.sha256(data).digest())
    run.fell_back = False


def memory_is_full(error):
    """Whether an error says that a GPU's or the machine's memory is full."""
    signs = ("out of memory", "not enough memory", "allocate memory")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


class Damaged(UserError):
    """A file that is not as it was written."""


def read_state(path):
    """A state that `save_run` wrote, checked. Raises Damaged, or UserError if it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if hashlib.sha256(data[:-32]).digest() != data[-32:]:
        raise Damaged(f"{path}: damaged (its digest is not that of its content); {AGAIN}")
    try:  # into the CPU's memory: a GPU that is full must not pass for a damaged file
        return torch.load(io.BytesIO(data[:-32]), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        raise Damaged(f"{path}: no state of a training ({line}); {AGAIN}") from None


def restore_run(run):
    """Go on from the saved state, if any. Raises UserError if it is damaged or not of this run."""
    paths = [path for path in (run.resume_path, run.older_path) if path.exists()]
    if not paths:
        return
    try:
        state = read_state(paths[0])
    except Damaged as error:
        if len(paths) == 1:
            raise
        tqdm.write(f"{error}; going on from the state before it", file=sys.stderr)
        state = read_state(paths[1])
        run.fell_back = True
    if state["text_digest"] != run.text_digest:
        raise UserError(f"{paths[0]}: that run was on another text; {AGAIN}")
    try:
        run.model.load_state_dict(state["model"])
        for average, saved in zip(run.ema.average, state["average"], strict=True):
            average.copy_(saved)
        for optimizer, saved in zip(run.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    except (RuntimeError, ValueError, KeyError) as error:
        if memory_is_full(error):  # a GPU that is full must not pass for another network
            raise
        raise UserError(
            f"{paths[0]}: that run had another network: has the code been changed? {AGAIN}"
        ) from None
    run.ema.n_updates = state["n_updates"]
    if state["scaler"]:  # empty if it was saved where no loss is scaled
        run.scaler.load_state_dict(state["scaler"])
    for name in ("step", "seconds", "losses", "history"):
        setattr(run, name, state[name])
    if int(os.environ.get("RANK", 0)) == 0:
        tqdm.write(  # whoever has changed the code must not take the old run for the new one's
            f"from the saved state of step {run.step:,} of {run.config.steps:,} "
            "(to begin anew: resume = False, or train.py --restart)",
            file=sys.stderr,
        )


# ------------------------------------------------------------------------------------------------
# Ctrl-C


@contextlib.contextmanager
def stop_button():
    """Gives a function that says whether Ctrl-C was pressed. A second press interrupts at once."""
    asked = []
    if threading.current_thread() is not threading.main_thread():  # only that one gets signals
        yield lambda: False
        return
    usual = signal.getsignal(signal.SIGINT)

    def ask(*_):
        asked.append(True)
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    except RuntimeError:  # Ctrl-C reaches a compiler that is at work, too, and ends it
        if asked:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, usual)
