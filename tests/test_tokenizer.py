"""The tokenizer: against its simple form, against other implementations, on any text."""

import doctest
import json
import re
import unicodedata

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, trainers

import bpe_tokenizer
from bpe_tokenizer import MASK, PATTERN, BPETokenizer, find_words, split_into_words
from files import UserError

TEXT = (
    "In the beginning God created the heaven and the earth. And the earth was without form, and "
    "void; and darkness was upon the face of the deep. Ärger, naïve café, 12345 — the end.\n"
) * 3
WORDS = [  # in scripts and spellings whose letters carry marks
    "tiếng Việt quyển sách", "été déçu forêt", "ёлка йод чай", "हिन्दी भाषा किताब पढ़ना स्वतन्त्रता",
    "বাংলা ভাষা বই পড়া", "தமிழ் மொழி புத்தகம்", "తెలుగు భాష పుస్తకం నీళ్ళు", "മലയാളം ഭാഷ പുസ്തകം",
    "සිංහල භාෂාව පොත ශ්\u200dරී", "ภาษาไทย หนังสือ น้ำ", "ភាសាខ្មែរ សៀវភៅ ទឹក", "မြန်မာဘာသာ စာအုပ်",
    "שָׁלוֹם סֵפֶר מַיִם", "كِتَابٌ مَاءٌ می\u200cروم", "がっこう パン", "한국어 책 물", "𑄌𑄋𑄴𑄟𑄳𑄦 𑄞𑄌𑄴",
]  # fmt: skip
ODD = [MASK, "<|", "a" * 70, " ", "\n", "\ud800", "\U0001f642", "\0", "’s", "\u0301", "é", "हि"]
ANY_TEXT = st.text() | st.lists(st.sampled_from(ODD) | st.text(max_size=3)).map("".join)


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train(TEXT, 330)


@settings(max_examples=300)
@given(text=ANY_TEXT)
def test_text_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.mask_id not in ids  # no text holds a mask
    assert tokenizer.decode_bytes(ids) == text.encode("utf-8", "surrogatepass")
    assert tokenizer.decode(ids) == tokenizer.decode_bytes(ids).decode("utf-8", "replace")


@given(counts=st.dictionaries(st.text("abc", max_size=12) | st.text(), st.integers(1, 9)))
def test_the_fast_functions_return_what_the_simple_ones_return(counts):
    byte_counts = {word.encode("utf-8"): count for word, count in counts.items()}
    merges = bpe_tokenizer.learn_merges(byte_counts, 30)
    assert merges == bpe_tokenizer.learn_merges_simply(byte_counts, 30)
    for word in counts:
        ids = bpe_tokenizer.encode_simply(word.encode("utf-8"), merges)
        assert list(BPETokenizer(merges).encode_word(word)) == ids


def test_the_example_in_the_docstring():
    assert doctest.testmod(bpe_tokenizer) == (0, 1)


def test_merges_equal_hugging_face():
    words = find_words(TEXT)
    letter = [chr(0x100 + b) for b in range(256)]  # one letter for each byte, in the order of bytes
    spelled = ["".join(letter[b] for b in word.encode()) for word in words]
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=letter, show_progress=False)
    theirs = Tokenizer(models.BPE())
    theirs.train_from_iterator(spelled, trainer)
    ours = BPETokenizer.train(TEXT, theirs.get_vocab_size() + 1)
    tokens = ["".join(letter[b] for b in token) for token in ours.token_bytes[:-1]]
    assert {token: i for i, token in enumerate(tokens)} == theirs.get_vocab()
    for word, their_word in zip(words, spelled, strict=True):
        assert ours.encode(word) == theirs.encode(their_word).ids


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("line", WORDS, ids=lambda line: unicodedata.name(line[0]).split()[0])
def test_in_every_script_words_are_words(line, form):
    line = unicodedata.normalize(form, line)
    first, *others = line.split(" ")
    assert find_words(line) == [first, *(" " + word for word in others)]


def test_ids_equal_tiktoken():
    """Whose own tables say what a letter or a mark is."""
    text = TEXT + "\n".join(WORDS) + unicodedata.normalize("NFD", "\n".join(WORDS))
    ours = BPETokenizer.train(text, 700)
    ranks = {token: i for i, token in enumerate(ours.token_bytes[:-1])}
    theirs = tiktoken.Encoding("x", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    assert ours.encode(text) == theirs.encode_ordinary(text)


@pytest.mark.parametrize("size", [1, 7])
@given(text=st.text("ab 1.'s\n\t\u3000\u0301", max_size=300) | ANY_TEXT)
def test_every_character_is_in_one_word_wherever_a_text_is_cut(size, text):
    words = [word for some in split_into_words(text, size) for word in some]
    assert words == re.findall(PATTERN, text) and "".join(words) == text
    assert max(map(len, words), default=0) <= 65


def test_what_is_a_word():
    """The cuts that a reader of the pattern would expect, written out."""
    assert find_words("it’s  40 days' _x\r\n\r\nnaïve 12 ❤️! we'll 'tis" + "a" * 70) == [
        "it", "’s", " ", " 40", " days", "'", " _", "x", "\r\n\r", "\n", "naïve", " 12", " ❤️!",
        " we", "'ll", " '", "tis" + "a" * 61, "a" * 9,
    ]  # fmt: skip
    assert find_words("x" * 64 + "é") == ["x" * 64, "é"]
    assert find_words("葛\U000e0100飾 区") == ["葛\U000e0100飾", " 区"]  # with a variation selector


@given(text=ANY_TEXT)
def test_a_saved_tokenizer_is_the_same(text):
    tokenizer = BPETokenizer.train(text, 300)
    again = BPETokenizer.from_json(tokenizer.to_json())
    assert again == tokenizer and again.encode(text) == tokenizer.encode(text)
    assert again != BPETokenizer([(1, 2)]) and again != BPETokenizer(again.merges, ("<|other|>",))


DAMAGES = {
    "cut short": lambda whole: whole[:-40],
    "another format": lambda whole: whole.replace("bpe-tokenizer", "x"),
    "a merge of another token": lambda whole: whole.replace("[116, 104,", "[116, 105,"),
    "a merge of a token to come": lambda whole: whole.replace("[116, 104,", "[999, 104,"),
    "a negative id": lambda whole: whole.replace("[116, 104,", "[-140, 104,"),
    "tokens that fill the memory": lambda whole: json.dumps(
        json.loads(whole) | {"merges": [[97, 97, "aa"], *([i, i, "aa"] for i in range(256, 320))]}
    ),
    "no list of texts": lambda whole: whole.replace(f'["{MASK}"]', "[1]"),
    "no object": lambda whole: "[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_tokenizer_is_refused_in_one_line(damage, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tok.json")
    whole = (tmp_path / "tok.json").read_text(encoding="utf-8")
    (tmp_path / "tok.json").write_text(DAMAGES[damage](whole), encoding="utf-8")
    with pytest.raises(UserError, match=r"tok\.json: damaged, or none at all[^\n]*$"):
        BPETokenizer.load(tmp_path / "tok.json")


def test_commands(tmp_path, monkeypatch, capsys):
    def run(command):
        code = bpe_tokenizer.main(command.split())
        return code, *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the cat — the hat\n" * 9, encoding="utf-8")
    code, out, _ = run("train text.txt --vocab-size 265 --save tok.json")
    assert code == 0 and "tok.json: 265 tokens" in out
    _, ids, _ = run("encode tok.json the — cat")
    assert run(f"decode tok.json {ids}") == (0, "the — cat\n", "")
    assert run("show tok.json the cat")[1].startswith("the| c|at\n   258  'the'\n")
    mistakes = ["train missing.txt", "train .", "train tok.json --vocab-size 256"]
    mistakes += ["train text.txt --save text.txt/inside.json", "encode missing.json word"]
    mistakes += ["encode text.txt word", *(f"decode tok.json {ids}" for ids in ("x", "265", "-1"))]
    for command in mistakes:
        code, out, error = run(command)
        assert (code, out) == (2, "") and error.count("\n") == 1, command
