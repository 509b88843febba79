"""Files: texts are read alike on every system, mistakes get one line, crashes leave no halves."""

import os
import random
import re
import subprocess
import sys
import time

import pytest

from conftest import ROOT
from files import UserError, check_writable, read_text, remove_half_written, write_atomically


def test_a_text_is_the_same_whatever_ends_its_lines(tmp_path):
    for data in (b"a\n\nb c\n", b"a\r\n\r\nb c\r\n", b"a\r\rb c\r", b"\xef\xbb\xbfa\n\r\nb c\n"):
        (tmp_path / "text.txt").write_bytes(data)
        assert read_text(tmp_path / "text.txt") == "a\n\nb c\n"


NOT_TEXTS = {
    "not UTF-8 at byte 1: save it as plain text in UTF-8": "l\xe0 ".encode("latin-1"),
    "NUL bytes": "text".encode("utf-16-le"),
    "this is UTF-16": "text".encode("utf-16"),
    "this is gzip": b"\x1f\x8b\x08\0",
    "this is RTF": b"{\\rtf1 text}",
    "no text in it": b" \n",
}


@pytest.mark.parametrize("message", NOT_TEXTS)
def test_what_is_no_plain_text_is_named(message, tmp_path):
    (tmp_path / "text.txt").write_bytes(NOT_TEXTS[message])
    with pytest.raises(UserError, match=rf"text\.txt: [^\n]*{message}[^\n]*$"):
        read_text(tmp_path / "text.txt")


def test_markup_is_noted(tmp_path, capsys):
    for name in ("a.HTML", "a.jsonl", "a.txt"):
        (tmp_path / name).write_text("<p>text")
        assert read_text(tmp_path / name) == "<p>text"
        assert ("learned" in capsys.readouterr().err) == (name != "a.txt")


def test_what_is_no_file_is_named(tmp_path):
    cases = {"hf:some/stories": "prepare.py hf:", "https://a.b/c.txt": "prepare.py"}
    cases |= {tmp_path / "missing.txt": "No such file", tmp_path: "not a plain file"}
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        cases[tmp_path / "pipe"] = "not a plain file"
    for path, message in cases.items():
        with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: [^\n]*{message}[^\n]*$"):
            read_text(path)


def test_only_plain_files_are_replaced_and_links_stay_links(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    try:
        link.symlink_to(target)
    except OSError:
        pytest.skip("no links for this user")  # on Windows
    check_writable(link)
    assert target.read_bytes() == b"old"
    write_atomically(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"
    for place in (tmp_path, target / "below"):
        for write in (check_writable, lambda path: write_atomically(path, b"new")):
            with pytest.raises(UserError, match=rf"^{re.escape(str(place))}: cannot be written"):
                write(place)
    assert set(tmp_path.iterdir()) == {target, link}


@pytest.mark.skipif(os.name == "nt", reason="other rules for links")
def test_a_file_is_replaced_as_a_whole_and_not_written_into(tmp_path):
    path, held = tmp_path / "file", tmp_path / "held"
    write_atomically(path, b"old")
    held.hardlink_to(path)  # as a program that still reads the old file
    write_atomically(path, b"new")
    assert (path.read_bytes(), held.read_bytes()) == (b"new", b"old")


def test_after_kill_9_a_file_is_the_old_or_the_new_one(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from files import write_atomically\n"
        "while True:\n"
        "    for letter in b'ab': write_atomically(sys.argv[2], bytes([letter]) * 1_000_000)"
    )
    path, delay = tmp_path / "file", random.Random(0)
    for _ in range(8):
        process = subprocess.Popen([sys.executable, "-c", code, str(ROOT), str(path)])
        while not path.exists():
            time.sleep(0.01)
        time.sleep(0.2 * delay.random())
        process.kill()
        process.wait()
        assert path.read_bytes() in (b"a" * 1_000_000, b"b" * 1_000_000)
    (tmp_path / "mine.tmp").touch()
    remove_half_written(tmp_path, lambda name: name.startswith("file."))
    assert {p.name for p in tmp_path.iterdir()} == {"file", "mine.tmp"}


@pytest.mark.parametrize(("encoding", "expected"), [("cp1252", b"?"), (None, "\u5c0f".encode())])
def test_what_a_console_lacks_is_no_error_and_pipes_get_utf8(encoding, expected):
    names = {"PYTHONIOENCODING": encoding} if encoding else {"LC_ALL": "C", "PYTHONUTF8": "0"}
    code = "import files; files.use_utf8(); print('\\u5c0f')"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | names, stdout=-1)
    assert run.stdout.split() == [expected]
