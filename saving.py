"""What is kept of a run: its name, checkpoints, and the state to resume from.

A checkpoint is one `.safetensors` file with all that sampling needs: averaged weights, settings,
tokenizer, the history of the run, and what the network answers to a fixed text with masks. It may
come from a stranger, so `load_checkpoint` believes nothing. Beside it lies what only training
needs: the last weights, their average, and the optimisers' state. No file can run code when it is
loaded, and each is written whole or not at all.
"""

import contextlib
import copy
import hashlib
import io
import json
import pickle
from dataclasses import asdict
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from bpe_tokenizer import BPETokenizer
from files import UserError, write_atomically
from hardware import pick_device
from settings import Config, kind

VERSION = "3"
DAMAGE = (  # what reading a damaged or foreign .safetensors file may raise
    safetensors.SafetensorError, OSError, LookupError, TypeError, ValueError, OverflowError,
    RecursionError, AttributeError,
)  # fmt: skip
SUDOKU = "sudoku"  # the included model of grids, which writes no text
# The included models: a `git pull` makes their files new, but nobody has just trained them
INCLUDED = ("kjv", "kjv-twin", "kjv-blocks")
NO_MATTER = ("eval_every", "save_every", "compile", "activation_checkpointing")
ANOTHER_NETWORK = (
    "made by another network than mdlm/ has now: undo the edit of the network, or train again; if "
    "that network stands in a notebook only, run: python run.py export"
)


def run_name(config, code):
    """Name of a run: its corpus, and a digest of its settings and its code (a str).

    So no run overwrites another, and edited code is a new run.
    """
    identity = {name: value for name, value in asdict(config).items() if name not in NO_MATTER}
    if not config.block:  # as before there was this setting: no run has to change its name
        del identity["block"]
    identity |= {"corpus": Path(config.corpus).as_posix(), "code": code}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"{Path(config.corpus).stem}-{digest[:6]}{kind(config)}"


@torch.no_grad()
def answers(model, dtype=torch.float32):
    """What a network says to a fixed text with masks: log-probabilities, in float64. A list.

    Tells networks apart whose weights have the same shapes. dtype: what the weights are rounded to.
    """
    model, config = copy.deepcopy(model).eval(), model.config
    for p in model.parameters():
        p.data = p.data.to(dtype)
    model.to("cpu", torch.float64)
    z = torch.arange(min(16, config.context))[None] * 7919 % config.vocab_size  # (1, L)
    z[:, ::2] = model.mask_id
    with torch.compiler.set_stance("force_eager"):
        log_p = model(z, torch.full((1,), 0.5, dtype=torch.float64))  # (1, L, V)
    return log_p[0, ::2, : model.mask_id : config.vocab_size // 8].flatten().tolist()


def fingerprint(weights, metadata):
    """SHA-256 of everything in a checkpoint: one flipped bit, and it is another one."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_checkpoint(path, model, tokenizer, metadata, dtype=torch.float32):
    """Write one file with all that sampling needs. `metadata`: what to know about the run.

    dtype: of the stored weights; bfloat16 takes half the room.
    """
    weights = {name: p.to("cpu", dtype).contiguous() for name, p in model.state_dict().items()}
    header = {
        "format": "mdlm",
        "version": VERSION,
        "config": json.dumps(asdict(model.config)),
        "tokenizer": tokenizer.to_json(),
        "metadata": json.dumps(metadata),
        "answers": json.dumps(answers(model, dtype)),
    }
    header["fingerprint"] = fingerprint(weights, header)
    write_atomically(path, safetensors.torch.save(weights, header))


@contextlib.contextmanager
def checkpoint(path):
    """Opens a checkpoint: gives (file, header, Config). Every mistake becomes a UserError."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            if (header.get("format"), header.get("version")) != ("mdlm", VERSION):
                raise UserError(f"not a checkpoint of this project's version {VERSION}: train one")
            yield file, header, Config(**json.loads(header["config"]))
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; train one with: python train.py") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except DAMAGE as error:
        line = " ".join(str(error).split())
        raise UserError(f"{path}: not a checkpoint, or a damaged one ({line})") from None


def load_checkpoint(path, network, device=None):
    """Read a checkpoint into a network, a class: (model in eval mode, tokenizer, metadata).

    Raises UserError if it is missing, damaged, of another version, or of another network.
    """
    with checkpoint(path) as (file, header, config):
        if config.block and not getattr(network, "in_blocks", False):
            raise UserError(
                f"it writes in blocks of {config.block} tokens: load it with BlockDenoiser, as "
                "blocks.ipynb does"
            )
        if getattr(network, "in_blocks", False) and not config.block:
            raise UserError("not trained for blocks: train one with --block 16, or blocks.ipynb")
        names = list(file.keys())
        if config.n_layers > len(names):  # a forged number must not make us build a giant
            raise UserError("damaged (it has fewer weights than its settings say)")
        with torch.device("meta"):  # shapes only, no memory
            expected = {name: list(p.shape) for name, p in network(config).state_dict().items()}
        if {name: file.get_slice(name).get_shape() for name in names} != expected:
            raise UserError(ANOTHER_NETWORK)
        weights = {name: file.get_tensor(name) for name in names}
        if header.pop("fingerprint", None) != fingerprint(weights, header):
            raise UserError("damaged (its fingerprint is not that of its content)")
        tokenizer = BPETokenizer.from_json(header["tokenizer"])
        if not tokenizer.vocab_size == tokenizer.mask_id + 1 == config.vocab_size:
            raise UserError("damaged (its tokenizer is not its network's)")
        model = network(config)
        model.load_state_dict({name: weight.float() for name, weight in weights.items()})
        said = torch.tensor(answers(model), dtype=torch.float64)
        expected = torch.tensor(json.loads(header["answers"]), dtype=torch.float64)
        if said.shape != expected.shape or not torch.allclose(said, expected, rtol=0, atol=1e-4):
            raise UserError(ANOTHER_NETWORK)
        metadata = json.loads(header["metadata"])
    return model.to(device or pick_device()).eval(), tokenizer, metadata


def read_metadata(path):
    """(Config, metadata) of a checkpoint, without its weights. Raises UserError if it is none."""
    with checkpoint(path) as (_, header, config):
        return config, json.loads(header["metadata"])


def newest_checkpoint(folder="checkpoints", twin=False, blocks=False):
    """Path of the model written last, of diffusion, a twin or one that writes in blocks; an
    included one only if alone. Raises UserError if there is none.
    """
    ends = {"-twin": twin, "-blocks": blocks}  # as `kind` names them
    paths = [p for p in Path(folder).glob("*.safetensors") if p.stem != SUDOKU]
    paths = [p for p in paths if all(p.stem.endswith(end) == its for end, its in ends.items())]
    paths = [p for p in paths if p.stem not in INCLUDED] or paths
    if not paths:
        if blocks:
            raise UserError(
                f"no model of blocks in {folder}: train one with `python run.py blocks`"
            )
        if twin:
            raise UserError(f"no autoregressive twin in {folder}: train one with twin.ipynb")
        raise UserError(f"no checkpoint in {folder}: train one with train_model.ipynb or train.py")
    return max(paths, key=lambda path: path.stat().st_mtime)


# ------------------------------------------------------------------------------------------------
# The state to resume from


def save_state(path, state):
    """Write a dict of tensors and numbers, with a digest of itself at the end."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    write_atomically(path, data + hashlib.sha256(data).digest())


def load_state(path):
    """Read what `save_state` wrote. Raises UserError if it is damaged."""
    try:
        data = path.read_bytes()
        if hashlib.sha256(data[:-32]).digest() != data[-32:]:
            raise ValueError("its digest is not that of its content")
        # into the CPU's memory: a GPU that is full must not pass for a damaged file
        return torch.load(io.BytesIO(data[:-32]), map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: damaged ({line}): delete it, or start again "
            "(resume = False, or train.py --restart)"
        ) from None
