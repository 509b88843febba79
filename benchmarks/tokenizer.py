"""Time the tokenizer beside Hugging Face's, in one run, taking turns; medians.

    python benchmarks/tokenizer.py                 the King James text, 4096 tokens
    python benchmarks/tokenizer.py --data my.txt --vocab-size 8192

Hugging Face gets the text by lines and all threads, which suits it best. Ours is plain Python in
one thread. Both cut words by their own pattern, so the merges differ a little; that ours are right
is a test's business (tests/test_tokenizer.py: equal to theirs on the same pieces).
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bpe_tokenizer import BPETokenizer, UserError, write_atomically  # noqa: E402
from mdlm.corpus import load_text  # noqa: E402


def train_theirs(text, vocab_size):
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


def encode_ours(tokenizer, text):
    """Number of tokens; by a tokenizer with an empty cache, as theirs has been trained anew too."""
    return len(BPETokenizer.from_json(tokenizer.to_json()).encode(text))


def measure(text, vocab_size, repeats):
    """Seconds and tokens of both, `repeats` times in turns."""
    times = {name: {"train": [], "encode": []} for name in ("ours", "theirs")}
    tokens = {}
    pairs = {
        "ours": (BPETokenizer.train, encode_ours),
        "theirs": (train_theirs, encode_theirs),
    }
    for _ in range(repeats):
        for name, (train, encode) in pairs.items():
            start = time.perf_counter()
            tokenizer = train(text, vocab_size)
            trained = time.perf_counter()
            tokens[name] = encode(tokenizer, text)
            times[name]["train"].append(trained - start)
            times[name]["encode"].append(time.perf_counter() - trained)
    return {
        name: {k: statistics.median(v) for k, v in t.items()} | {"tokens": tokens[name]}
        for name, t in times.items()
    }


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="kjv", help="a corpus by name, or a UTF-8 file")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", default=str(ROOT / "benchmarks" / "tokenizer.json"))
    arguments = parser.parse_args(argv)
    try:
        text = load_text(arguments.data, ROOT / "data")
        rows = measure(text, arguments.vocab_size, arguments.repeats)
        megabytes = len(text.encode("utf-8")) / 1e6
        report = {"megabytes": megabytes, "vocab_size": arguments.vocab_size, **rows}
        write_atomically(arguments.json, json.dumps(report, indent=1).encode("utf-8"))
    except UserError as error:
        print(f"tokenizer.py: {error}", file=sys.stderr)
        return 2
    print("| | training | encoding | tokens |\n|---|---:|---:|---:|")
    for name, label in (("ours", "bpe_tokenizer.py"), ("theirs", "Hugging Face tokenizers")):
        r = rows[name]
        rate = megabytes / r["encode"]
        print(f"| {label} | {r['train']:.2f} s | {rate:.1f} MB/s | {r['tokens']:,} |")
    train, encode = (rows["theirs"][k] / rows["ours"][k] for k in ("train", "encode"))
    print(f"| ours faster by | {train:.2f} x | {encode:.2f} x | |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
