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
    return prepare.main([str(argument) for argument in (*arguments, "--workers=2")])


def small(*arguments):
    """With sizes of a few kilobytes."""
    return run(
        "--vocab-size=300", "--shard-mb=.004", "--val-mb=.003", "--sample-mb=.01", *arguments
    )


def tokens(folder):
    """(tokenizer, {part: its ids}), the numbers of bytes checked."""
    found = {}
    tokenizer, *parts = open_tokens(folder, PARTS)
    end = tokenizer.special_ids[prepare.END_OF_TEXT]
    for name, part, n_bytes in zip(PARTS, parts[:3], parts[3:], strict=True):
        found[name] = [int(i) for i in part[:]]
        assert len(tokenizer.decode_bytes(i for i in found[name] if i != end)) == n_bytes
    return tokenizer, found


def texts(folder):
    """[the texts of training, validation and test, the ends of documents in them]

    Checked: their tokens are those of the texts, in their order, and the parts have no word twice.
    """
    tokenizer, found = tokens(folder)
    end, parts = tokenizer.special_ids[prepare.END_OF_TEXT], []
    for ids in found.values():
        documents = tokenizer.decode(ids).split(prepare.END_OF_TEXT)
        again = [i for document in documents for i in (*tokenizer.encode(document), end)]
        assert ids in (again, again[:-1])
        parts.append(documents)
    each = [numbers("".join(documents)) for documents in parts]
    assert each == [sorted(part) for part in each]
    assert sorted(n for part in each for n in part) == list(range(sum(map(len, each))))
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


@given(
    PIECES,
    st.lists(st.integers(0, 300)),
    st.integers(1, 50),
    st.sampled_from(["", "|", "<|>", "★|"]),
)
def test_documents_are_the_text_in_whatever_parts_it_is_read(pieces, places, block, separator):
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "t.txt", "\ufeff" + "".join(pieces))
        size = path.stat().st_size
        places = sorted({0, size, *(place for place in places if place < size)})
        found = [
            document
            for start, end in itertools.pairwise(places)
            for document in prepare.read_documents(path, start, end, separator, block)
        ]
    text = "".join(pieces).replace("\r\n", "\n")
    expected = re.split(rf"\n*{re.escape(separator)}\n*", text) if separator else [text]
    if not expected[-1]:
        expected.pop()
    joined = "".join(document + "\0" * ends for document, ends in found)
    assert joined == "".join(document + "\0" for document in expected)


# -- files


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_file_becomes_the_tokens_of_its_text(newline, tmp_path, capsys):
    text = some_text(4500)
    write(tmp_path / "text.txt", "\ufeff" + text.replace("\n", newline))
    assert small(tmp_path / "text.txt", "--out", tmp_path / "o") == 0
    train, val, test = texts(tmp_path / "o")
    assert sum(map(len, (train, val, test))) == 3 + 1  # one end
    words = "".join(chain(train, val, test)).split()
    assert sorted(words) == sorted(text.split())
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
    assert small(tmp_path / "library", "--out", tmp_path / "o") == 0
    assert sum(map(len, texts(tmp_path / "o"))) == 3 + len(files) - 1  # one is empty


def test_a_file_of_several_documents(tmp_path):
    stories = [some_text(40, 40 * i) for i in range(200)]
    write(tmp_path / "s.txt", "\n<|end|>\n".join(stories))
    options = ["--out", tmp_path / "o", "--separator=<|end|>"]
    assert small(tmp_path / "s.txt", *options) == 0
    parts = texts(tmp_path / "o")
    assert sum(map(len, parts)) == 3 + len(stories)
    for document in chain(*parts):  # or pieces of some, from blocks for different parts
        assert "<|" not in document
        found = itertools.pairwise(numbers(document))
        assert all(a // 40 == b // 40 for a, b in found if b == a + 1)


@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=5),
    st.integers(1, 5000),
    st.integers(1, 2000),
)
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
    jobs = list(source.jobs(shard_bytes))
    spans = sorted(span[:3] for _, row in jobs for span in row)
    assert [(path, byte) for path, a, b in spans for byte in range(a, b)] == [
        (path, byte) for path, size in zip(paths, sizes, strict=True) for byte in range(size)
    ]
    for name in ("val", "test"):
        n_bytes = sum(b - a for job, row in jobs if job.startswith(name) for _, a, b, _ in row)
        assert 0 < n_bytes <= min(most, sum(sizes) / 10)


def test_the_parts_and_the_sample_come_from_all_over_the_text(tmp_path):
    path = write(tmp_path / "t.txt", "".join(f"w{i:06} " for i in range(900_000)))  # 7 MB
    source = prepare.Files(prepare.parse_arguments([str(path), "--out=o", "--val-mb=.7"]))
    found = {
        name: numbers("".join(text for span in row for text, _ in prepare.read_documents(*span)))
        for name, row in source.parts.items()
    }
    assert sorted(chain(*found.values())) == list(range(900_000))
    sample = list(source.sample(3_000_000))
    assert sum(map(len, sample)) == pytest.approx(3_000_000, abs=100)
    found["sample"] = numbers("".join(sample))
    assert {*found["sample"]} <= {*found["train"]}
    for part in found.values():  # in several pieces, the first and the last far from each other
        pieces = sum(b - a > 1 for a, b in itertools.pairwise(part))
        assert pieces >= 2 and max(part) - min(part) > 300_000


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
    assert small("hf:a/b", "--out", tmp_path / "o", *choices) == 0
    assert hub.asked == ("a/b", "large", "some")
    tokenizer, found = tokens(tmp_path / "o")
    assert found["val"] == documents(tokenizer, stories[::100])
    assert found["test"] == documents(tokenizer, stories[50::100])
    assert found["train"] == documents(tokenizer, [s for i, s in enumerate(stories) if i % 50])
    assert small("hf:a/b", "--out", tmp_path / "less", "--val-mb=.0001", *choices) == 0
    tokenizer, found = tokens(tmp_path / "less")
    assert found["val"] == documents(tokenizer, stories[:1])
    assert found["train"] == documents(tokenizer, stories[1:50] + stories[51:])
    assert small("hf:a/b", "--out", tmp_path / "few", "--limit-mb=.015", *choices) == 0
    longest = max(len(story.encode("utf-8")) for story in stories)
    assert 15_000 <= sum(open_tokens(tmp_path / "few", PARTS)[4:]) < 15_000 + longest


def test_what_was_read_before_the_network_failed_is_kept(tmp_path, monkeypatch, capsys):
    rows = [{"text": some_text(100, seed)} for seed in range(60)]
    Rows(monkeypatch, rows[:45], OSError("no network"))
    options = ["hf:x", "--out", tmp_path / "o", "--sample-mb=.001"]
    assert small(*options) == 2
    assert "no network" in capsys.readouterr().err
    assert len(read_manifest(tmp_path / "o")["shards"]) >= 2
    Rows(monkeypatch, rows)
    assert small(*options) == 0
    tokenizer, found = tokens(tmp_path / "o")
    assert found["train"] == documents(tokenizer, [r["text"] for r in rows[1:50] + rows[51:]])


# -- going on, starting anew


def test_after_kill_9_it_goes_on(tmp_path):
    """The program with its worker processes: none lives on, and nothing is done twice."""
    write(tmp_path / "text.txt", some_text(200_000))
    options = ["--shard-mb=.02", "--workers=2", "--vocab-size=300", "--sample-mb=.1"]
    whole, killed = (
        [sys.executable, "prepare.py", tmp_path / "text.txt", "--out", tmp_path / name, *options]
        for name in ("whole", "killed")
    )
    subprocess.run(whole, cwd=ROOT, check=True, capture_output=True)
    process = subprocess.Popen(killed, cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list((tmp_path / "killed").glob("*.bin"))) < 5:
        time.sleep(0.002)
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert psutil.wait_procs(workers, timeout=20)[1] == []
    first = [shard["file"] for shard in read_manifest(tmp_path / "killed")["shards"]]
    (tmp_path / "killed" / first.pop()).unlink()  # and something has happened to one of them
    (tmp_path / "killed" / "train-000000.bin.1.tmp").touch()
    times = [(tmp_path / "killed" / name).stat().st_mtime_ns for name in first]
    subprocess.run(killed, cwd=ROOT, check=True, capture_output=True)
    assert times == [(tmp_path / "killed" / name).stat().st_mtime_ns for name in first]
    contents = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("whole", "killed")
    ]
    assert contents[0] == contents[1] and 0 < len(first) < len(contents[0]) - 2


CHANGES = {
    "file": ["--sample-mb=7", "--shard-mb=5", "--val-mb=2", "--separator=And", "--vocab-size=299"],
    "hf:x": ["--column=a", "--config=a", "--split=a", "--limit-mb=2"],
}


@pytest.mark.parametrize("kind", CHANGES)
def test_another_text_or_option_needs_a_restart(kind, tmp_path, monkeypatch, capsys):
    def contents():
        return {path: path.read_bytes() for path in (tmp_path / "o").iterdir()}

    Rows(monkeypatch, [{"text": some_text(30, i), "a": "x"} for i in range(60)])
    path = write(tmp_path / "t.txt", some_text(3000))
    source = path if kind == "file" else kind
    assert small(source, "--out", tmp_path / "o") == 0
    before = contents()
    for option in CHANGES[kind]:
        assert small(source, "--out", tmp_path / "o", option) == 2
        assert "--restart" in capsys.readouterr().err
    write(path, some_text(3000, 1))
    assert small(path, "--out", tmp_path / "o") == 2
    assert small(path, "--out", tmp_path / "o", "--restart", "--vocab-size=5") == 2
    assert contents() == before
    assert small(path, "--out", tmp_path / "o", "--restart") == 0
    assert contents() != before


@pytest.fixture
def says(capsys, tmp_path):
    """says(message, *arguments): prepare.py refuses them with this, in its last line."""

    def says(message, *arguments):
        assert small(*arguments, "--out", tmp_path / "o") == 2
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
    assert small(path, "--out", tmp_path / "o", "--restart") == 0
    assert run(path, "--out", path / "below") == 2


DATA_SETS = {
    "text': --column story or title": [{"id": 1, "story": "x", "title": "y"}],
    "there is no other": [{"text": [{"role": "x"}], "id": 1}],
    "too little text": [{"text": "x y z"}],
    "is missing: a, b (to choose: --config": ValueError("Config name\nis missing: a, b"),
}


@pytest.mark.parametrize("message", DATA_SETS)
def test_a_data_set_without_text_to_train_on_gets_one_line(message, says, monkeypatch):
    rows = DATA_SETS[message]
    Rows(monkeypatch, *([[], rows] if isinstance(rows, ValueError) else [rows]))
    says(message, "hf:x")
