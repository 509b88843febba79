"""What strangers, full disks and extreme numbers do: one clear line, and nothing lost."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

os.environ["SDL_VIDEODRIVER"] = "dummy"

import numpy as np
import psutil
import pytest
import safetensors.torch
import torch

import bpe_tokenizer
import mdlm.training
import sample_visual
import saving
import train as command_line
from bpe_tokenizer import MASK, BPETokenizer, UserError, check_place, write_atomically
from mdlm.config import Config
from mdlm.corpus import corpus_of, prepare_corpus, tokenize
from mdlm.diffusion import diffusion_loss, nelbo
from mdlm.model import DiffusionTransformer
from mdlm.sampling import adjust, draw, sample
from mdlm.training import Run, train
from prepare import peak_memory
from saving import (
    fingerprint,
    load_checkpoint,
    read_state,
    restore_run,
    save_checkpoint,
    save_run,
)
from visual.controls import State
from visual.page import lay_out
from visual.recording import Settings, load_record, record_bytes, record_run

ROOT = Path(__file__).parent.parent
TEXT = "".join(f"And the {n} sons of the {n * n} were {n * n % 97}.\n" for n in range(900))
TINY = dict(
    n_layers=2, d_model=32, n_heads=2, context=32, vocab_size=300, batch_size=6, warmup=2,
    steps=12, eval_every=12, eval_windows=8, save_every=4, compile=False,
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus():
    return tokenize(TEXT[:30_000], TEXT[30_000:], BPETokenizer.train(TEXT[:30_000], 300))


@pytest.fixture(scope="module")
def model(corpus):
    torch.manual_seed(0)
    return DiffusionTransformer(Config(**TINY)).eval()


def most_memory():
    """Most memory that this process has used, in bytes; on Windows, what it uses now."""
    peak = peak_memory()  # of this process, of a child
    return peak[0] if peak else psutil.Process().memory_info().rss


def one_line(error, path):
    return "\n" not in str(error) and str(path) in str(error) and len(str(error)) < 500


# -- files


def mutations(whole, n, seed):
    """n damaged versions of the bytes of a file: (what was done, bytes)."""
    chance, made = random.Random(seed), []
    header = int.from_bytes(whole[:8], "little") % len(whole)  # in JSON: anything
    boundaries = [0, 1, 7, 8, 9, 8 + header // 2, 8 + header - 1, 8 + header, len(whole) - 1]
    for cut in boundaries:
        made.append((f"cut at {cut}", whole[:cut]))
    made.append(("longer", whole + b"\0"))
    for length in (0, 1, header - 1, header + 1, len(whole), 2**31, 2**40, 2**63 - 1, 2**64 - 1):
        made.append((f"header says {length}", length.to_bytes(8, "little") + whole[8:]))
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    made.append(("a zip bomb", zipped.getvalue()))
    made.append(("a pickle", b"\x80\x04c__builtin__\neval\n(S'1/0'\ntR."))
    made.append(("a text", b"In the beginning\n" * 99))
    while len(made) < n:
        at, bit = chance.randrange(len(whole)), 1 << chance.randrange(8)
        if len(made) % 2:  # half of them in the header
            at = chance.randrange(min(8 + header, len(whole)))
        made.append(
            (
                f"bit {bit} of byte {at}",
                whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :],
            )
        )
    return made


def forgeries(path, model, tokenizer):
    """Well-formed files that are no checkpoints of ours: (what was done, bytes)."""
    save_checkpoint(path, model, tokenizer, {})
    weights = safetensors.torch.load(path.read_bytes())
    with safetensors.safe_open(path, "pt") as file:
        metadata = dict(file.metadata())

    def write(weights=weights, sign=True, **changed):
        facts = {**metadata, **changed}
        facts.pop("fingerprint")
        facts["fingerprint"] = fingerprint(weights, facts) if sign else "0" * 64
        return safetensors.torch.save(weights, facts)

    def config(**changed):
        return json.dumps({**json.loads(metadata["config"]), **changed})

    names = sorted(weights)
    q = [name for name in names if name.endswith("qkv.weight")]
    swapped = {**weights, q[0]: weights[q[1]], q[1]: weights[q[0]]}
    yield "two layers swapped", safetensors.torch.save(swapped, metadata)
    yield "no fingerprint", write(sign=False)
    yield "another version", write(version="1")
    yield "another format", write(format="pt")
    for dtype in (torch.float64, torch.float16, torch.int32, torch.uint8):
        yield f"{dtype}", write({name: w.to(dtype) for name, w in weights.items()})
    yield "one weight missing", write({name: weights[name] for name in names[1:]})
    yield "one too many", write({**weights, "extra": torch.zeros(3)})
    yield "another name", write({("x" if n == names[0] else n): weights[n] for n in names})
    yield "a shape turned", write({n: w.t().contiguous() for n, w in weights.items()})
    yield "no weights", write({})
    for key in ("n_layers", "d_model", "n_heads", "context", "vocab_size"):
        for value in (1, 257, 2**20, 10**8, 10**12, -4, 0, "6", None, 1.5, [4]):
            # fewer heads or a shorter context would make another model, and no damaged one
            if (key, value) not in [("n_heads", 1), ("context", 1), ("context", 257)]:
                yield f"{key} = {value}", write(config=config(**{key: value}))
    yield "an unknown setting", write(config=config(surprise=1))
    yield "a deep nest", write(config="[" * 100_000)
    yield "a huge number", write(config=config()[:-1] + ', "seed": ' + "9" * 5000 + "}")
    yield "a number without bounds", write(config=config()[:-1] + f', "ema": 1{"0" * 400}' + "}")
    yield "not JSON", write(facts="{")
    other = BPETokenizer.train("zebra crossing " * 99, 270)
    yield "another tokenizer", write(tokenizer=other.to_json())
    odd = BPETokenizer(tokenizer.merges, ("<|other|>",))
    yield "a tokenizer without a mask", write(tokenizer=odd.to_json())
    odd = BPETokenizer(tokenizer.merges[:-1], (MASK, "<|other|>"))
    yield "a mask that is not the last token", write(tokenizer=odd.to_json())
    yield "a damaged tokenizer", write(tokenizer=metadata["tokenizer"].replace("[", "{", 1))


def test_hundreds_of_damaged_checkpoints(model, corpus, tmp_path):
    path = tmp_path / "model.safetensors"
    damaged = list(forgeries(path, model, corpus.tokenizer))
    damaged += mutations(path.read_bytes(), 300 - len(damaged), seed=0)
    assert len(damaged) >= 300
    load_checkpoint(path, CPU)  # the undamaged one is good
    before = most_memory()
    for what, data in damaged:
        path.write_bytes(data)
        with pytest.raises(UserError) as caught:
            load_checkpoint(path, CPU)
            pytest.fail(what)
        assert one_line(caught.value, path), (what, caught.value)
    grown = most_memory() - before
    assert grown < 30e6, "a forged size made us take memory"
    for folder in (tmp_path, tmp_path / "none.safetensors"):
        with pytest.raises(UserError) as caught:
            load_checkpoint(folder)
        assert one_line(caught.value, folder)


def test_bfloat16_checkpoints_come_back(model, corpus, tmp_path):
    path = tmp_path / "half.safetensors"
    save_checkpoint(path, model, corpus.tokenizer, {}, torch.bfloat16)
    loaded, _, _ = load_checkpoint(path, CPU)
    for p, q in zip(model.parameters(), loaded.parameters(), strict=True):
        assert q.dtype == torch.float32 and torch.equal(p.bfloat16().float(), q)


def test_damaged_tokenizers_and_recordings(model, corpus, tmp_path):
    asked = Settings(steps=4, length=8)
    record = record_run(model, corpus.tokenizer, asked)
    whole = record_bytes(record)
    path = tmp_path / "run.safetensors"
    arrays = safetensors.torch.load(whole)
    nested = {"format": "mdlm-record", "record": "[" * 100_000}
    nest = ("a deep nest", safetensors.torch.save(arrays, nested))
    for what, data in [nest, *mutations(whole, 150, seed=1)]:
        path.write_bytes(data)
        try:
            again = load_record(path)
        except UserError as error:
            assert one_line(error, path), what
        else:  # a bit that only makes another letter or number of it, within bounds
            lay_out(again, State(at=2), (400, 300), Ruler())
    whole, path = corpus.tokenizer.to_json().encode(), tmp_path / "tokenizer.json"
    for what, data in mutations(whole, 150, seed=2):
        path.write_bytes(data)
        try:
            tokenizer = BPETokenizer.load(path)
        except UserError as error:
            assert one_line(error, path), what
        else:
            assert tokenizer.decode(tokenizer.encode(TEXT[:999])) == TEXT[:999]


class Ruler:
    """Fonts without pygame."""

    def width(self, text, size):
        return 0.6 * size * len(text)

    def height(self, size):
        return size


def test_a_damaged_state_falls_back_to_the_one_before(corpus, tmp_path, capsys, monkeypatch):
    config = Config(**TINY)
    expected = train(config, corpus, tmp_path / "whole", CPU)
    usual, steps = mdlm.training.training_step, []

    def step(*arguments):
        steps.append(arguments[-1])
        if steps == list(range(10)):  # there are states of steps 4 and 8
            raise KeyboardInterrupt
        return usual(*arguments)

    monkeypatch.setattr(mdlm.training, "training_step", step)
    with pytest.raises(KeyboardInterrupt):
        train(config, corpus, tmp_path, CPU)
    run = Run(config, corpus, tmp_path, CPU)
    steps.clear()
    for what, data in mutations(run.resume_path.read_bytes(), 40, seed=3):
        run.resume_path.write_bytes(data)
        with pytest.raises(UserError) as caught:
            read_state(run.resume_path)
        assert one_line(caught.value, run.resume_path), what
    again = train(config, corpus, tmp_path, CPU)
    assert "going on from the state before it" in capsys.readouterr().err
    assert again.losses == expected.losses and steps == list(range(4, 12))
    run.resume_path.write_bytes(b"")
    run.older_path.write_bytes(b"")
    with pytest.raises(UserError, match="damaged"):
        train(config, corpus, tmp_path, CPU)
    assert train(config, corpus, tmp_path, CPU, resume=False).losses == expected.losses


def test_a_run_started_again_never_goes_on_from_the_one_it_replaces(corpus, tmp_path, monkeypatch):
    config = Config(**TINY)
    finished = train(config, corpus, tmp_path, CPU)
    usual = saving.write_atomically

    def full(path, data):
        if path.name.endswith(".resume.pt"):
            raise UserError(f"{path}: cannot be written (the disk is full)")
        usual(path, data)

    monkeypatch.setattr(saving, "write_atomically", full)
    with pytest.raises(UserError, match="full"):
        train(config, corpus, tmp_path, CPU, resume=False)
    monkeypatch.setattr(saving, "write_atomically", usual)
    again = train(config, corpus, tmp_path, CPU)
    saved, _, facts = load_checkpoint(again.path, "cpu")
    assert all(map(torch.equal, saved.parameters(), finished.model.parameters()))
    assert facts["steps"] == config.steps and again.losses == finished.losses


def test_a_run_does_not_go_on_with_another_text(corpus, tmp_path):
    config = Config(**TINY)
    train(config, corpus, tmp_path, CPU)
    for part in ("train", "val"):
        changed = getattr(corpus, part).copy()
        changed[0] ^= 1
        with pytest.raises(UserError, match="another text"):
            train(config, dataclasses.replace(corpus, **{part: changed}), tmp_path, CPU)


@contextlib.contextmanager
def largest_file(n_bytes):
    """The kernel refuses to write more into a file, as on a full disk."""
    resource = pytest.importorskip("resource", reason="Windows has no such limits")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("n_times", [2, 1000])
def test_a_file_that_a_scanner_reads_is_tried_again(n_times, tmp_path, monkeypatch):
    """On Windows nothing can be renamed while another program has it open."""
    tried, replace, path = [], Path.replace, tmp_path / "file"

    def held(self, new):
        tried.append(self)
        if len(tried) <= n_times:
            raise PermissionError(13, "Access is denied")
        return replace(self, new)

    monkeypatch.setattr(Path, "replace", held)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    if n_times == 2:
        write_atomically(path, b"new")
        assert path.read_bytes() == b"new"
    else:
        with pytest.raises(UserError, match="cannot be written"):
            write_atomically(path, b"new")
    assert [other for other in tmp_path.iterdir() if other != path] == []


def test_a_full_disk_leaves_what_was_there(corpus, tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    run = Run(Config(**TINY), corpus, tmp_path, CPU)
    run.step = 3
    save_run(run)
    checkpoint, state = run.path.read_bytes(), run.resume_path.read_bytes()
    run.step = 5
    with largest_file(1000):
        with pytest.raises(UserError, match="cannot be written"):
            write_atomically(path, bytes(2000))
        with pytest.raises(UserError, match="cannot be written"):
            save_run(run)
    assert path.read_bytes() == b"old"
    assert run.path.read_bytes() == checkpoint and run.resume_path.read_bytes() == state
    with (
        largest_file(len(checkpoint) + 5000),  # the checkpoint fits, the state does not
        pytest.raises(UserError, match=r"resume\.pt: cannot be written"),
    ):
        save_run(run)
    assert not list(tmp_path.glob("*.tmp"))
    again = Run(Config(**TINY), corpus, tmp_path, CPU)
    restore_run(again)
    assert again.step == 3 and run.older_path.read_bytes() == state
    run.resume_path.write_bytes(b"damaged")  # and a disk that is full again, after falling back
    restore_run(again)
    with (
        largest_file(len(checkpoint) + 5000),
        pytest.raises(UserError, match=r"resume\.pt: cannot be written"),
    ):
        save_run(again)
    assert run.older_path.read_bytes() == state
    save_run(again)
    again.step = 4
    save_run(again)
    assert read_state(run.resume_path)["step"] == 4 and read_state(run.older_path)["step"] == 3


def test_what_cannot_be_written_in_the_end_is_said_at_once(corpus, tmp_path, capsys, monkeypatch):
    def never(*_):
        raise AssertionError("it has begun")

    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(mdlm.training, "training_step", never)
    with pytest.raises(UserError, match="cannot be written"):
        train(Config(**TINY), corpus, tmp_path / "file", CPU)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items() if value]
    (tmp_path / "text.txt").write_text(TEXT)
    ship = tmp_path / "file" / "model.safetensors"
    command = ["--data", str(tmp_path / "text.txt"), "--folder", str(tmp_path), *options]
    assert command_line.main([*command, "--no-compile", "--ship", str(ship)]) == 2
    assert one_line(capsys.readouterr().err.strip(), ship)


def test_an_unreadable_state_is_not_called_damaged(corpus, tmp_path):
    run = Run(Config(**TINY), corpus, tmp_path, CPU)
    save_run(run)
    save_run(run)
    run.resume_path.unlink()
    run.resume_path.mkdir()
    with pytest.raises(UserError, match="cannot be read"):  # and it does not go on from the other
        restore_run(run)


def test_a_loss_that_is_no_number_stops_the_run(corpus, tmp_path, monkeypatch):
    usual = mdlm.training.loss_in_nats

    def explodes(model, x, k, noise):
        nats = usual(model, x, k, noise)
        return nats * torch.nan if len(list(tmp_path.glob("*.pt"))) == 2 else nats

    monkeypatch.setattr(mdlm.training, "loss_in_nats", explodes)
    with pytest.raises(UserError, match=r"not a number any more at step 12: .*saved before"):
        train(Config(**TINY), corpus, tmp_path, CPU)
    run = Run(Config(**TINY), corpus, tmp_path, CPU)
    restore_run(run)
    assert run.step == 8 and np.isfinite(run.losses).all()
    model, _, _ = load_checkpoint(run.path, CPU)
    assert all(p.isfinite().all() for p in model.parameters())


def test_weights_that_are_no_numbers_are_not_saved(corpus, tmp_path):
    run = Run(Config(**TINY), corpus, tmp_path, CPU)
    save_run(run)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    run.model.embedding.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match="not a number any more"):
        save_run(run)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


FORGED = {  # what a recording cannot hold
    "a negative probability": lambda r: {"probability": np.full_like(r.probability, -0.5)},
    "no number": lambda r: {"probability": np.full_like(r.probability, np.nan)},
    "a negative time": lambda r: {"seconds": -1},
    "an endless time": lambda r: {"seconds": 10**400},
    "an unknown sampler": lambda r: {"settings": Settings(steps=4, length=8, sampler="x")},
    "no steps": lambda r: {"settings": Settings(steps=0, length=8)},
    "an infinite token": lambda r: {"settings": Settings(length=8, kept=((np.inf, 1),))},
    "infinitely many calls": lambda r: {"calls": np.append(r.calls[:-1], np.inf)},
    "beliefs without candidates": lambda r: {
        "belief_step": np.zeros(1, np.int64),
        "belief_token": np.zeros((1, 8, 0), np.int64),
        "belief_probability": np.zeros((1, 8, 0)),
    },
}


@pytest.mark.parametrize("forgery", FORGED)
def test_recordings_hold_what_a_run_could_have_been(forgery, model, corpus, tmp_path):
    record = record_run(model, corpus.tokenizer, Settings(steps=4, length=8))
    changes = FORGED[forgery](record)
    path = tmp_path / "run.safetensors"
    path.write_bytes(record_bytes(dataclasses.replace(record, **changes)))
    with pytest.raises(UserError) as caught:
        load_record(path)
    assert one_line(caught.value, path)


def test_a_forged_tokenizer_cannot_fill_the_memory(corpus):
    data = json.loads(corpus.tokenizer.to_json())
    data["merges"] = [[97, 97, "aa"]] + [[256 + i, 256 + i, "a" * 2 ** (i + 2)] for i in range(8)]
    with pytest.raises(UserError, match="longer than any piece"):
        BPETokenizer.from_json(json.dumps(data))


def test_only_plain_files_are_replaced(tmp_path):
    """And links stay links."""
    target, link, folder = (tmp_path / name for name in ("target", "link", "folder"))
    target.write_bytes(b"old")
    try:
        link.symlink_to(target)
    except OSError:
        pytest.skip("no links for this user")  # on Windows
    write_atomically(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"
    folder.mkdir()
    places = [folder]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        places.append(tmp_path / "pipe")
    for place in places:
        for write in (check_place, lambda path: write_atomically(path, b"new")):
            with pytest.raises(
                UserError,
                match=f"^{re.escape(str(place))}: cannot be written .it is not a plain file.$",
            ):
                write(place)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["target", "link", *(place.name for place in places)]
    )


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PYTHONIOENCODING": "cp1252"}, b"?"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "\u5c0f".encode()),
    ],
    ids=["asked for", "a pipe gets all of it"],
)
def test_a_character_that_the_console_lacks_is_no_error(variables, expected):
    code = r"import train; train.print_anything(); print('\u5c0f novel')"
    usual = {k: v for k, v in os.environ.items() if k != "PYTHONIOENCODING"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**usual, **variables}, capture_output=True
    )
    assert done.returncode == 0 and done.stdout.split() == [expected, b"novel"]


# -- input


TEXTS = {  # name: (content, a part of the answer, or None where it simply works)
    "empty": (b"", "no text"),
    "blank": (b" \n\n ", "no text"),
    "one word": (b"word", "too short"),
    "latin-1": ("l\xe0 " .encode("latin-1") * 99, "not UTF-8 at byte"),
    "utf-16": (TEXT.encode("utf-16"), "not UTF-8 at byte"),
    "binary": (bytes(range(256)) * 99, "not UTF-8 at byte"),
    "crlf": (TEXT.replace("\n", "\r\n").encode(), None),
    "byte order mark": (TEXT.encode("utf-8-sig"), None),
    "NUL bytes": (TEXT.replace(".", "\0").encode(), None),
    "one character": (b"a" * 200_000, None),
    "one line": (TEXT.replace("\n", " ").encode(), None),
    "no spaces": (TEXT.replace(" ", "").replace("\n", "").encode(), None),
    "emoji": (("\U0001f642 \u4f60\u597d " * 3000).encode(), None),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_any_text_trains_or_says_why_not(name, tmp_path, capsys):
    content, message = TEXTS[name]
    (tmp_path / "text.txt").write_bytes(content)
    options = {**TINY, "steps": 2, "save_every": 2}
    arguments = [f"--{k.replace('_', '-')}={v}" for k, v in options.items() if k != "compile"]
    arguments += ["--no-compile", "--data", str(tmp_path / "text.txt")]
    code = command_line.main(["--preset", "cpu", *arguments, "--folder", str(tmp_path / "new")])
    error = capsys.readouterr().err
    if message is None:
        assert code == 0 and list((tmp_path / "new").glob("*.safetensors"))
    else:
        assert code == 2 and message in error and error.count("\n") == 1
        assert not (tmp_path / "new").exists()


BAD_SETTINGS = [
    (field, value)
    for field, value in [
        *((name, v) for name in ("vocab_size", "context", "n_layers", "d_model", "n_heads",
                                 "steps", "batch_size", "accumulation", "eval_every",
                                 "eval_windows", "save_every")
          for v in (0, -1, 1.5, "8", None, 10**12, True, [3])),
        *((name, v) for name in ("muon_lr", "adamw_lr", "clip")
          for v in (0.0, -0.1, float("nan"), float("inf"), "0.1", None)),
        *((name, v) for name in ("weight_decay", "dropout", "ema")
          for v in (-0.1, float("nan"), float("inf"), "0.1", None)),
        ("ema", 1.0), ("dropout", 1.0), ("warmup", -1), ("seed", -1), ("causal", 1),
        ("causal", "yes"), ("corpus", None), ("corpus", 7), ("compile", None),
    ]
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD_SETTINGS)
def test_bad_settings_get_one_line(field, value):
    with pytest.raises(UserError) as caught:
        Config(**{**TINY, field: value})
    assert field in str(caught.value) and "\n" not in str(caught.value)


BAD_PATHS = ["missing.txt", ".", "text.txt/inside", "\0", "x" * 5000, ""]


@pytest.mark.parametrize("path", BAD_PATHS, ids=lambda path: repr(path[:20]))
def test_bad_paths_get_one_line(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    for program, arguments in [
        ("train", lambda: command_line.main(["--preset", "cpu", "--data", path])),
        ("corpus", lambda: prepare_corpus(Config(**{**TINY, "corpus": path}))),
        ("checkpoint", lambda: load_checkpoint(path)),
        ("visual", lambda: sample_visual.main([path or ".", "--text"])),
        ("replay", lambda: sample_visual.main(["--replay", path or ".", "--text"])),
        ("tokenizer", lambda: BPETokenizer.load(path)),
    ]:
        try:
            assert arguments() == 2, program
            error = capsys.readouterr().err.strip()
        except UserError as caught:
            error = str(caught)
        assert error and "\n" not in error and "Traceback" not in error, program


BAD_KNOBS = [
    {"temperature": value} for value in (0.0, -1.0, float("nan"), -float("inf"))
] + [
    *({"top_p": value} for value in (0.0, -0.1, 1.1, float("nan"))),
    *({"min_p": value} for value in (-0.1, 1.1, float("nan"))),
    {"top_k": -1},
]  # fmt: skip


@pytest.mark.parametrize("knobs", BAD_KNOBS, ids=str)
def test_bad_knobs_get_one_line(knobs, model):
    with pytest.raises(UserError) as caught:
        sample(model, torch.full((1, 8), model.mask_id), steps=4, **knobs)
    assert next(iter(knobs)) in str(caught.value)


def test_tokenizer_commands_answer_in_one_line(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("l\xe0".encode("latin-1"))
    BPETokenizer.train(TEXT, 300).save(tmp_path / "tok.json")
    for arguments in (
        ["train", "missing.txt"],
        ["train", "."],
        ["train", "latin.txt"],
        ["train", "text.txt", "--vocab-size", "3"],
        ["train", "text.txt", "--save", "text.txt/inside.json"],
        ["encode", "missing.json", "word"],
        ["encode", "text.txt", "word"],
        ["decode", "tok.json", "word"],
        ["decode", "tok.json", "100000"],
        ["decode", "tok.json", "-1"],
    ):
        done = subprocess.run(
            [sys.executable, str(ROOT / "bpe_tokenizer.py"), *arguments],
            cwd=tmp_path, capture_output=True, text=True, encoding="utf-8",
        )  # fmt: skip
        assert done.returncode == 2, arguments
        assert "Traceback" not in done.stderr, arguments
        assert len(done.stderr.strip().splitlines()) == 1, arguments
    assert (tmp_path / "text.txt").read_text(encoding="utf-8") == TEXT


def test_tokenizer_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the cat — the hat\n" * 9, encoding="utf-8")
    learn = ["train", "text.txt", "--vocab-size", "265", "--save", "tok.json"]
    assert bpe_tokenizer.main(learn) == 0
    assert "tok.json: 265 tokens" in capsys.readouterr().out
    assert bpe_tokenizer.main(["encode", "tok.json", "the — cat"]) == 0
    assert bpe_tokenizer.main(["decode", "tok.json", *capsys.readouterr().out.split()]) == 0
    assert capsys.readouterr().out == "the — cat\n"
    assert bpe_tokenizer.main(["show", "tok.json", "the cat"]) == 0
    assert capsys.readouterr().out.startswith("the| c|at\n")


# -- numbers


def test_no_mask_and_all_masks(model):
    x = torch.randint(0, 299, (3, 32), generator=torch.Generator().manual_seed(0))
    for t in (0.0, 1e-12, 1.0):  # nothing is masked, nothing, everything
        loss = diffusion_loss(model, x, torch.full((3,), t), "linear", torch.Generator())
        loss.sum().backward()
        assert loss.isfinite().all() and (t == 1.0) == bool((loss > 0).all())
        assert all(p.grad.isfinite().all() for p in model.parameters())
        model.zero_grad()
    loss = nelbo(model, x, torch.full((3,), 32))
    plain = -model(torch.full((3, 32), model.mask_id)).gather(-1, x[..., None]).sum(dim=(1, 2))
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=0)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "polynomial"])
def test_times_at_the_ends(schedule, model):
    x = torch.zeros(4, 32, dtype=torch.long)
    t = torch.tensor([1e-30, 1e-7, 1 - 6e-8, 1.0])
    assert diffusion_loss(model, x, t, schedule, torch.Generator().manual_seed(0)).isfinite().all()


def test_extreme_logits():
    logits = torch.full((2, 300), -1e4)
    logits[0, 7], logits[1] = 1e4, 1e4
    p = adjust(logits)
    assert p.isfinite().all() and torch.allclose(p.sum(dim=1), torch.ones(2).double())
    assert draw(p, torch.tensor([0.999999, 0.0]).double()).tolist() == [7, 0]
    for knobs in (dict(temperature=1e-6), dict(temperature=1e6), dict(top_p=1e-9), dict(min_p=1.0)):
        assert adjust(logits, **knobs).isfinite().all()


def test_bfloat16_changes_the_loss_little(model):
    if mdlm.training.device_choices(CPU).dtype != torch.bfloat16:
        pytest.skip("this CPU computes in float32")
    x = torch.randint(0, 299, (16, 32), generator=torch.Generator().manual_seed(0))
    k = torch.arange(1, 33, 2)
    exact = nelbo(model, x, k, torch.Generator().manual_seed(0)).mean()
    with mdlm.training.autocast(CPU):
        rough = nelbo(model, x, k, torch.Generator().manual_seed(0)).mean()
    assert exact != rough and abs(exact / rough - 1) < 0.005


SHAPES = {
    "smallest vocabulary": dict(vocab_size=257),
    "context of one": dict(context=1),
    "batch of one": dict(batch_size=1),
    "odd tail": dict(batch_size=7, accumulation=3),
    "one part for each text": dict(batch_size=5, accumulation=5),
    "a twin": dict(causal=True),
    "time and dropout": dict(time_conditioning=True, dropout=0.3),
    "no average": dict(ema=0.0, weight_decay=0.0, warmup=0),
}


@pytest.mark.parametrize("name", SHAPES)
def test_extreme_shapes_train_and_come_back(name, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    config = Config(**{**TINY, "corpus": str(tmp_path / "text.txt"), "steps": 4, **SHAPES[name]})
    corpus = prepare_corpus(config)
    run = train(config, corpus, tmp_path, CPU)
    assert np.isfinite(run.losses).all() and np.isfinite(run.history[-1]["bpb"])
    model, _, _ = load_checkpoint(run.path, CPU)
    z = torch.full((2, config.context), model.mask_id)
    if not config.causal:
        tokens = sample(model, z, 4, torch.Generator().manual_seed(0)).tokens
        assert (tokens != model.mask_id).all()
    # the same seed: the same numbers, bit for bit
    again = train(config, corpus, tmp_path, CPU, resume=False)
    assert again.losses == run.losses
    if not config.causal:
        same = sample(again.model, z, 4, torch.Generator().manual_seed(0)).tokens
        assert torch.equal(same, tokens)


def test_a_state_cannot_run_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    buffer = io.BytesIO()
    torch.save({"step": Bomb()}, buffer)
    data, path = buffer.getvalue(), tmp_path / "x.resume.pt"
    path.write_bytes(data + hashlib.sha256(data).digest())  # anyone can compute a digest
    with pytest.raises(UserError, match="no state of a training"):
        read_state(path)
    assert not (tmp_path / "ran").exists()


def test_bytes_are_on_the_disk_before_the_old_file_loses_its_name(tmp_path, monkeypatch):
    done, replace = [], Path.replace

    def renamed(old, new):
        done.append("renamed")
        return replace(old, new)

    monkeypatch.setattr(os, "fsync", lambda file: done.append(os.fstat(file).st_size))
    monkeypatch.setattr(Path, "replace", renamed)
    write_atomically(tmp_path / "file", b"12345")
    assert done == [5, "renamed"]


def test_a_merge_must_make_the_token_that_it_says(corpus, tmp_path):
    whole = json.loads(corpus.tokenizer.to_json())
    whole["merges"][3][0] += 1
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(UserError, match="another token than it says"):
        BPETokenizer.load(tmp_path / "tokenizer.json")


def test_a_checkpoint_is_not_measured_on_another_text(tmp_path):
    path = tmp_path / "novel.txt"
    path.write_text(TEXT, encoding="utf-8")
    config = Config(**{**TINY, "corpus": str(path)})
    tokenizer = prepare_corpus(config).tokenizer
    assert corpus_of(config, tokenizer).tokenizer == tokenizer
    path.write_text("zebra crossing " * 4000, encoding="utf-8")
    with pytest.raises(UserError, match="not the text"):
        corpus_of(config, tokenizer)


def test_processes_that_see_other_files_are_told_so(corpus, tmp_path, monkeypatch):
    config = Config(**{**TINY, "steps": 4, "accumulation": 2})
    train(config, corpus, tmp_path, CPU)
    monkeypatch.setattr(mdlm.training, "rank_and_world", lambda: (0, 2))
    monkeypatch.setattr(mdlm.training, "add_up", lambda *_: None)  # the other one is at step 0
    with pytest.raises(UserError, match="share that folder"):
        train(config, corpus, tmp_path, CPU)


def test_the_facts_of_a_run_are_counted(corpus, tmp_path):
    run = train(Config(**{**TINY, "steps": 4, "accumulation": 3}), corpus, tmp_path, CPU)
    facts = load_checkpoint(run.path, "cpu")[2]
    weights = safetensors.torch.load_file(run.path)
    assert facts["history"][-1]["tokens"] == 4 * 6 * 32  # steps, texts, places
    assert facts["parameters"] == sum(w.numel() for w in weights.values())
