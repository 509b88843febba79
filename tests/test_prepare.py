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
from files import UserError
from shards import MANIFEST, open_tokens, read_manifest

ROOT = Path(__file__).parent.parent
WORDS = re.split(" ", "And the sons of Noah, that went forth; it's 40 days' rain — über Ψ ★ 大地\n")
TOKENIZER = BPETokenizer.train(" ".join(WORDS) * 50, 400, (prepare.END_OF_TEXT, MASK))


def some_text(n_words, seed=0):
    draw = random.Random(seed)
    ends = ["", " ", " ", " \n", "\n\n"]
    return "".join(draw.choice(WORDS) + draw.choice(ends) for _ in range(n_words))


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
    found, names = {}, ("train", "val", "test")
    tokenizer, *parts = open_tokens(folder, names)
    end = tokenizer.special_ids[prepare.END_OF_TEXT]
    for name, part, n_bytes in zip(names, parts[:3], parts[3:], strict=True):
        found[name] = [int(i) for i in part[:]]
        assert len(tokenizer.decode_bytes(i for i in found[name] if i != end)) == n_bytes
    return tokenizer, found


def assert_parts_are(texts, folder, *arguments):
    """The parts, in the places where they were cut out, are the texts' tokens, each just once."""
    tokenizer, found = tokens(folder)
    arguments = prepare.parse_arguments([str(a) for a in ("--val-mb=.003", *arguments)])
    pieces = []
    for name, row in prepare.Files(arguments).parts.items():
        of_part = [
            [i for text, ends in prepare.read_documents(*span)
               for i in (documents(tokenizer, [text]) if ends else tokenizer.encode(text))]
            for span in row
        ]  # fmt: skip
        assert [*chain(*of_part)] == found[name] != []
        pieces += [(path, start, ids) for (path, start, *_), ids in zip(row, of_part, strict=True)]
    assert [*chain(*(ids for *_, ids in sorted(pieces)))] == documents(tokenizer, texts)
    return tokenizer, found


def documents(tokenizer, texts):
    """The ids of all, an end after each."""
    end = tokenizer.special_ids[prepare.END_OF_TEXT]
    return [i for text in texts for i in (*tokenizer.encode(text), end)]


# -- cutting


PARTS = st.lists(
    st.sampled_from([*WORDS, " ", "  ", "\n", "\r\n", "\t", "x" * 70, "|", "<|>", "\ufeff"])
)


@given(PARTS, st.integers(0, 200))
def test_a_cut_changes_no_token(parts, position):
    data = "".join(parts).encode("utf-8")
    cut = prepare.find_cut(io.BytesIO(data), position, len(data), "")
    assert min(position, len(data)) <= cut <= len(data)
    one, other = data[:cut].decode("utf-8"), data[cut:].decode("utf-8")  # no character is cut
    assert not (one.endswith("\r") and other.startswith("\n"))
    if re.search("[!-~]$", one) and re.match("[ \n]", other):
        assert TOKENIZER.encode(one) + TOKENIZER.encode(other) == TOKENIZER.encode(one + other)


@given(
    PARTS,
    st.lists(st.integers(0, 300)),
    st.integers(1, 50),
    st.sampled_from(["", "|", "<|>", "★|"]),
)
def test_documents_are_the_text_in_whatever_parts_it_is_read(parts, places, block, separator):
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "t.txt", "\ufeff" + "".join(parts))
        size = path.stat().st_size
        places = sorted({0, size, *(place for place in places if place < size)})
        found = [
            document
            for start, end in itertools.pairwise(places)
            for document in prepare.read_documents(path, start, end, separator, block)
        ]
    text = "".join(parts).replace("\r\n", "\n")
    expected = re.split(rf"\n*{re.escape(separator)}\n*", text) if separator else [text]
    if not expected[-1]:
        expected.pop()
    joined = "".join(document + "\0" * ends for document, ends in found)
    assert joined == "".join(document + "\0" for document in expected)


def test_a_cut_in_a_separator_leaves_the_documents_as_they_are(tmp_path):
    stories = [some_text(12, seed).strip("\n") for seed in range(8)]
    path = write(tmp_path / "t.txt", "\n<|endoftext|>\n".join(stories))
    size = path.stat().st_size
    for place in range(size):
        found = [
            document
            for start, end in ((0, place), (place, size))
            for document in prepare.read_documents(path, start, end, "<|endoftext|>")
        ]
        joined = "".join(text + "\0" * ends for text, ends in found)
        assert joined == "".join(story + "\0" for story in stories)


# -- files


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_file_becomes_the_tokens_of_its_text(newline, tmp_path, capsys):
    text = some_text(9000)
    write(tmp_path / "text.txt", "\ufeff" + text.replace("\n", newline))
    assert small(tmp_path / "text.txt", "--out", tmp_path / "o") == 0
    arguments = tmp_path / "text.txt", "--out", tmp_path / "o"
    tokenizer, found = assert_parts_are([text], tmp_path / "o", *arguments)
    assert len(list((tmp_path / "o").glob("*.bin"))) > 8
    end = tokenizer.special_ids[prepare.END_OF_TEXT]
    for name in ("val", "test"):
        ids = [i for i in found[name] if i != end]
        assert len(tokenizer.decode_bytes(ids)) == pytest.approx(3000, abs=400)
    assert tokenizer.mask_id == tokenizer.vocab_size - 1 == 299
    assert "now: python train.py --data" in capsys.readouterr().out


def test_a_folder_is_documents_in_order(tmp_path):
    texts = ["\n\n" + some_text(300, 1), "", some_text(2000, 2), some_text(10, 3)]
    for i, text in enumerate(texts):
        write(tmp_path / "library" / str(i % 2) / f"{i}.txt", text)
    (tmp_path / "library" / "a folder.txt").mkdir()
    if sys.platform == "linux":  # any bytes are a name there
        write(tmp_path / "library" / os.fsdecode(b"z\xe9.txt"), "the end")
        texts.append("the end")
    assert small(tmp_path / "library", "--out", tmp_path / "o") == 0
    order = [texts[i] for i in (0, 2, 1, 3, *range(4, len(texts))) if texts[i]]
    assert_parts_are(order, tmp_path / "o", tmp_path / "library", "--out=o")


def test_a_file_of_several_documents(tmp_path):
    stories = [some_text(40, seed).strip("\n") for seed in range(200)]
    write(tmp_path / "s.txt", "\n<|endoftext|>\n".join(stories))
    options = ["--out", tmp_path / "o", "--separator=<|endoftext|>"]
    assert small(tmp_path / "s.txt", *options) == 0
    tokenizer, _ = assert_parts_are(stories, tmp_path / "o", tmp_path / "s.txt", *options)
    assert b"endoftext" not in b"".join(tokenizer.token_bytes[:-2])


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


def test_the_parts_come_from_all_over_the_text(tmp_path):
    path = write(tmp_path / "t.txt", "x" * 1_000_000)
    parts = prepare.Files(prepare.parse_arguments([str(path), "--out=o", "--val-mb=.04"])).parts
    for name in ("val", "test"):  # blocks of 5 kB, not one long piece
        assert len(parts[name]) >= 7 and prepare.length(parts[name]) == 40_000
        assert parts[name][-1][1] - parts[name][0][1] > 300_000


def test_the_sample_is_spread_over_the_training_text_alone(tmp_path):
    path = write(tmp_path / "t.txt", "".join(f"w{i:06} " for i in range(900_000)))  # 7 MB
    source = prepare.Files(prepare.parse_arguments([str(path), "--out=o", "--val-mb=.7"]))

    def numbers(texts):
        return {int(n) for text in texts for n in re.findall(r"w(\d{6})", text)}

    held_back, training = (
        numbers(
            text
            for name in names
            for span in source.parts[name]
            for text, _ in prepare.read_documents(*span)
        )
        for names in (("val", "test"), ("train",))
    )
    assert sorted(held_back | training) == list(range(900_000)) and not held_back & training
    parts = list(source.sample(3_000_000))
    assert sum(map(len, parts)) == pytest.approx(3_000_000, abs=100)
    found = numbers(parts)
    assert found <= training and min(found) < 100_000 and max(found) > 800_000
    assert 4 <= len({n // 100_000 for n in found}) <= 9


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


def test_a_stream_keeps_two_documents_in_a_hundred_back(tmp_path, monkeypatch):
    stories = [some_text(40, seed) for seed in range(500)]
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
    assert found["test"] == documents(tokenizer, stories[50:51])
    assert found["train"] == documents(tokenizer, stories[1:50] + stories[51:])
    assert small("hf:a/b", "--out", tmp_path / "few", "--limit-mb=.015", *choices) == 0
    longest = max(len(story.encode("utf-8")) for story in stories)
    sizes = open_tokens(tmp_path / "few", ("train", "val", "test"))[4:]
    assert 15_000 <= sum(sizes) < 15_000 + longest


def test_what_was_read_before_the_network_failed_is_kept(tmp_path, monkeypatch, capsys):
    rows = [{"text": some_text(200, seed)} for seed in range(60)]
    Rows(monkeypatch, rows[:45], OSError("no network"))
    options = ["hf:x", "--out", tmp_path / "o", "--sample-mb=.001"]
    assert small(*options) == 2
    assert "no network" in capsys.readouterr().err
    assert len(read_manifest(tmp_path / "o")["shards"]) >= 2
    Rows(monkeypatch, rows)
    assert small(*options) == 0
    tokenizer, found = tokens(tmp_path / "o")
    assert found["train"] == documents(tokenizer, [r["text"] for r in rows[1:50] + rows[51:]])


DATA_SETS = {
    "another column": ([{"id": 1, "story": "x", "title": "y"}], "text': --column story or title"),
    "no column of text": ([{"text": [{"role": "x"}], "id": 1}], "there is no other"),
    "only one document": ([{"text": "x y z"}], "too little text"),
    "no document": ([{"text": None}], "too little text"),
    "no configuration": (
        ValueError("Config name\nis missing: a, b"),
        "is missing: a, b (to choose: --config and",
    ),
}


@pytest.mark.parametrize("kind", DATA_SETS)
def test_a_data_set_without_text_to_train_on_is_an_error(kind, tmp_path, monkeypatch, capsys):
    rows, message = DATA_SETS[kind]
    Rows(monkeypatch, *([[], rows] if isinstance(rows, ValueError) else [rows]))
    assert small("hf:x", "--out", tmp_path / "o") == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


# -- going on, starting anew


def test_after_kill_9_it_goes_on(tmp_path):
    """The program with its worker processes: none lives on, and nothing is done twice."""
    write(tmp_path / "text.txt", some_text(400_000))
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


CHANGES = ["--sample-mb=7", "--shard-mb=5", "--val-mb=2", "--separator=And", "--vocab-size=299"]
CHANGES += ["--column=a", "--config=a", "--split=a", "--limit-mb=2"]


@pytest.mark.parametrize("option", CHANGES)
def test_another_text_or_option_needs_a_restart(option, tmp_path, monkeypatch, capsys):
    Rows(monkeypatch, [{"text": some_text(30, i), "a": "x"} for i in range(60)])
    path = write(tmp_path / "t.txt", some_text(3000))
    source = "hf:x" if option in CHANGES[-4:] else path
    assert small(source, "--out", tmp_path / "o") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "o").iterdir()}
    assert small(source, "--out", tmp_path / "o", option) == 2
    assert "--restart" in capsys.readouterr().err
    write(path, some_text(3000, 1))
    assert small(path, "--out", tmp_path / "o") == 2
    assert small(path, "--out", tmp_path / "o", "--restart", "--vocab-size=5") == 2
    assert before == {path: path.read_bytes() for path in (tmp_path / "o").iterdir()}
    assert small(path, "--out", tmp_path / "o", "--restart") == 0
    assert before != {path: path.read_bytes() for path in (tmp_path / "o").iterdir()}


def test_mistakes_get_one_line(tmp_path, capsys):
    def says(message, *arguments):
        assert run(*arguments) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("prepare.py: ") and message in error

    text, out = tmp_path / "text.txt", f"--out={tmp_path / 'o'}"
    says("cannot be read", text, out)
    says("no .txt file", tmp_path, out)
    says("prepare.py hf:OWNER/NAME", "https://a.b/c.txt", out)
    if Path("/dev/null").exists():
        says("not a plain file", "/dev/null", out)
    says("too little text", write(text, ""), out)
    says("too little text", write(text, "hello"), out)
    says("no '%%'", write(text, some_text(3000)), out, "--separator=%%")
    says("too small", text, out, "--vocab-size=257")
    says("cannot be", text, "--out", text / "below")
    says("pip install datasets", "hf:some/stories", out)
    for encoding, message in (("utf-16", "UTF-16"), ("utf-16-le", "NUL"), ("latin-1", "byte 8")):
        text.write_bytes("a text: äöü ".encode(encoding) * 99)
        says(message, text, out)
    text.write_bytes(b"\x1f\x8b\x08" + bytes(99))
    says("gzip", text, out)
    (tmp_path / "o").mkdir(exist_ok=True)
    (tmp_path / "o" / MANIFEST).write_text("{}")
    says("damaged", write(text, some_text(3000)), out)
    assert run(text, out, "--restart") == 0
