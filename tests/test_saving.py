"""Checkpoints come back whole, and only into the network that made them."""

import hashlib
import io
import json
import os
import random
from dataclasses import replace

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

import saving
from bpe_tokenizer import BPETokenizer
from conftest import TEXT, make_model, tiny
from files import UserError
from mdlm import model as network
from mdlm.model import DiffusionTransformer
from saving import load_checkpoint, newest_checkpoint, run_name, save_checkpoint
from settings import Config


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_brings_everything_back(dtype, corpus, tmp_path):
    model, path = make_model(time_conditioning=True, dropout=0.3), tmp_path / "m.safetensors"
    save_checkpoint(path, model.train(), corpus.tokenizer, {"steps": 3}, dtype)
    loaded, tokenizer, metadata = load_checkpoint(path, DiffusionTransformer, "cpu")
    assert not loaded.training and loaded.config == model.config and metadata == {"steps": 3}
    assert tokenizer.encode(TEXT) == corpus.tokenizer.encode(TEXT)
    z, t = torch.full((2, 16), model.mask_id), torch.tensor([0.2, 0.9])
    for p in model.parameters():  # what is stored is rounded
        p.data = p.data.to(dtype).float()
    assert torch.equal(loaded(z, t), model.eval()(z, t))
    assert saving.read_metadata(path) == (model.config, {"steps": 3})


EDITS = {  # same shapes, another network
    "activation": (F, "silu", F.gelu),
    "norm": (F, "rms_norm", lambda x, shape, scale=None, eps=None: F.layer_norm(x, shape, scale)),
    "rope": (network, "rotate", lambda x, cos, sin: x),
    "order": (network.Block, "forward", lambda self, x, *rest: x + self.feed_forward(x)),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("edit", EDITS)
def test_another_network_of_the_same_shapes_is_refused(edit, causal, corpus, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, make_model(causal=causal), corpus.tokenizer, {})
    load_checkpoint(path, DiffusionTransformer)
    monkeypatch.setattr(*EDITS[edit])
    with pytest.raises(UserError, match=r"^[^\n]*another network[^\n]*python run\.py export$"):
        load_checkpoint(path, DiffusionTransformer)


def forgeries(path):
    """Well-formed files that are no checkpoints of ours."""
    weights = safetensors.torch.load(path.read_bytes())
    with safetensors.safe_open(path, "pt") as file:
        header = dict(file.metadata())

    def write(weights=weights, **changed):  # anyone can compute a fingerprint
        new = {k: v for k, v in (header | changed).items() if k != "fingerprint"}
        new |= {"fingerprint": saving.fingerprint(weights, new)}
        return safetensors.torch.save(weights, new)

    yield safetensors.torch.save(weights, header | {"fingerprint": "0" * 64})
    yield from (write(version="1"), write(format="pt"), write({}))
    yield write({n: w.to(torch.int32) for n, w in weights.items()})
    yield write(dict([*weights.items()][1:]))
    yield write({**weights, "extra": torch.zeros(3)})
    yield write({n: w.t().contiguous() for n, w in weights.items()})
    config = json.loads(header["config"])
    for key in ("n_layers", "d_model", "n_heads", "vocab_size"):
        for value in (2**20, 10**12, -4, 0, "6", None, 1.5, [4]):
            yield write(config=json.dumps(config | {key: value}))
    for text in ("{", "[]", "[" * 100_000, '{"a": 1}', "null"):
        yield from (write(config=text), write(answers=text), write(tokenizer=text))
    merges = BPETokenizer.from_json(header["tokenizer"]).merges
    yield write(tokenizer=BPETokenizer(merges[:9]).to_json())
    yield write(tokenizer=BPETokenizer(merges, ("<|x|>",)).to_json())


def damages(whole):
    """Damaged versions of the bytes of a file."""
    chance, header = random.Random(0), 8 + int.from_bytes(whole[:8], "little")
    for cut in (0, 1, 7, 8, 9, header // 2, header - 1, header, len(whole) - 1):
        yield whole[:cut]
    for length in (0, 1, header, len(whole), 2**31, 2**40, 2**63 - 1, 2**64 - 1):
        yield length.to_bytes(8, "little") + whole[8:]
    yield from (whole + b"\0", b"\x80\x04c__builtin__\neval\n(S'1/0'\ntR.", b"In the beginning\n")
    for i in range(200):  # half of them in the header
        at, bit = chance.randrange(header if i % 2 else len(whole)), 1 << chance.randrange(8)
        yield whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]


def test_hundreds_of_damaged_checkpoints_get_one_line_each_and_no_memory(corpus, tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, make_model(n_layers=2), corpus.tokenizer, {})
    load_checkpoint(path, DiffusionTransformer)  # the undamaged one is good
    damaged = [*forgeries(path), *damages(path.read_bytes())]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, data in enumerate(damaged):
        path.write_bytes(data)
        with pytest.raises(UserError) as caught:
            load_checkpoint(path, DiffusionTransformer)
            pytest.fail(f"damage {number} of {len(damaged)} loads")
        said = str(caught.value)
        assert "\n" not in said and str(path) in said and len(said) < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before * 1.1  # whatever they claim
    with pytest.raises(UserError, match="no such checkpoint; train one with"):
        load_checkpoint(tmp_path / "none.safetensors", DiffusionTransformer)


def test_a_state_cannot_run_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    buffer, path = io.BytesIO(), tmp_path / "x.resume.pt"
    torch.save({"step": Bomb()}, buffer)
    path.write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())
    with pytest.raises(UserError, match="damaged"):
        saving.load_state(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("field", Config.__dataclass_fields__)
def test_a_runs_name_depends_on_all_that_decides_what_is_learned(field):
    config = tiny(loss="counts" if field == "block" else "time")
    value = getattr(config, field)
    names = dict(corpus="a.txt", optimizer="adamw", loss="counts", schedule="cosine")
    numbers = {
        bool: lambda: not value,
        int: lambda: 2 * value or 4,
        float: lambda: (value or 1) / 2,
    }
    other = names[field] if field in names else numbers[type(value)]()
    free = {"eval_every", "save_every", "compile", "activation_checkpointing"}
    same = run_name(replace(config, **{field: other}), "code") == run_name(config, "code")
    assert same == (field in free) and run_name(config, "code") != run_name(config, "other")


def test_the_newest_checkpoint_is_the_one_trained_last(tmp_path):
    for age, name in enumerate(["kjv", "b", "a", "c-twin", "d-twin"]):  # kjv: just pulled
        path = tmp_path / f"{name}.safetensors"
        path.touch()
        os.utime(path, (9 - age, 9 - age))
    assert newest_checkpoint(tmp_path).stem == "b"
    assert newest_checkpoint(tmp_path, twin=True).stem == "c-twin"
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").unlink()
    assert newest_checkpoint(tmp_path).stem == "kjv"
    for twin, message in ((False, "train_model.ipynb or train.py"), (True, "twin.ipynb")):
        with pytest.raises(UserError, match=f"^no .* in .*: train one with {message}"):
            newest_checkpoint(tmp_path / "none", twin)
