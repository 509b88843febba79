"""From a name or a path to text, and from text to tokens and windows of them."""

import hashlib
import http.client
import math
import os
import random
import re
import sys
import urllib.request
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from bpe_tokenizer import BPETokenizer
from files import UserError, read_text, write_atomically

try:
    import numpy as np

    from shards import Shards, open_tokens, token_dtype
except ModuleNotFoundError as error:  # the first thing a notebook meets in the wrong environment
    raise UserError(
        f"{sys.executable} has no {error.name}: choose the Python in .venv as the notebook's "
        "kernel, or activate .venv and start again (python run.py makes it)"
    ) from None

BIBLES = {  # package: translations into English that are in the public domain
    "kjv": "King James Version, 1769",
    "asv": "American Standard Version, 1901",
    "web": "World English Bible, 2000 (dedicated to the public domain)",
    "ylt": "Young's Literal Translation, 1898",
    "dar": "Darby, 1890",
    "bbe": "Bible in Basic English, 1949 (in the public domain in the United States)",
    "rwebster": "Webster, 1833, revised",
    "dr": "Douay-Rheims, 1899",
    "gb": "Geneva Bible, 1599",
    "roth": "Rotherham, 1902",
    "nheb": "New Heart English Bible, 2010 (dedicated to the public domain)",
    "leeser": "Leeser, 1853 (the Hebrew Bible)",
}
SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def load_text(name, folder="data"):
    """The text of a corpus: a name in BIBLES, "shakespeare", or the path of a UTF-8 file.

    A named corpus is written to `folder` when first used. Raises UserError if the file is missing,
    empty or not UTF-8, or if a download fails or brings other bytes than it should.
    """
    path = Path(folder) / f"{name}.txt"
    if name in BIBLES:
        text = "\n\n".join(bible_chapters(name)[0].values())
        data = text.encode("utf-8")
        if not path.exists() or path.stat().st_size != len(data):
            write_atomically(path, data)
        return text
    if name == "shakespeare" and not path.exists():
        write_atomically(path, shakespeare_bytes())
    return read_text(path if name == "shakespeare" else name)


def bible_chapters(translation="kjv"):
    """A Bible out of its package: {1001: "In the beginning ...", ...}, and {1001: 31, ...}.

    The key of a chapter is 1000 times the number of its book, plus its own; a line is a paragraph.
    The second dict holds the number of each chapter's last verse.
    """
    try:
        reader = import_module(f"pythonbible_{translation}.plain_text_readers_bible")
    except ModuleNotFoundError:
        packages = " ".join(f"pythonbible-{name}" for name in BIBLES)
        raise UserError(
            f"no translation {translation!r} here: pip install pythonbible-{translation} "
            f"(or, for all of them: pip install {packages})"
        ) from None
    text, starts, last = reader.bible.scripture_content, {}, {}
    for verse, start in reader.bible.verse_start_indices.items():
        starts.setdefault(verse // 1000, start)
        last[verse // 1000] = verse % 1000
    ends = [*starts.values(), len(text)][1:]
    chapters = {k: text[a:b].strip() for (k, a), b in zip(starts.items(), ends, strict=True)}
    # brackets mark words that the translators supplied; they are no part of the text
    plain = str.maketrans("", "", "[]{}")
    return {k: chapter.translate(plain) for k, chapter in chapters.items()}, last


def bible_parts(n):
    """(training, validation, test): as for the King James Bible, with n - 1 other translations.

    They add to the training text alone, and only such chapters as are training text in the King
    James Bible and end with the same verse there: no verse kept for validation or for the test is
    in the training text in other words.
    """
    chapters, last = bible_chapters()
    parts = split_text("\n\n".join(chapters.values()))
    known = {*parts[0].split("\n\n")}
    training, texts = {k for k in chapters if chapters[k] in known}, [parts[0].strip()]
    for name in list(BIBLES)[1:n]:
        others, its_last = bible_chapters(name)
        texts += [text for k, text in others.items() if k in training and its_last[k] == last[k]]
    return "\n\n".join(texts), *parts[1:]


def shakespeare_bytes():
    """Tiny Shakespeare (1.1 MB), downloaded and checked."""
    try:
        with urllib.request.urlopen(SHAKESPEARE_URL, timeout=30) as response:
            data = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"cannot download the Shakespeare corpus ({error}): is there a network? "
            f"Else save {SHAKESPEARE_URL} as data/shakespeare.txt"
        ) from None
    if hashlib.sha256(data).hexdigest() != SHAKESPEARE_SHA256:
        raise UserError(f"{SHAKESPEARE_URL} is not the file it should be (its SHA-256 differs)")
    return data


def usual_vocab_size(train_text):
    """A vocabulary that a text is long enough for: 512 to 8,192, about a token for 100 bytes."""
    return min(8192, max(512, 2 ** int(math.log2(len(train_text.encode("utf-8")) / 64))))


def split_text(text, seed=0):
    """(training text, validation text, test text): eight tenths, a tenth and a tenth.

    The text is cut into blocks of whole chapters, paragraphs or lines, at least 50 blocks of up to
    about 4,000 characters. Which of them are for validation, and which for the test, is drawn by
    lot. So all three parts come from the same books, and nobody has chosen them. The test text
    stays sealed: choose settings by the validation text, and open it for what is published alone.
    """
    size = min(4000, max(1, len(text) // 50))
    blocks = [""]
    for piece in pieces(text, size):
        if len(blocks[-1]) >= size:
            blocks.append("")
        blocks[-1] += piece
    numbers = random.Random(seed).sample(range(len(blocks)), len(blocks))
    tenth = round(len(blocks) / 10)
    parts = numbers[2 * tenth :], numbers[:tenth], numbers[tenth : 2 * tenth]
    return tuple("".join(blocks[i] for i in sorted(part)) for part in parts)


def pieces(text, size):
    """Cut a text after blank lines; what is much longer than `size` after lines; else anywhere."""
    for paragraph in re.split(r"(?<=\n\n)(?!\n)", text):
        short = len(paragraph) <= 4 * size
        for line in [paragraph] if short else paragraph.splitlines(keepends=True):
            step = size if len(line) > 4 * size else len(line) or 1
            yield from (line[i : i + step] for i in range(0, len(line), step))


def text_parts(name, folder="data"):
    """(training, validation, test text) of a corpus: see `load_text` and `split_text`.

    "bibles" is the King James Bible with eleven more translations to train on; "bibles-4", with
    three. Each is a package of its own. Raises UserError if one is missing.
    """
    if number := re.fullmatch(r"bibles(?:-(\d+))?", name):
        return bible_parts(int(number[1] or len(BIBLES)))
    return split_text(load_text(name, folder))


def is_named(name):
    """Whether a corpus is one of those that have a name: no file or folder of the user's."""
    return name in BIBLES or bool(re.fullmatch(r"shakespeare|bibles(-\d+)?", name))


def is_prepared(name):
    """Whether a corpus is a folder of tokens that prepare.py made."""
    return os.path.isdir(name)  # noqa: PTH112 (pathlib's raises errors for strange names)


def load_parts(name, folder="data", most=2_000_000):
    """(training text, validation text), to compare with. Of a folder of tokens, `most` of each."""
    if not is_prepared(name):
        return text_parts(name, folder)[:2]
    tokenizer, *parts = open_tokens(name)[:3]
    n_plain = tokenizer.vocab_size - len(tokenizer.special_ids)  # special tokens are not text
    ids = [part[:most] for part in parts]
    return tuple(tokenizer.decode(part[part < n_plain].tolist()) for part in ids)


@dataclass
class Corpus:
    """A tokenized text. `train` and `val` hold token ids: in memory, or in files on the disk."""

    tokenizer: BPETokenizer
    train: np.ndarray | Shards
    val: np.ndarray | Shards
    train_bytes: int  # length of the two texts in UTF-8, for bits per byte
    val_bytes: int

    def digest(self):
        """Tells this text, both parts of it, from every other."""
        return "-".join(
            part.digest if isinstance(part, Shards) else hashlib.sha256(part.tobytes()).hexdigest()
            for part in (self.train, self.val)
        )


def tokenize(train_text, val_text, tokenizer):
    """Encode both parts of a text, two bytes a token (a quarter of PyTorch's default)."""
    dtype = token_dtype(tokenizer.vocab_size)
    ids = [np.array(tokenizer.encode(part), dtype=dtype) for part in (train_text, val_text)]
    return Corpus(tokenizer, *ids, len(train_text.encode("utf-8")), len(val_text.encode("utf-8")))


def prepare_corpus(config):
    """Text -> tokenizer -> tokens, as a run needs them. Returns (Corpus, Config).

    The returned settings have the tokenizer's vocabulary: a folder made by prepare.py brings its
    own, and a very short text runs out of pairs to merge. Raises UserError if it is too short.
    """
    if is_prepared(config.corpus):
        corpus = Corpus(*open_tokens(config.corpus))
    else:
        train_text, val_text, _ = text_parts(config.corpus)
        corpus = tokenize(train_text, val_text, BPETokenizer.train(train_text, config.vocab_size))
    check_length(corpus, config.context)
    return corpus, replace(config, vocab_size=corpus.tokenizer.vocab_size)


def check_length(corpus, context):
    """Raise UserError unless one window of `context` tokens can be cut out of each part."""
    shortest = min(len(corpus.train), len(corpus.val))
    if shortest < context:
        fits = 2 ** max(0, shortest.bit_length() - 1)  # the largest power of 2
        raise UserError(
            f"the text is too short: {len(corpus.train)} tokens to train on and "
            f"{len(corpus.val)} to validate, but one window has {context}: use a longer text, or "
            f"context={fits} (train.py --context {fits})"
        )


def corpus_of(config, tokenizer, metadata):
    """The corpus that a checkpoint was trained on. Raises UserError if the text has changed."""
    if is_prepared(config.corpus):
        corpus = Corpus(*open_tokens(config.corpus))
    else:
        corpus = tokenize(*text_parts(config.corpus)[:2], tokenizer)
    if corpus.digest() != metadata["text"]:
        raise UserError(f"{config.corpus}: not the text that the checkpoint was trained on")
    return corpus


def open_test(config, tokenizer):
    """(token ids, length in bytes) of the sealed test text. For published figures alone."""
    if is_prepared(config.corpus):
        return open_tokens(config.corpus, ["test"])[1:]
    test_text = text_parts(config.corpus)[2]
    ids = tokenizer.encode(test_text)
    return np.array(ids, dtype=token_dtype(tokenizer.vocab_size)), len(test_text.encode("utf-8"))


def windows(tokens, starts, length):
    """`tokens[s : s + length]` for every s in `starts`, an array of numbers. (B, length) int64"""
    import torch  # not above: `files` has to be imported before it

    if isinstance(tokens, Shards):
        rows = np.stack([tokens[start : start + length] for start in starts.tolist()])
    else:  # a view in which row s starts at token s; picking rows copies just those
        rows = np.lib.stride_tricks.sliding_window_view(tokens, length)[starts]  # (B, length)
    return torch.from_numpy(rows.astype(np.int64))


def covering_windows(tokens, length, passes=1, max_windows=None):
    """Windows that cover a text, each `passes` times: a list of (n, length) and the shorter rest.

    `max_windows` takes that many, evenly spaced, and no rest.
    """
    full, tail = np.arange(len(tokens) // length) * length, len(tokens) % length
    if max_windows and max_windows < len(full):
        full, tail = full[np.linspace(0, len(full) - 1, max_windows).astype(int)], 0
    parts = [windows(tokens, np.tile(full, passes), length)] if len(full) else []
    if tail:
        parts.append(windows(tokens, np.full(passes, len(tokens) - tail), tail))
    return parts


def find_passage(text, tokenizer, where, n):
    """About n tokens of a text from `where` (0 to 1) on: (ids, the places where words begin)."""
    at = int(where * len(text))
    at = max(at, text.find("\n", at, at + len(text) // 10) + 1)  # at a new line, if there is one
    ids = tokenizer.encode(text[at : at + 10 * n])[:n]
    begins = [i for i, token in enumerate(ids) if tokenizer.token_bytes[token][:1].isspace()]
    if len(begins) < n // 4:  # a language without spaces
        begins = list(range(len(ids)))
    return ids[: begins[-1]], begins[:-1]
