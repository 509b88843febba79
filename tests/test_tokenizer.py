"""The tokenizer: round trips, an independent implementation, and no mask from plain text."""

import re
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, trainers

from bpe_tokenizer import (
    MASK,
    PATTERN,
    PIECES,
    BPETokenizer,
    Cache,
    UserError,
    _cut,
    _escape,
    _to_bytes,
    read_text,
)

TEXT = (
    "In the beginning God created the heaven and the earth. And the earth was without form, and "
    "void; and darkness was upon the face of the deep. Ärger, naïve café, 12345 — the end.\n"
) * 3


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train(TEXT, 330)


ANY_TEXT = st.text() | st.lists(
    st.sampled_from(
        [MASK, "<|", "|>", "mask", "a" * 70, " ", "\n", "\ud800", "\U0001f642", "\0", "’s"]
    )
    | st.text(max_size=3)
).map("".join)


@settings(max_examples=10_000, deadline=None)
@given(text=ANY_TEXT)
def test_text_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.mask_id not in ids
    assert tokenizer.decode_bytes(ids) == text.encode("utf-8", "surrogatepass")


@settings(max_examples=300, deadline=None)
@given(data=st.binary())
def test_bytes_round_trip(tokenizer, data):
    ids = tokenizer.encode(data)
    assert tokenizer.decode_bytes(ids) == data
    assert tokenizer.decode(ids) == data.decode("utf-8", "replace")


def test_merges_equal_hugging_face():
    pieces = re.findall(PATTERN, TEXT)
    letter = [chr(0x100 + b) for b in range(256)]  # one letter for each byte, in the order of bytes
    words = ["".join(letter[b] for b in piece.encode()) for piece in pieces]
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=letter, show_progress=False)
    theirs = Tokenizer(models.BPE())
    theirs.train_from_iterator(words, trainer)
    ours = BPETokenizer.train(TEXT, theirs.get_vocab_size() + 1)
    spelled = ["".join(letter[b] for b in token) for token in ours.token_bytes[:-1]]
    assert {token: i for i, token in enumerate(spelled)} == theirs.get_vocab()
    for word, piece in zip(words, pieces, strict=True):
        assert ours.encode(piece) == theirs.encode(word).ids


@given(text=st.text("ab c\n", max_size=200) | ANY_TEXT)
def test_merges_equal_recounting(text):
    """Correcting counts gives what counting anew gives, runs of one letter included."""
    pieces = Counter(re.findall(PATTERN, _escape(text)))
    words = {tuple(_to_bytes(piece)): n for piece, n in pieces.items()}
    merges = []
    for new in range(256, 300):
        counts = Counter()
        for word, n in words.items():
            for pair in pairwise(word):
                counts[pair] += n
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        merged = Counter()
        for word, n in words.items():
            out, i = [], 0
            while i < len(word):
                hit = word[i : i + 2] == best
                out.append(new if hit else word[i])
                i += 2 if hit else 1
            merged[tuple(out)] += n
        words = merged
    ours = BPETokenizer.train(text, 301)
    assert ours.merges == merges
    assert ours.encode(text) == BPETokenizer(merges).encode(text)  # with what learning remembers


@pytest.mark.parametrize("size", [1, 7, 4000])
@given(text=st.text("ab 1.'s\n\t\u3000", max_size=300) | ANY_TEXT)
def test_cutting_at_spaces_changes_nothing(size, tokenizer, text):
    pieces = re.findall(PATTERN, _escape(text))
    again = []
    for some, words in _cut(_escape(text), size):
        again += some
        again += [piece for word in words for piece in PIECES(" " + word)]
    assert again == pieces
    ids = tokenizer.encode(text)
    assert ids == [i for piece in pieces for i in tokenizer._encode_piece(piece)]


def test_pieces():
    """The cuts that a reader of the pattern would expect, written out."""
    assert PIECES("it’s  40 days' _x\r\n\r\nnaïve 12") == [
        "it", "’s", " ", " 40", " days", "'", " _", "x", "\r\n\r", "\n", "naïve", " 12",
    ]  # fmt: skip
    assert PIECES("we'll say 'tis" + "a" * 70) == [
        "we",
        "'ll",
        " say",
        " '",
        "tis" + "a" * 61,
        "a" * 9,
    ]


def test_the_cache_starts_afresh_when_full():
    asked = []
    cache = Cache(lambda text: (asked.append(text), len(text)), limit=2)
    for text in ("a", "b", "a", "c", "x" * 101, "x" * 101):
        cache[text]
    assert asked == ["a", "b", "c", "x" * 101, "x" * 101] and list(cache) == ["c"]


def test_a_text_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert read_text(path) == "a\r\nb"
    path.write_bytes(b"\xef\xbb\xbfok\n\xff")
    with pytest.raises(UserError, match=r"byte 6 \(line 2\)"):
        read_text(path)


def test_the_longest_piece_is_still_a_token(tokenizer):
    wide = BPETokenizer.train((" " + "\U0001f642" * 64 + "\n") * 9, 400)
    assert max(map(len, wide.token_bytes)) == 1 + 64 * 4
    assert BPETokenizer.from_json(wide.to_json()) == wide != tokenizer


def test_no_text_holds_a_mask(tokenizer):
    ids = tokenizer.encode(f"a{MASK}")
    assert tokenizer.mask_id not in ids and tokenizer.decode(ids) == f"a{MASK}"


def test_save_and_load(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    assert BPETokenizer.load(path).encode(TEXT) == tokenizer.encode(TEXT)
    path.write_text(path.read_text(encoding="utf-8")[:-40], encoding="utf-8")
    with pytest.raises(UserError, match="damaged"):
        BPETokenizer.load(path)


def test_vocabulary_too_small():
    with pytest.raises(UserError, match="257"):
        BPETokenizer.train(TEXT, 256)
