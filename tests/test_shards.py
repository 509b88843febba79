"""Token files: they read as one array, and what has changed under a reader is no traceback."""

import json
import os
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bpe_tokenizer import BPETokenizer
from corpus import windows
from files import UserError
from shards import FORMAT, MANIFEST, open_tokens, token_dtype

TOKENIZER = BPETokenizer.train("the cat and the hat " * 9, 270)


def write_tokens(folder, lengths, dtype="<u2"):
    """A folder of tokens 0, 1, 2 ... of which the last file is for validation. Returns them all."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens, entries, start = np.arange(sum(lengths)).astype(dtype), [], 0
    for i, length in enumerate(lengths):
        name = f"{'val' if i == len(lengths) - 1 else 'train'}-{i:06}.bin"
        tokens[start : start + length].tofile(folder / name)
        entries.append({"file": name, "tokens": length, "bytes": 2 * length, "sha256": str(i)})
        start += length
    manifest = {"format": FORMAT, "complete": True, "settings": {}, "shards": entries}
    manifest["tokenizer"] = TOKENIZER.to_json()
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return tokens


@given(st.lists(st.integers(0, 5), min_size=1), st.integers(-3, 30), st.integers(-3, 30))
def test_shards_read_as_one_array(lengths, start, stop):
    with tempfile.TemporaryDirectory() as folder:
        whole = write_tokens(Path(folder), [*lengths, 3])[:-3]
        tokenizer, train, val, train_bytes, val_bytes = open_tokens(folder)
        assert (tokenizer, len(train), len(val)) == (TOKENIZER, len(whole), 3)
        assert (train_bytes, val_bytes) == (2 * len(whole), 6)
        assert train[start:stop].tolist() == whole[start:stop].tolist()
        assert train[start:stop].dtype == whole.dtype


def test_windows_on_the_disk_are_windows_in_memory(tmp_path):
    whole = write_tokens(tmp_path, [50, 1, 60, 9])[:-9]
    starts = np.array([0, 41, 42, 47, 50, 51, 101])
    train = open_tokens(tmp_path)[1]
    assert torch.equal(windows(train, starts, 10), windows(whole, starts, 10))


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
def test_there_may_be_more_shards_than_files_may_be_open(tmp_path):
    import resource

    whole = write_tokens(tmp_path, [3] * 200)[:-3]
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (60, usual[1]))
    try:
        assert open_tokens(tmp_path)[1][:].tolist() == whole.tolist()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)


def test_more_than_65536_ids_take_four_bytes():
    assert token_dtype(65_536).itemsize == 2 and np.array([65_535], token_dtype(65_536)) == 65_535
    assert token_dtype(65_537).itemsize == 4 and np.array([65_536], token_dtype(65_537)) == 65_536


def replace(path):
    path.with_suffix(".new").write_bytes(path.read_bytes()[::-1])
    path.with_suffix(".new").replace(path)


CHANGES = {
    "it vanishes": lambda path: path.unlink(),
    "it shrinks": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "another takes its place": replace,
    "it is written to": lambda path: (path.write_bytes(path.read_bytes()), os.utime(path, (1, 1))),
    "it is a folder now": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_tokens_that_change_under_a_reader_get_one_line(change, tmp_path):
    write_tokens(tmp_path, [5, 6, 3])
    train = open_tokens(tmp_path)[1]
    CHANGES[change](tmp_path / "train-000001.bin")
    assert train[0:5].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match=r"train-000001\.bin: [^\n]*$"):
        train[3:6]


def test_the_test_part_is_opened_only_when_asked_for(tmp_path):
    write_tokens(tmp_path, [5, 6, 3])
    (tmp_path / "train-000001.bin").rename(tmp_path / "test-000000.bin")
    manifest = (tmp_path / MANIFEST).read_text().replace("train-000001", "test-000000")
    (tmp_path / MANIFEST).write_text(manifest)
    assert [part[:].tolist() for part in open_tokens(tmp_path)[1:3]] == [[*range(5)], [11, 12, 13]]
    tokenizer, test, test_bytes = open_tokens(tmp_path, ["test"])
    assert (tokenizer, test[:].tolist(), test_bytes) == (TOKENIZER, [*range(5, 11)], 12)


def edit(folder, **changes):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | changes))


DAMAGES = {
    "cut short": lambda f: (f / "train-000000.bin").write_bytes(b"12"),
    "a file gone": lambda f: (f / "train-000000.bin").unlink(),
    "no manifest": lambda f: (f / MANIFEST).unlink(),
    "empty manifest": lambda f: (f / MANIFEST).write_bytes(b""),
    "not JSON": lambda f: (f / MANIFEST).write_bytes(b"\x80\x02}q"),
    "deep JSON": lambda f: (f / MANIFEST).write_text("[" * 100_000),
    "no object": lambda f: (f / MANIFEST).write_text("[1]"),
    "another version": lambda f: edit(f, format="mdlm-tokens 2"),
    "a damaged tokenizer": lambda f: edit(f, tokenizer="{}"),
    "not finished": lambda f: edit(f, complete=False),
    "a file elsewhere": lambda f: edit(f, shards=[{"file": "../train-000000.bin", "tokens": 5}]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tokens_get_one_line(damage, tmp_path):
    write_tokens(tmp_path, [5, 3])
    write_tokens(tmp_path / "o", [5, 3])
    DAMAGES[damage](tmp_path / "o")
    with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path))}[^\n]*prepare[^\n]*$"):
        open_tokens(tmp_path / "o")
