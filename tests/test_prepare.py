"""Large corpora: the tokens are those of the text, whatever cuts and kills lie between."""

import io
import itertools
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import chain
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

import prepare
from bpe_tokenizer import MASK, BPETokenizer
from conftest import ROOT
from files import UserError
from shards import MANIFEST, open_tokens, read_manifest

WORDS = re.split(" ", "And the sons of Noah, that went forth; it's 40 days' rain — über Ψ ★ 大地\n")
TOKENIZER = BPETokenizer.train(" ".join(WORDS) * 50, 400, (prepare.END_OF_TEXT, MASK))
PARTS = ("train", "val", "test")


def some_text(n_words, first=0):
    """Words, between them numbers from `first` on, by which one knows them again."""
    draw = random.Random(first)
    ends = ["", " ", " ", " \n", "\n\n"]
    words = (draw.choice(WORDS) + draw.choice(ends) for _ in range(n_words))
    return "".join(f" {first + i:06} {word}" for i, word in enumerate(words))


def numbers(text):
    return [int(n) for n in re.findall(r"\d{6}", text)]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))
    return path


def run(*arguments):
    """prepare.py, with sizes of a few kilobytes."""
    sizes = ["--vocab-size=300", "--shard-mb=.004", "--val-mb=.003", "--sample-mb=.01"]
    return prepare.main([*sizes, "--workers=2", *map(str, arguments)])


def tokens(folder):
    """(tokenizer, {part: its ids}), the numbers of bytes checked."""
    tokenizer, *parts = open_tokens(folder, PARTS)
    end = tokenizer.special_ids[prepare.END_OF_TEXT]
    found = {name: part[:].tolist() for name, part in zip(PARTS, parts[:3], strict=True)}
    for ids, n_bytes in zip(found.values(), parts[3:], strict=True):
        assert len(tokenizer.decode_bytes(i for i in ids if i != end)) == n_bytes
    return tokenizer, found


def texts(folder):
    """[the texts of training, validation and test, the ends of documents in them]

    Checked: their tokens are those of the texts, in their order, and the parts have no word twice.
    """
    tokenizer, found = tokens(folder)
    end, parts = tokenizer.special_ids[prepare.END_OF_TEXT], []
    for ids in found.values():
        parts.append(tokenizer.decode(ids).split(prepare.END_OF_TEXT))
        again = [i for document in parts[-1] for i in (*tokenizer.encode(document), end)]
        assert ids in (again, again[:-1])
    each = [numbers("".join(documents)) for documents in parts]
    assert each == [sorted(part) for part in each]
    assert sorted(chain(*each)) == list(range(sum(map(len, each))))
    return parts


# -- cutting


PIECES = st.lists(
    st.sampled_from([*WORDS, " ", "  ", "\n", "\r\n", "\t", "x" * 70, "|", "<|>", "\ufeff"])
)


@given(PIECES, st.integers(0, 200))
def test_a_cut_changes_no_token(pieces, position):
    data = "".join(pieces).encode("utf-8")
    cut = prepare.find_cut(io.BytesIO(data), position, len(data), "")
    assert min(position, len(data)) <= cut <= len(data)
    one, other = data[:cut].decode("utf-8"), data[cut:].decode("utf-8")  # no character is cut
    assert not (one.endswith("\r") and other.startswith("\n"))
    if re.search("[!-~]$", one) and re.match("[ \n]", other):
        assert TOKENIZER.encode(one) + TOKENIZER.encode(other) == TOKENIZER.encode(one + other)


SEPARATORS = st.sampled_from(["", "|", "<|>", "★|"])


@given(PIECES, st.lists(st.integers(0, 300)), st.integers(1, 50), SEPARATORS)
def test_documents_are_the_text_in_whatever_parts_it_is_read(pieces, places, block, separator):
    found = ""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "t.txt", "\ufeff" + "".join(pieces))
        size = path.stat().st_size
        places = sorted({0, size, *(place for place in places if place < size)})
        for start, end in itertools.pairwise(places):
            for document, ends in prepare.read_documents(path, start, end, separator, block):
                found += document + "\0" * ends
    text = "".join(pieces).replace("\r\n", "\n")
    expected = re.split(rf"\n*{re.escape(separator)}\n*", text) if separator else [text]
    if not expected[-1]:
        expected.pop()
    assert found == "".join(document + "\0" for document in expected)


# -- files


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_file_becomes_the_tokens_of_its_text(newline, tmp_path, capsys):
    text = some_text(4500)
    write(tmp_path / "text.txt", "\ufeff" + text.replace("\n", newline))
    assert run(tmp_path / "text.txt", "--out", tmp_path / "o") == 0
    train, val, test = texts(tmp_path / "o")
    assert sum(map(len, (train, val, test))) == 3 + 1  # one end
    assert sorted("".join(chain(train, val, test)).split()) == sorted(text.split())
    for part in (val, test):
        assert len("".join(part).encode("utf-8")) == pytest.approx(3000, abs=400)
    assert len(list((tmp_path / "o").glob("*.bin"))) > 8
    assert open_tokens(tmp_path / "o")[0].vocab_size == 300
    assert "now: python train.py --data" in capsys.readouterr().out


def test_a_folder_is_documents_in_order(tmp_path):
    files = {"0/a": 300, "0/c": 2000, "1/b": 0, "1/d": 10}
    if sys.platform == "linux":  # any bytes are a name there
        files[os.fsdecode(b"z\xe9")] = 5
    first = 0
    for name, n_words in files.items():
        write(tmp_path / "library" / f"{name}.txt", some_text(n_words, first))
        first += n_words
    (tmp_path / "library" / "a folder.txt").mkdir()
    assert run(tmp_path / "library", "--out", tmp_path / "o") == 0
    assert sum(map(len, texts(tmp_path / "o"))) == 3 + len(files) - 1  # one is empty


def test_a_file_of_several_documents(tmp_path):
    stories = [some_text(40, 40 * i) for i in range(200)]
    write(tmp_path / "s.txt", "\n<|end|>\n".join(stories))
    options = ["--out", tmp_path / "o", "--separator=<|end|>"]
    assert run(tmp_path / "s.txt", *options) == 0
    parts = texts(tmp_path / "o")
    assert sum(map(len, parts)) == 3 + len(stories)
    for document in chain(*parts):  # or pieces of some, from blocks for different parts
        assert "<|" not in document
        found = itertools.pairwise(numbers(document))
        assert all(a // 40 == b // 40 for a, b in found if b == a + 1)


SIZES = st.lists(st.integers(1, 3000), min_size=1, max_size=5)


@given(SIZES, st.integers(1, 5000), st.integers(1, 2000))
def test_three_parts_hold_every_byte_once_and_lots_decide(sizes, most, shard_bytes):
    with tempfile.TemporaryDirectory() as folder:
        paths = [write(Path(folder) / f"{i}.txt", "a" * size) for i, size in enumerate(sizes)]
        arguments = prepare.parse_arguments([folder, "--out=o", f"--val-mb={most / 1e6}"])
        if sum(sizes) < 10:
            with pytest.raises(UserError, match="too little text"):
                prepare.Files(arguments)
            return
        source = prepare.Files(arguments)
        assert source.parts == prepare.Files(arguments).parts
    found, in_part = [], Counter()
    for job, row in source.jobs(shard_bytes):
        for path, a, b, _ in row:
            found += [(path, byte) for byte in range(a, b)]
            in_part[job.partition("-")[0]] += b - a
    every = [(path, n) for path, size in zip(paths, sizes, strict=True) for n in range(size)]
    assert sorted(found) == every
    assert all(0 < in_part[name] <= min(most, sum(sizes) / 10) for name in ("val", "test"))


def test_the_parts_and_the_sample_come_from_all_over_the_text(tmp_path):
    path = write(tmp_path / "t.txt", "".join(f"w{i:06} " for i in range(900_000)))  # 7 MB
    source = prepare.Files(prepare.parse_arguments([str(path), "--out=o", "--val-mb=.7"]))
    found = {"sample": numbers("".join(source.sample(3_000_000)))}
    assert 8 * len(found["sample"]) == pytest.approx(3_000_000, abs=100)
    for name, row in source.parts.items():
        found[name] = numbers("".join(t for span in row for t, _ in prepare.read_documents(*span)))
    assert {*found["sample"]} <= {*found["train"]}
    for name, part in found.items():  # in several pieces, far from each other
        pieces = sum(b - a > 1 for a, b in itertools.pairwise(part))
        assert pieces >= 2
        assert max(part) - min(part) > (800_000 if name == "sample" else 300_000)


# -- data sets


class Rows:
    """Stands in for the package `datasets`: rows of a data set, and then perhaps a failure."""

    def __init__(self, monkeypatch, rows, failure=None):
        self.rows, self.failure = rows, failure
        monkeypatch.setitem(sys.modules, "datasets", self)

    def load_dataset(self, *which, split, streaming):
        self.asked = *which, split
        yield from self.rows
        if self.failure:
            raise self.failure


def documents(tokenizer, texts):
    """The ids of all, an end after each."""
    end = tokenizer.special_ids[prepare.END_OF_TEXT]
    return [i for text in texts for i in (*tokenizer.encode(text), end)]


def test_a_stream_keeps_two_documents_in_a_hundred_back(tmp_path, monkeypatch):
    stories = [some_text(20, seed) for seed in range(500)]
    rows = [{"story": story.replace("\n", "\r\n")} for story in stories]
    rows[7:7] = [{"story": None}, {"story": " \n"}]  # rows without a text are passed over
    hub = Rows(monkeypatch, rows)
    choices = ["--column=story", "--config=large", "--split=some"]
    assert run("hf:a/b", "--out", tmp_path / "o", *choices) == 0
    assert hub.asked == ("a/b", "large", "some")
    tokenizer, found = tokens(tmp_path / "o")
    assert found["val"] == documents(tokenizer, stories[::100])
    assert found["test"] == documents(tokenizer, stories[50::100])
    assert found["train"] == documents(tokenizer, [s for i, s in enumerate(stories) if i % 50])
    assert run("hf:a/b", "--out", tmp_path / "less", "--val-mb=.0001", *choices) == 0
    tokenizer, found = tokens(tmp_path / "less")
    assert found["val"] == documents(tokenizer, stories[:1])
    assert found["train"] == documents(tokenizer, stories[1:50] + stories[51:])
    assert run("hf:a/b", "--out", tmp_path / "few", "--limit-mb=.015", *choices) == 0
    longest = max(len(story.encode("utf-8")) for story in stories)
    assert 15_000 <= sum(open_tokens(tmp_path / "few", PARTS)[4:]) < 15_000 + longest


def test_what_was_read_before_the_network_failed_is_kept(tmp_path, monkeypatch, capsys):
    rows = [{"text": some_text(100, seed)} for seed in range(60)]
    Rows(monkeypatch, rows[:45], OSError("no network"))
    options = ["hf:x", "--out", tmp_path / "o", "--sample-mb=.001"]
    assert run(*options) == 2
    assert "no network" in capsys.readouterr().err
    assert len(read_manifest(tmp_path / "o")["shards"]) >= 2
    Rows(monkeypatch, rows)
    assert run(*options) == 0
    tokenizer, found = tokens(tmp_path / "o")
    assert found["train"] == documents(tokenizer, [r["text"] for r in rows[1:50] + rows[51:]])


# -- going on, starting anew


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_after_kill_9_it_goes_on(tmp_path):
    """The program with its worker processes: none lives on, and nothing is done twice."""
    write(tmp_path / "text.txt", some_text(200_000))
    options = ["--shard-mb=.02", "--workers=2", "--vocab-size=300", "--sample-mb=.1"]
    whole, killed = (
        [sys.executable, "prepare.py", tmp_path / "text.txt", "--out", tmp_path / name, *options]
        for name in ("whole", "killed")
    )
    subprocess.run(whole, cwd=ROOT, check=True, capture_output=True)
    folder = tmp_path / "killed"
    process = subprocess.Popen(killed, cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(folder.glob("*.bin"))) < 5:
        time.sleep(0.002)
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert psutil.wait_procs(workers, timeout=20)[1] == []
    first = [folder / shard["file"] for shard in read_manifest(folder)["shards"]]
    first.pop().unlink()  # and something has happened to one of them
    (folder / "train-000000.bin.1.tmp").touch()
    times = [path.stat().st_mtime_ns for path in first]
    subprocess.run(killed, cwd=ROOT, check=True, capture_output=True)
    assert times == [path.stat().st_mtime_ns for path in first]
    assert contents(folder) == contents(tmp_path / "whole")
    assert 0 < len(first) < len(contents(folder)) - 2


CHANGES = {
    "file": ["--sample-mb=7", "--shard-mb=5", "--val-mb=2", "--separator=And", "--vocab-size=299"],
    "hf:x": ["--column=a", "--config=a", "--split=a", "--limit-mb=2"],
}


@pytest.mark.parametrize("kind", CHANGES)
def test_another_text_or_option_needs_a_restart(kind, tmp_path, monkeypatch, capsys):
    Rows(monkeypatch, [{"text": some_text(30, i), "a": "x"} for i in range(60)])
    path, out = write(tmp_path / "t.txt", some_text(3000)), ["--out", tmp_path / "o"]
    source = path if kind == "file" else kind
    assert run(source, *out) == 0
    before = contents(tmp_path / "o")
    for option in CHANGES[kind]:
        assert run(source, *out, option) == 2
        assert "--restart" in capsys.readouterr().err
    write(path, some_text(3000, 1))
    assert run(path, *out) == 2
    assert run(path, *out, "--restart", "--vocab-size=5") == 2
    assert contents(tmp_path / "o") == before
    assert run(path, *out, "--restart") == 0
    assert contents(tmp_path / "o") != before


@pytest.fixture
def says(capsys, tmp_path):
    """says(message, *arguments): prepare.py refuses them with this, in its last line."""

    def says(message, *arguments):
        assert run(*arguments, "--out", tmp_path / "o") == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("prepare.py: ") and message in error

    return says


def test_what_is_no_text_gets_one_line(says, tmp_path):
    path, text = tmp_path / "text.txt", some_text(3000)
    says("cannot be read", path)
    says("no .txt file", tmp_path)
    says("prepare.py hf:OWNER/NAME", "https://a.b/c.txt")
    says("pip install datasets", "hf:some/stories")
    for data, message in [
        (b"", "too little text"),
        (b"hello", "too little text"),
        ("a text: äöü ".encode("utf-16") * 99, "UTF-16"),
        ("a text: äöü ".encode("utf-16-le") * 99, "NUL"),
        ("a text: äöü ".encode("latin-1") * 99, "byte 8"),
        (b"\x1f\x8b\x08" + bytes(99), "gzip"),
    ]:
        path.write_bytes(data)
        says(message, path)
    write(path, text)
    says("no '%%'", path, "--separator=%%")
    says("too small", path, "--vocab-size=257")
    (tmp_path / "o").mkdir(exist_ok=True)
    (tmp_path / "o" / MANIFEST).write_text("{}")
    says("damaged", path)
    assert run(path, "--out", tmp_path / "o", "--restart") == 0
    assert run(path, "--out", path / "below") == 2


def test_a_data_set_without_text_to_train_on_gets_one_line(says, monkeypatch):
    for message, rows, failure in [
        ("text': --column story or title", [{"id": 1, "story": "x", "title": "y"}], None),
        ("there is no other", [{"text": [{"role": "x"}], "id": 1}], None),
        ("too little text", [{"text": "x y z"}], None),
        ("is missing: a, b (to choose: --config", [], ValueError("Config\nis missing: a, b")),
    ]:
        Rows(monkeypatch, rows, failure)
        says(message, "hf:x")
