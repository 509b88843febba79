"""Time the tokenizer beside others, on easy and on hard texts, in one run, taking turns; medians.

    python benchmarks/tokenizer.py                 five texts, 4096 tokens; about ten minutes
    python benchmarks/tokenizer.py --texts natural --repeats 3
    python benchmarks/tokenizer.py --plot          four sizes instead, and img/tokenizer-scaling.png

Ours is plain Python in one thread. Hugging Face's (Rust) gets the text by lines and all threads,
which suits it best; tiktoken (Rust) encodes with our merges and our pattern in one thread, and must
give the same ids as ours. "Encoding: ours" is the tokenizer that has just learned from this text,
as when a model is trained; "loaded" is the same vocabulary read from a file, with an empty cache.
"Recounting" is BPE as one would first write it: count all pairs anew for every merge. It gets a
slice of the text, and its time is scaled up to all of the text and all of the merges.
"""

import argparse
import json
import random
import statistics
import string
import sys
import sysconfig
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import tiktoken
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bpe_tokenizer import PATTERN, BPETokenizer, UserError, write_atomically  # noqa: E402
from mdlm.corpus import load_text  # noqa: E402

PLOT = ROOT / "img/tokenizer-scaling.png"


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


def code(megabytes=4):
    """Source code: Python's own library."""
    parts, size = [], 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in path.parts or size > megabytes * 10**6:
            continue
        parts.append(path.read_bytes().decode("utf-8", errors="replace"))
        size += len(parts[-1])
    return "".join(parts)


def cyrillic():
    """The King James text in other letters, each of two bytes."""
    letters = "абцдефгхийклмнопярстувшхыз"
    table = dict(zip(string.ascii_lowercase, letters, strict=True))
    return natural().translate(
        str.maketrans({**table, **{k.upper(): v.upper() for k, v in table.items()}})
    )


def one_word():
    """A megabyte of random letters without a space."""
    return "".join(random.Random(0).choices(string.ascii_lowercase, k=10**6))


TEXTS = {
    "natural": natural,
    "new words": new_words,
    "code": code,
    "cyrillic": cyrillic,
    "one word": one_word,
}


# -- contestants: each learns (text, vocab_size -> something) and encodes (something, text -> n)


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


def merge(ids, pair, new_id):
    """Replace every occurrence of a pair, from left to right."""
    merged, i = [], 0
    while i < len(ids):
        found = i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair
        merged.append(new_id if found else ids[i])
        i += 2 if found else 1
    return merged


def learn_by_recounting(text, n_merges):
    """The merges of a text, every pair counted anew for each: (words x merges) steps."""
    ids, merges = list(text.encode("utf-8")), []
    for i in range(n_merges):
        counts = Counter(pairwise(ids))
        pair = max(counts, key=counts.get)
        merges.append(pair)
        ids = merge(ids, pair, 256 + i)
    return merges


def seconds(function, *arguments):
    """(seconds, result) of one call."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def measure(text, vocab_size, repeats):
    """A row of medians: learning and encoding by each. After two minutes there is no repeating."""
    times, begin = {}, time.perf_counter()
    while not times or (len(times["learn ours"]) < repeats and time.perf_counter() < begin + 120):
        t, ours = seconds(BPETokenizer.train, text, vocab_size)
        times.setdefault("learn ours", []).append(t)
        t, theirs = seconds(learn_theirs, text, vocab_size)
        times.setdefault("learn theirs", []).append(t)
        t, ids = seconds(ours.encode, text)
        times.setdefault("encode ours", []).append(t)
        loaded = BPETokenizer(ours.merges)
        t, _ = seconds(loaded.encode, text)
        times.setdefault("encode loaded", []).append(t)
        t, n_theirs = seconds(encode_theirs, theirs, text)
        times.setdefault("encode theirs", []).append(t)
        encoding = as_tiktoken(ours)
        t, their_ids = seconds(encoding.encode_ordinary, text)
        times.setdefault("encode tiktoken", []).append(t)
    row = {name: statistics.median(values) for name, values in times.items()}
    row["megabytes"] = len(text.encode("utf-8")) / 1e6
    row["tokens ours"], row["tokens theirs"] = len(ids), n_theirs
    row["tiktoken agrees"] = ids == their_ids
    return row


def recounting(text, vocab_size):
    """Seconds that recounting would take for all of the text and its merges."""
    part, n_merges = text[:200_000], 20
    t, _ = seconds(learn_by_recounting, part, n_merges)
    return t * len(text) / len(part) * (vocab_size - 257) / n_merges


def scaling(vocab_size):
    """Time against length, with the line that n log n would follow, as a picture."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    import numpy as np

    text, rows = new_words(10), []
    for megabytes in (1, 3, 10, 30):
        part = text[: megabytes * 10**6]
        learn, tokenizer = seconds(BPETokenizer.train, part, vocab_size)
        encode, _ = seconds(BPETokenizer(tokenizer.merges).encode, part)
        rows.append((megabytes, learn, encode))
        print(f"| {megabytes} MB | {learn:.2f} s | {encode:.2f} s |", flush=True)
    n, learn, encode = np.array(rows).T
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.loglog(n, learn, "o-", label="learning")
    axes.loglog(n, encode, "s-", label="encoding")
    growth = n * np.log(n * 1e6) / np.log(1e6)
    axes.loglog(n, learn[0] * growth, "--", color="0.6", label="n log n")
    axes.set(xlabel="megabytes of text, every tenth word new", ylabel="seconds")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(PLOT, dpi=110)
    return [dict(megabytes=m, learn=a, encode=b) for m, a, b in rows]


def main(argv=None):
    """Command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=list(TEXTS))
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plot", action="store_true", help="time against length instead")
    arguments = parser.parse_args(argv)
    path = Path(__file__).with_suffix(".json")
    try:
        if arguments.plot:
            rows = scaling(arguments.vocab_size)
            path = path.with_name("tokenizer-scaling.json")
        else:
            print(
                "| text | MB | learning: ours | HF | recounting "
                "| encoding: ours | loaded | HF | tiktoken |"
            )
            print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
            rows = {}
            for name in arguments.texts:
                text = TEXTS[name]()
                row = rows[name] = measure(text, arguments.vocab_size, arguments.repeats)
                row["recounting"] = recounting(text, arguments.vocab_size)
                names = ("ours", "loaded", "theirs", "tiktoken")
                rate = {k: row["megabytes"] / row[f"encode {k}"] for k in names}
                print(
                    f"| {name} | {row['megabytes']:.1f} | {row['learn ours']:.2f} s "
                    f"| {row['learn theirs']:.2f} s | {row['recounting'] / 3600:.1f} h "
                    f"| {rate['ours']:.1f} MB/s | {rate['loaded']:.1f} MB/s "
                    f"| {rate['theirs']:.1f} MB/s "
                    f"| {rate['tiktoken']:.1f} MB/s"
                    f"{'' if row['tiktoken agrees'] else ' (other ids)'} |",
                    flush=True,
                )
        write_atomically(path, json.dumps(rows, indent=1).encode("utf-8"))
    except UserError as error:
        print(f"tokenizer.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
