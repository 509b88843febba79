"""Time the tokenizer beside others, on easy and on hard texts, in one run, taking turns; medians.

    python benchmarks/tokenizer.py                 five texts, 4096 tokens; about ten minutes
    python benchmarks/tokenizer.py --texts natural

Ours is plain Python in one thread. Hugging Face's (Rust) gets the text by lines and all threads,
which suits it best; tiktoken (Rust) encodes with our merges and our pattern in one thread, and must
give the same ids as ours. Each time a tokenizer encodes a text that it has not encoded before. The
simple algorithm counts all pairs anew for every merge: twenty merges are timed, and scaled up.
"""

import random
import statistics
import string
import sysconfig
import time
from collections import Counter
from pathlib import Path

import tiktoken
from common import ROOT, keep, make_parser, start_table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bpe_tokenizer import PATTERN, BPETokenizer, learn_merges_simply, split_into_words
from corpus import load_text
from files import read_text

# -- texts


def natural():
    """The King James text."""
    return load_text("kjv", ROOT / "data")


def new_words(times=10):
    """The King James text ten times over, every tenth word with random letters inserted."""
    chance, words = random.Random(0), natural().split(" ") * times
    for i in range(0, len(words), 10):
        cut = chance.randrange(len(words[i]) + 1)
        letters = "".join(chance.choices(string.ascii_lowercase, k=3))
        words[i] = words[i][:cut] + letters + words[i][cut:]
    return " ".join(words)


def code(n_bytes=4_000_000):
    """Source code: Python's own library."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    parts = (
        p.read_bytes().decode("utf-8", "replace") for p in paths if "site-packages" not in p.parts
    )
    text = ""
    while len(text) < n_bytes:
        text += next(parts)
    return text


def cyrillic():
    """The King James text in other letters, each of two bytes."""
    other = "абцдефгхийклмнопярстувшхыз"
    letters, others = string.ascii_lowercase, other + other.upper()
    return natural().translate(str.maketrans(letters + letters.upper(), others))


def one_word():
    """A megabyte of random letters without a space."""
    return "".join(random.Random(0).choices(string.ascii_lowercase, k=10**6))


TEXTS = {f.__name__.replace("_", " "): f for f in (natural, new_words, code, cyrillic, one_word)}


# -- contestants


def learn_theirs(text, vocab_size):
    """A byte-level BPE of the same size, by Hugging Face."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # ours counts the mask
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return tokenizer


def encode_theirs(tokenizer, text):
    """Number of tokens."""
    return sum(len(e.ids) for e in tokenizer.encode_batch_fast(text.splitlines(keepends=True)))


def as_tiktoken(tokenizer):
    """Our merges in tiktoken."""
    ranks = {token: i for i, token in reversed(list(enumerate(tokenizer.token_bytes[:-1])))}
    return tiktoken.Encoding("ours", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})


def seconds(function, *arguments):
    """(seconds, result) of one call."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def measure(text, vocab_size, rounds):
    """Seconds of each, medians. What takes two minutes is not repeated."""
    times, begin = [], time.perf_counter()
    while not times or (len(times) < rounds and time.perf_counter() < begin + 120):
        row = {}
        row["learn ours"], ours = seconds(BPETokenizer.train, text, vocab_size)
        row["learn theirs"], theirs = seconds(learn_theirs, text, vocab_size)
        row["encode ours"], ids = seconds(ours.encode, text)
        row["encode theirs"], n_theirs = seconds(encode_theirs, theirs, text)
        row["encode tiktoken"], their_ids = seconds(as_tiktoken(ours).encode_ordinary, text)
        times.append(row)
    row = {name: statistics.median(each[name] for each in times) for name in row}
    counts = Counter(word for words in split_into_words(text) for word in words)
    counts = {word.encode("utf-8"): count for word, count in counts.items()}
    row["learn simply"] = seconds(learn_merges_simply, counts, 20)[0] * (vocab_size - 257) / 20
    row["megabytes"] = len(text.encode("utf-8")) / 1e6
    row["tokens ours"], row["tokens theirs"] = len(ids), n_theirs
    row["tiktoken agrees"] = ids == their_ids
    return row


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--texts", nargs="+", default=list(TEXTS), help="or paths of other texts")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.texts, arguments.vocab_size, arguments.rounds = [ROOT / "README.md"], 300, 1
    heads = ("learn: ours", "HF", "ratio", "simply", "encode: ours", "HF", "ratio", "tiktoken")
    print_row, rows = start_table("text", "MB", *heads), {}
    for name in arguments.texts:
        text = TEXTS[name]() if name in TEXTS else read_text(name)
        row = rows[str(name)] = measure(text, arguments.vocab_size, arguments.rounds)
        learn = [row[f"learn {who}"] for who in ("ours", "theirs", "simply")]
        encode = [row[f"encode {who}"] for who in ("ours", "theirs", "tiktoken")]
        speed = [f"{row['megabytes'] / t:.1f} MB/s" for t in encode]
        cells = [f"{row['megabytes']:.1f}", f"{learn[0]:.2f} s", f"{learn[1]:.2f} s"]
        cells += [f"{learn[1] / learn[0]:.2f} x", f"{learn[2] / 60:.0f} min", *speed[:2]]
        agrees = "" if row["tiktoken agrees"] else " (other ids)"
        print_row(name, *cells, f"{encode[1] / encode[0]:.2f} x", speed[2] + agrees)
    if not arguments.smoke:
        keep(__file__, rows)


if __name__ == "__main__":
    main()
