"""Corpora on the disk: the tokens are those of the text, whatever cuts and kills lie between."""

import functools
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import prepare
import train
from bpe_tokenizer import MASK, BPETokenizer, UserError
from mdlm.config import Config
from mdlm.corpus import Corpus, load_parts, prepare_corpus, windows
from mdlm.training import Run, evaluate, training_step

ROOT = Path(__file__).parent.parent
WORK = prepare.work  # that of several processes
WORDS = re.split(" ", "And the sons of Noah, that went forth; it's 40 days' rain — über Ψ ★ 大地\n")
TOKENIZER = BPETokenizer.train(" ".join(WORDS) * 50, 400, (prepare.END_OF_TEXT, MASK))


def some_text(n_words, seed=0):
    draw = random.Random(seed)
    return "".join(
        draw.choice(WORDS) + draw.choice(["", " ", " ", " \n", "\n\n"]) for _ in range(n_words)
    )


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Sizes are given in MB; here one is a kilobyte. Nor are there other processes."""
    monkeypatch.setattr(prepare, "MB", 1000)
    monkeypatch.setattr(prepare, "BLOCK", 1500)
    monkeypatch.setattr(prepare, "LONGEST_DOCUMENT", 64_000)
    monkeypatch.setattr(prepare, "work", work_here)


def work_here(jobs, folder, arguments):
    """As `prepare.work`, in this process."""
    tokenizer = BPETokenizer.load(folder / prepare.TOKENIZER)
    separator = arguments.separator.encode("utf-8")
    prepare.worker.update(folder=folder, separator=separator, tokenizer=tokenizer)
    yield from map(prepare.write_shard, jobs)


def run(*arguments):
    return prepare.main([str(argument) for argument in arguments])


def documents(tokenizer, texts):
    """The ids of all, an end after each."""
    end = tokenizer.special_ids[prepare.END_OF_TEXT]
    return [i for text in texts for i in (*tokenizer.encode(text), end)]


def read(folder):
    """(tokenizer, ids to train on, ids to validate), the bytes of both checked."""
    tokenizer, train_ids, val_ids, *n_bytes = prepare.open_tokens(folder)
    end = tokenizer.special_ids[prepare.END_OF_TEXT]
    for ids, n in zip((train_ids, val_ids), n_bytes, strict=True):
        assert len(tokenizer.decode_bytes(i for i in ids[0 : len(ids)] if i != end)) == n
    return tokenizer, train_ids[0 : len(train_ids)], val_ids[0 : len(val_ids)]


@given(st.lists(st.sampled_from([*WORDS, " ", "  ", "\n", "\t", "x" * 70])), st.floats(0, 1))
def test_a_cut_changes_no_token(words, where):
    data = "".join(words).encode("utf-8")
    position = int(where * len(data))
    cut = prepare.find_cut(io.BytesIO(data), position, len(data))
    assert position <= cut <= len(data)
    one, other = data[:cut].decode("utf-8"), data[cut:].decode("utf-8")  # no character is cut
    if cut < len(data) and data[cut - 1 : cut].isascii() and data[cut : cut + 1].isspace():
        assert TOKENIZER.encode(one) + TOKENIZER.encode(other) == TOKENIZER.encode(data)


@given(st.lists(st.integers(0, 5)), st.integers(-3, 30), st.integers(-3, 30))
def test_shards_read_as_one_array(lengths, start, stop):
    whole = np.arange(sum(lengths), dtype=np.uint16)
    parts = np.split(whole, np.cumsum(lengths)[:-1]) if lengths else []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.bin" for i in range(len(lengths))]
        for path, part in zip(paths, parts, strict=True):
            part.tofile(path)
        shards = prepare.Shards(paths, lengths, whole.dtype, "")
        assert len(shards) == len(whole)
        assert shards[start:stop].tolist() == whole[start:stop].tolist()


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
def test_there_may_be_more_shards_than_files_may_be_open(tmp_path):
    import resource

    (tmp_path / "t.txt").write_text(some_text(90_000), encoding="utf-8")  # 90 shards: MB is small
    assert run(tmp_path / "t.txt", "--out", tmp_path / "o", "--shard-mb=1", "--vocab-size=300") == 0
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (60, usual[1]))
    try:
        _, train_ids, *_ = prepare.open_tokens(tmp_path / "o")
        assert len(train_ids.paths) > 60 and len(train_ids[0 : len(train_ids)]) == len(train_ids)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)


def test_another_text_of_the_same_size_is_another_text(tmp_path, capsys):
    digests = []
    for seed in (1, 2):
        text = some_text(3000, seed)[:2900]
        (tmp_path / "t.txt").write_text(text, encoding="utf-8")
        out = tmp_path / str(seed)
        assert run(tmp_path / "t.txt", "--out", out, "--vocab-size=300") == 0
        digests.append(prepare.open_tokens(out)[1].digest)
    assert digests[0] != digests[1]
    text = bytearray(b"abcdefgh " * 200_000)
    (tmp_path / "t").write_bytes(text)
    before = prepare.Files(tmp_path / "t", "").identity
    text[900_000:930_000] = b"x" * 30_000  # far from both ends
    (tmp_path / "t").write_bytes(text)
    assert prepare.Files(tmp_path / "t", "").identity != before
    capsys.readouterr()
    assert run(tmp_path / "t.txt", "--out", tmp_path / "1", "--vocab-size=300") == 2
    assert "holds another text" in capsys.readouterr().err


def test_the_sample_is_spread_over_the_training_part(tmp_path):
    (tmp_path / "t.txt").write_text("".join(f"w{i:05} " for i in range(10_000)))
    parts = prepare.Files(tmp_path / "t.txt", "").sample(5_000, 7_000)
    numbers = [int(n) for part in parts for n in re.findall(rb"w(\d{5})", part)]
    assert min(numbers) == 0 and 8_500 < max(numbers) < 9_010
    assert len({n // 2000 for n in numbers}) == 5


def test_the_sample_comes_from_within_long_documents_too(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "MB", 1000)
    text = "|".join("".join(f"{d}{i:05} " for i in range(2000)) for d in "abc")
    (tmp_path / "t.txt").write_text(text)
    parts = list(prepare.Files(tmp_path / "t.txt", "|").sample(6_000, 7_000))
    sizes = {d: b"".join(parts).count(d) for d in (b"a", b"b", b"c")}
    assert all(200 < n < 500 for n in sizes.values()) and not any(b"|" in part for part in parts)


class Rows:
    """Stands in for the package `datasets`: rows of a data set, and then perhaps a failure."""

    def __init__(self, rows, failure=None):
        self.rows, self.failure = rows, failure

    def load_dataset(self, *_, **__):
        yield from self.rows
        if self.failure:
            raise self.failure


def test_a_row_without_a_text_is_passed_over(tmp_path, monkeypatch):
    rows = [{"text": text} for text in ("one", None, "two")]
    monkeypatch.setitem(sys.modules, "datasets", Rows(rows))
    assert list(prepare.Stream("x", "text", 10**9).documents()) == ["one", "two"]


def test_what_was_read_before_the_network_failed_is_kept(tmp_path, monkeypatch, capsys):
    rows = [{"text": some_text(300, seed)} for seed in range(20)]
    monkeypatch.setitem(sys.modules, "datasets", Rows(rows))
    out = [f"--out={tmp_path / 'o'}", "--vocab-size=300", "--shard-mb=1", "--sample-mb=1"]
    out += ["--val-mb=1", "--workers=8"]
    assert run("hf:x", *out) == 0
    whole = prepare.open_tokens(tmp_path / "o")[1]
    monkeypatch.setitem(sys.modules, "datasets", Rows(rows[:10], OSError("no network")))
    assert run("hf:x", *out, "--restart") == 2
    assert "no network" in capsys.readouterr().err
    assert len(prepare.read_manifest(tmp_path / "o")["shards"]) >= 2
    monkeypatch.setitem(sys.modules, "datasets", Rows(rows))
    assert run("hf:x", *out) == 0
    assert prepare.open_tokens(tmp_path / "o")[1].digest == whole.digest


def test_a_text_with_nothing_to_validate_on_is_refused_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prepare, "learn_vocabulary", None)  # it does not come to that
    (tmp_path / "t.txt").write_text("one story|" + some_text(3000), encoding="utf-8")
    command = [tmp_path / "t.txt", "--out", tmp_path / "o", "--vocab-size=300", "--separator=|"]
    assert run(*command) == 2
    assert "nothing to validate on" in capsys.readouterr().err


def test_a_file_becomes_the_tokens_of_its_text(tmp_path, capsys):
    text = some_text(9000)
    (tmp_path / "text.txt").write_bytes(b"\xef\xbb\xbf" + text.encode("utf-8"))
    out = tmp_path / "tokens"
    assert (
        run(tmp_path / "text.txt", "--out", out, "--shard-mb=4", "--vocab-size=400", "--val-mb=3")
        == 0
    )
    tokenizer, train_ids, val_ids = read(out)
    assert len(list(out.glob("*.bin"))) > 8
    assert [*train_ids, *val_ids] == documents(tokenizer, [text])
    assert len(tokenizer.decode_bytes(val_ids[:-1])) == pytest.approx(3000, abs=200)  # --val-mb
    assert tokenizer.mask_id == tokenizer.vocab_size - 1 == 399
    assert "python train.py --data" in capsys.readouterr().out


def test_training_from_the_disk_is_training_from_memory(tmp_path):
    (tmp_path / "text.txt").write_text(some_text(9000), encoding="utf-8")
    run(tmp_path / "text.txt", "--out", tmp_path / "tokens", "--shard-mb=4", "--vocab-size=400")
    config = Config(
        corpus=str(tmp_path / "tokens"), n_layers=1, d_model=32, n_heads=2, context=32,
        batch_size=6, compile=False,
    )  # fmt: skip
    on_disk = prepare_corpus(config)
    assert config.vocab_size == 400
    whole = [part[0 : len(part)] for part in (on_disk.train, on_disk.val)]
    in_memory = Corpus(on_disk.tokenizer, *whole, on_disk.train_bytes, on_disk.val_bytes)
    starts = np.arange(0, len(on_disk.train) - 32, 7)
    assert torch.equal(windows(on_disk.train, starts, 32), windows(in_memory.train, starts, 32))
    results = []
    for corpus in (on_disk, in_memory):
        made = Run(config, corpus, tmp_path, torch.device("cpu"))
        steps = [
            training_step(made.model, made.optimizers, made.scaler, corpus, config, step).item()
            for step in range(3)
        ]
        results.append((steps, evaluate(made.model, corpus.val, config)))
    assert results[0] == results[1]


def test_a_folder_is_documents_in_order(tmp_path):
    texts = ["\n\n" + some_text(300, 1), "", some_text(2000, 2), some_text(10, 3)]
    for i, text in enumerate(texts):
        path = tmp_path / "library" / str(i % 2) / f"{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    assert run(tmp_path / "library", "--out", tmp_path / "tokens", "--shard-mb=3") == 0
    tokenizer, train_ids, val_ids = read(tmp_path / "tokens")
    in_order = [texts[i] for i in (0, 2, 1, 3) if texts[i]]
    assert [*train_ids, *val_ids] == documents(tokenizer, in_order)


def test_a_file_of_several_documents(tmp_path):
    stories = [some_text(40, seed).strip("\n") for seed in range(200)]
    (tmp_path / "s.txt").write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8", newline="")
    out = tmp_path / "tokens"
    assert run(tmp_path / "s.txt", "--out", out, "--separator=<|endoftext|>", "--shard-mb=3") == 0
    tokenizer, train_ids, val_ids = read(out)
    assert [*train_ids, *val_ids] == documents(tokenizer, stories)
    assert b"endoftext" not in b"".join(tokenizer.token_bytes[:-2])


def test_a_stream_keeps_one_document_in_a_hundred_for_validation(tmp_path, monkeypatch, capsys):
    stories = [some_text(40, seed) for seed in range(500)]
    hub = types.SimpleNamespace(
        load_dataset=lambda name, split, streaming: iter([{"text": s, "id": 1} for s in stories])
    )
    monkeypatch.setitem(sys.modules, "datasets", hub)
    assert run("hf:some/stories", "--out", tmp_path / "tokens", "--shard-mb=7") == 0
    tokenizer, train_ids, val_ids = read(tmp_path / "tokens")
    assert val_ids.tolist() == documents(tokenizer, stories[::100])
    rest = [s for i, s in enumerate(stories) if i % 100]
    assert train_ids.tolist() == documents(tokenizer, rest)
    assert run("hf:some/stories", "--out", tmp_path / "few", "--limit-mb=9") == 0
    read(tmp_path / "few")
    n_bytes = sum(prepare.open_tokens(tmp_path / "few")[3:])
    assert 9000 <= n_bytes < 9000 + max(len(story.encode("utf-8")) for story in stories)
    assert run("hf:some/stories", "--out", tmp_path / "t", "--column=story") == 2
    assert "choose one of text, id with --column" in capsys.readouterr().err


def test_more_than_65536_ids_take_four_bytes(tmp_path):
    assert prepare.token_dtype(65_536).itemsize == 2 and prepare.token_dtype(65_537).itemsize == 4
    tokenizer = BPETokenizer([(i % 256, i // 256) for i in range(65_536)])
    ids = np.array([tokenizer.mask_id], dtype=prepare.token_dtype(tokenizer.vocab_size))
    assert ids[0] == tokenizer.mask_id > 65_535


def test_after_kill_9_it_goes_on(tmp_path):
    """The real program, its worker processes included."""
    (tmp_path / "text.txt").write_text(some_text(400_000), encoding="utf-8")
    outs = [tmp_path / "whole", tmp_path / "killed"]
    options = ["--shard-mb=1", "--workers=2", "--vocab-size=300"]
    commands = [
        [sys.executable, "prepare.py", str(tmp_path / "text.txt"), "--out", str(out), *options]
        for out in outs
    ]
    subprocess.run(commands[0], cwd=ROOT, check=True, capture_output=True)
    process = subprocess.Popen(
        commands[1], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not list(outs[1].glob("*.bin")):
        time.sleep(0.002)
    workers = psutil.Process(process.pid).children() if process.poll() is None else []
    process.kill()
    process.wait()
    assert psutil.wait_procs(workers, timeout=20)[1] == []  # none lives on
    done = subprocess.run(commands[1], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    manifests = [(out / prepare.MANIFEST).read_bytes() for out in outs]
    assert manifests[0] == manifests[1]
    assert b"".join(p.read_bytes() for p in sorted(outs[0].glob("*.bin"))) == b"".join(
        p.read_bytes() for p in sorted(outs[1].glob("*.bin"))
    )


def test_interrupted_it_does_only_what_is_left(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text(some_text(9000), encoding="utf-8")
    command = [tmp_path / "text.txt", "--out", tmp_path / "out", "--shard-mb=4", "--vocab-size=400"]
    usual, done = prepare.write_shard, []

    def write(job):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(job[:2])
        return usual(job)

    monkeypatch.setattr(prepare, "write_shard", write)
    assert run(*command) == 130
    first = list(done)
    (
        tmp_path / "out" / "train-000001.bin"
    ).unlink()  # and something else has happened to one of the three

    def write_rest(job):
        done.append(job[:2])
        return usual(job)

    done.clear()
    monkeypatch.setattr(prepare, "write_shard", write_rest)
    monkeypatch.setattr(BPETokenizer, "train", None)  # the vocabulary is there
    assert run(*command) == 0
    assert set(first) & set(done) == {("train", 1)} and len(done) > 3
    tokenizer, train_ids, val_ids = read(tmp_path / "out")
    text = (tmp_path / "text.txt").read_text(encoding="utf-8")
    assert [*train_ids, *val_ids] == documents(tokenizer, [text])
    for number in (0, 2):  # two are lost later, and only one comes back
        (tmp_path / "out" / f"train-00000{number}.bin").unlink()
    done[:] = done[:2]
    monkeypatch.setattr(prepare, "write_shard", write)
    assert run(*command) == 130
    with pytest.raises(UserError, match="not finished"):
        prepare.open_tokens(tmp_path / "out")


def test_interrupted_before_anything_was_replaced_it_says_so(tmp_path, monkeypatch, capsys):
    (tmp_path / "text.txt").write_text(some_text(9000), encoding="utf-8")
    command = [tmp_path / "text.txt", "--out", tmp_path / "out", "--vocab-size=300"]
    assert run(*command) == 0
    left, mine = tmp_path / "out" / "train-000000.bin.1.tmp", tmp_path / "out" / "mine.tmp"
    left.touch()
    mine.touch()

    usual = prepare.learn_vocabulary

    def press(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "learn_vocabulary", press)
    assert run(*command, "--restart") == 130
    assert "nothing has been replaced" in capsys.readouterr().err
    assert run(*command) == 0  # there is nothing to learn
    assert mine.exists() and not left.exists()
    monkeypatch.setattr(prepare, "learn_vocabulary", usual)
    monkeypatch.setattr(prepare, "write_shard", press)
    assert run(*command, "--restart") == 130
    assert "without --restart" in capsys.readouterr().err


def test_what_it_has_not_made_it_leaves_alone(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "text.txt").write_text(some_text(9000), encoding="utf-8")
    for name in (prepare.TOKENIZER, "train-mine.bin", "train-000000.bin"):
        (out / name).write_bytes(b"mine")
    assert run(tmp_path / "text.txt", "--out", out) == 2
    assert "is there already" in capsys.readouterr().err
    assert {path.read_bytes() for path in out.iterdir()} == {b"mine"} and len(
        list(out.iterdir())
    ) == 3
    assert run(tmp_path / "text.txt", "--out", out, "--restart") == 0
    assert (out / "train-mine.bin").read_bytes() == b"mine"


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are not bytes here")
def test_any_name_of_a_file(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text(some_text(3000), encoding="utf-8")
    (tmp_path / "texts" / "a folder.txt").mkdir()
    assert run(tmp_path / "texts", "--out", tmp_path / "out") == 0


def damage_manifest(folder, **changes):
    path = folder / prepare.MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["shards"][0].update(changes)
    path.write_text(json.dumps(manifest), encoding="utf-8")


DAMAGES = {
    "cut short": lambda f: (f / "train-000000.bin").write_bytes(b"12"),
    "a file gone": lambda f: (f / "train-000000.bin").unlink(),
    "a tokenizer of another": lambda f: TOKENIZER.save(f / prepare.TOKENIZER),
    "no tokenizer": lambda f: (f / prepare.TOKENIZER).unlink(),
    "no manifest": lambda f: (f / prepare.MANIFEST).unlink(),
    "empty manifest": lambda f: (f / prepare.MANIFEST).write_bytes(b""),
    "not JSON": lambda f: (f / prepare.MANIFEST).write_bytes(b"\x80\x02}q"),
    "deep JSON": lambda f: (f / prepare.MANIFEST).write_text("[" * 100_000),
    "a forged length": lambda f: damage_manifest(f, tokens=10**15),
}
FORGERIES = {
    "another place": (dict(file="../secret.bin"), "strange name"),
    "another file": (dict(file="train-000000.bin.bak"), "strange name"),
    "a negative length": (dict(tokens=-1), "a length that is none"),
    "a length of another type": (dict(tokens="9"), "a length that is none"),
    "a negative number of bytes": (dict(bytes=-1), "a length that is none"),
    "another part": (dict(split="test"), "an entry that is none"),
}
DAMAGES |= {
    name: functools.partial(damage_manifest, **changes) for name, (changes, _) in FORGERIES.items()
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tokens_get_one_line(damage, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(some_text(9000), encoding="utf-8")
    out = tmp_path / "tokens"
    assert run(tmp_path / "text.txt", "--out", out, "--vocab-size=300") == 0
    DAMAGES[damage](out)
    capsys.readouterr()
    assert train.main(["--data", str(out), "--folder", str(tmp_path / "runs"), "--steps=1"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "Traceback" not in message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_manifest_is_checked_entry_by_entry(forgery, tmp_path):
    (tmp_path / "text.txt").write_text(some_text(9000), encoding="utf-8")
    out = tmp_path / "tokens"
    assert run(tmp_path / "text.txt", "--out", out, "--vocab-size=300") == 0
    whole = (out / "train-000000.bin").read_bytes()
    (tmp_path / "secret.bin").write_bytes(whole)  # there, and with the right digest
    (out / "train-000000.bin.bak").write_bytes(whole)
    changes, message = FORGERIES[forgery]
    damage_manifest(out, **changes)
    with pytest.raises(UserError, match=message):
        prepare.open_tokens(out)


def test_mistakes_get_one_line(tmp_path, capsys):
    def says(message, *arguments):
        assert run(*arguments) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("prepare.py: ") and message in error

    text, out = tmp_path / "text.txt", tmp_path / "tokens"
    says("cannot be read", text, "--out", out)
    says("cannot be read", "x" * 5000, "--out", out)
    says("cannot be read", "a\0b", "--out", out)
    says("no .txt file", tmp_path, "--out", out)
    text.write_bytes(b"")
    says("no text", text, "--out", out)
    text.write_bytes(b"hello")
    says("too short", text, "--out", out)
    text.write_text(some_text(3000), encoding="utf-16")
    says("not UTF-8 at byte", text, "--out", out)
    text.write_text(some_text(3000), encoding="utf-8")
    says("too small", text, "--out", out, "--vocab-size=5")
    says("cannot be", text, "--out", text / "below")
    assert run(text, "--out", out) == 0
    says("--restart", text, "--out", out, "--vocab-size=300")
    before = sorted((path.name, path.read_bytes()) for path in out.iterdir())
    says("too small", text, "--out", out, "--vocab-size=5", "--restart")
    assert sorted((path.name, path.read_bytes()) for path in out.iterdir()) == before
    says("cannot be", text, "--out", text, "--restart")
    assert run(text, "--out", out, "--vocab-size=300", "--restart") == 0
    TOKENIZER.save(out / prepare.TOKENIZER)  # somebody has put another one there
    says("not the one of these tokens", text, "--out", out, "--vocab-size=300")
    text.write_text(some_text(100_000), encoding="utf-8")
    says("what stands between", text, "--out", tmp_path / "t", "--separator=%%", "--shard-mb=9")
    says("pip install datasets", "hf:some/stories", "--out", tmp_path / "t")
    with pytest.raises(UserError, match="not finished"):
        manifest = json.loads((out / prepare.MANIFEST).read_text()) | {"complete": False}
        (out / prepare.MANIFEST).write_text(json.dumps(manifest))
        prepare.open_tokens(out)


def test_what_was_read_is_finished_before_the_network_failed_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "ProcessPoolExecutor", lambda n, **_: ThreadPoolExecutor(n))
    monkeypatch.setattr(prepare, "write_shard", lambda job: job)

    def jobs():
        yield from (1, 2, 3)
        raise UserError("no network")

    done, arguments = [], types.SimpleNamespace(workers=2, separator="")
    with pytest.raises(UserError, match="no network"):
        for entry in WORK(jobs(), tmp_path, arguments):
            done.append(entry)
    assert sorted(done) == [1, 2, 3]


@pytest.mark.parametrize("option", ["--sample-mb=7", "--shard-mb=5", "--val-mb=2", "--separator=|"])
def test_with_other_options_it_does_not_go_on(option, tmp_path, capsys):
    (tmp_path / "t.txt").write_text(some_text(3000) + "|", encoding="utf-8")
    command = [tmp_path / "t.txt", "--out", tmp_path / "o", "--vocab-size=300"]
    assert run(*command) == 0 and run(*command, option) == 2
    assert "made with other options" in capsys.readouterr().err


def test_every_setting_of_a_stream_is_in_its_identity():
    asked = [("x", "text", 1), ("y", "text", 1), ("x", "story", 1), ("x", "text", 2)]
    assert len({prepare.Stream(*each).identity for each in asked}) == 4


def test_the_parts_of_a_folder_are_its_text_and_nothing_else(tmp_path):
    stories = [some_text(40, seed).strip("\n") for seed in range(200)]
    (tmp_path / "s.txt").write_text("\n%%\n".join(stories), encoding="utf-8", newline="")
    command = ["--out", tmp_path / "o", "--separator=%%", "--vocab-size=300"]
    assert run(tmp_path / "s.txt", *command) == 0
    train_text, val_text = load_parts(str(tmp_path / "o"))
    assert len(train_text) > len(val_text) > 0
    assert (train_text + val_text).split() == "".join(stories).split()
    assert len(load_parts(str(tmp_path / "o"), most=9)[0]) < len(train_text)
