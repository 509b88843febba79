"""Turn a text too large for memory into files of tokens, which train.py reads from the disk.

    python prepare.py novels.txt --out data/novels     one large file
    python prepare.py folder --out data/library        each .txt file below a folder is a document
    python prepare.py hf:roneneldan/TinyStories --out data/stories --vocab-size 4096
    python train.py --data data/stories

The last kind streams a data set of the Hugging Face hub (it needs `pip install datasets`). All
cores are used, memory stays bounded, and interrupted work resumes where it stopped.
A small text needs none of this: `python train.py --data my_novel.txt` reads it whole.

Every document ends with the token <|endoftext|>. Two parts are kept back, each at most --val-mb
long: a validation text, and a test text which stays sealed. Of files, each is a tenth, in blocks
drawn by lot; of a stream, one document in a hundred. The vocabulary is learned from a sample of the
training text: of files, parts of 1 MB spread evenly over it; of a stream, its beginning.
"""

import hashlib
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import threading
import time
from collections import Counter, defaultdict, deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

import files
import shards
from bpe_tokenizer import LENIENT, MASK, BPETokenizer
from files import UserError

END_OF_TEXT = "<|endoftext|>"
MB = 1_000_000
BLOCK = 2 * MB  # bytes of text encoded at a time


def find_cut(file, position, size, separator):
    """The first place from `position` on where a file can be cut without changing a token.

    That is before white space that follows a printable ASCII character, unless it ends a separator.
    Where 64 kB have no such place, it is the border of any character, but not in a separator.
    """
    if not 0 < position < size:
        return min(max(position, 0), size)
    ends, back = re.escape(separator), min(position, len(separator.encode()) + 1)
    file.seek(position - back)  # what comes before a cut counts, too
    data, unless = file.read(1 << 16), f"(?<!{ends})" if separator else ""
    safe = f"(?<=[!-~]){unless}(?=[ \n])", rf"(?<![\r\n{ends}])(?=[^\x80-\xbf\r\n])"
    found = (re.compile(place.encode()).search(data, back) for place in safe)
    return next((position - back + place.start() for place in found if place), size)


def read_documents(path, start, end, separator, block=BLOCK):
    """Yields (text, whether a document ends with it) of a file from byte `start` to byte `end`.

    Both are first moved to the next cut. Raises UserError if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start, end = (find_cut(file, place, size, separator) for place in (start, end))
            while start < end:
                stop = min(end, find_cut(file, start + block, size, separator))
                file.seek(start)
                texts = [files.to_text(file.read(stop - start), path, start)]
                if separator:
                    texts = re.split(rf"\n*{re.escape(separator)}\n*", texts[0])
                yield from ((text, True) for text in texts[:-1])
                yield texts[-1], stop == size and bool(texts[-1])
                start = stop
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def spans(row, start, end):
    """What lies from byte `start` to byte `end` of a row of spans: (path, from, to, separator)."""
    found = []
    for path, first, last, separator in row:
        place = max(first, first + start), min(last, first + end)
        if place[0] < place[1]:
            found.append((path, *place, separator))
        start, end = start - (last - first), end - (last - first)
    return found


def length(row):
    """Bytes in a row of spans."""
    return sum(last - first for _, first, last, _ in row)


class Files:
    """A text file, or the .txt files below a folder, as one long row of documents.

    The row is cut into blocks, at least 50, and lots decide which of them are for validation and
    which for the test: nobody has chosen them, and they come from all over the text.
    """

    def __init__(self, arguments):
        source, separator = Path(arguments.source), arguments.separator
        self.parts = {"train": [], "val": [], "test": []}
        paths = sorted(source.rglob("*.txt")) if source.is_dir() else [files.plain_file(source)]
        status = {path: path.stat() for path in paths if path.is_file()}
        row = [(path, 0, s.st_size, separator) for path, s in status.items() if s.st_size]
        self.total, most = length(row), arguments.val_mb * MB
        size = max(1, int(min(most / 8, self.total / 50)))  # of a block
        lots = range(self.total // size)
        n = min(len(lots) // 10, int(most / size))
        if n == 0:
            raise UserError(f"{source}: too little text in it, or no .txt file")
        list(read_documents(row[0][0], 0, 64, ""))  # refuses what is no text
        drawn, place = random.Random(0).sample(lots, 2 * n), 0
        for block in sorted(drawn):
            part, start = "val" if block in drawn[:n] else "test", block * size
            self.parts["train"] += spans(row, place, start)
            self.parts[part] += spans(row, start, start + size)
            place = start + size
        self.parts["train"] += spans(row, place, self.total)
        stamps = [(path.name, s.st_size, s.st_mtime_ns) for path, s in status.items()]
        self.identity = hashlib.sha256(repr(stamps).encode()).hexdigest()

    def sample(self, n_bytes):
        """Yields parts of the training text, evenly spread, of `n_bytes` in all."""
        row, separated, separator = self.parts["train"], False, self.parts["train"][0][3]
        n_bytes = min(n_bytes, length(row))
        n_parts = -(-n_bytes // MB)
        for i in range(n_parts):
            begin = (length(row) - n_bytes // n_parts) * i // max(1, n_parts - 1)
            for span in spans(row, begin, begin + n_bytes // n_parts):
                ended = False
                for text, ends in read_documents(*span):
                    separated, ended = separated or ended, ends
                    yield text
        if separator and not separated:
            raise UserError(f"there is no {separator!r} in the text")

    def jobs(self, shard_bytes):
        """Yields (name of a file of tokens, the spans that it is made of)."""
        for part, row in self.parts.items():
            for number, start in enumerate(range(0, length(row), shard_bytes)):
                yield f"{part}-{number:06}.bin", spans(row, start, start + shard_bytes)


class Stream:
    """A data set of the Hugging Face hub, read row by row."""

    total = identity = None  # how long it is shows only at its end

    def __init__(self, arguments):
        self.arguments, self.name = arguments, arguments.source.removeprefix("hf:")

    def rows(self):
        """Yields the rows, as dicts. Raises UserError for what the library says."""
        name, config, split = self.name, self.arguments.config, self.arguments.split
        try:
            import datasets

            yield from datasets.load_dataset(name, config, split=split, streaming=True)
        except ModuleNotFoundError as error:
            raise UserError(f"{error}: pip install datasets") from None
        except Exception as error:  # of the network, the hub, or the data set's files
            line = " ".join(str(error).split())[:300]
            raise UserError(f"{name}: {line} (to choose: --config and --split)") from None

    def documents(self, limit=float("inf")):
        """Yields (part, text, its length in bytes), of `limit` bytes in all."""
        column, n_rows, n_bytes = self.arguments.column, 0, Counter()
        for row in self.rows():
            text = row.get(column, 0)
            if not isinstance(text, str | None):
                others = [name for name, value in row.items() if isinstance(value, str)]
                advice = f"--column {' or '.join(others)}" if others else "there is no other"
                raise UserError(f"{self.name}: no text in column {column!r}: {advice}")
            if not text or not text.strip():
                continue
            text = text.replace("\r\n", "\n").replace("\r", "\n")
            part = {0: "val", 50: "test"}.get(n_rows % 100, "train")
            part = part if n_bytes[part] < self.arguments.val_mb * MB else "train"
            size = len(text.encode("utf-8", LENIENT))
            yield part, text, size
            n_rows, n_bytes[part] = n_rows + 1, n_bytes[part] + size
            if n_bytes.total() >= min(limit, self.arguments.limit_mb * MB):
                return

    def sample(self, n_bytes):
        """Yields the first training documents."""
        return (text for part, text, _ in self.documents(n_bytes) if part == "train")

    def jobs(self, shard_bytes):
        """Yields (name of a file of tokens, the texts that it is made of)."""
        texts, sizes, numbers = defaultdict(list), Counter(), Counter()
        for part, text, size in self.documents():
            texts[part].append(text)
            sizes[part] += size
            if sizes[part] >= shard_bytes:
                yield f"{part}-{numbers[part]:06}.bin", texts.pop(part)
                sizes[part], numbers[part] = 0, numbers[part] + 1
        for part in texts:
            yield f"{part}-{numbers[part]:06}.bin", texts[part]


def start_worker():
    """Called once in each process: Ctrl-C is for the main one, and this one ends with it."""

    def end_with_parent():  # which may be killed, and then cannot tell
        multiprocessing.parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


load_tokenizer = lru_cache(maxsize=1)(BPETokenizer.from_json)


def write_shard(folder, tokenizer, name, source):
    """Encode one file of tokens. Returns its entry in the manifest."""
    tokenizer = load_tokenizer(tokenizer)
    dtype, end = shards.token_dtype(tokenizer.vocab_size), tokenizer.special_ids[END_OF_TEXT]
    parts, n_bytes = [], 0
    for item in source:
        for text, ends in [(item, True)] if isinstance(item, str) else read_documents(*item):
            ids = tokenizer.encode(text)
            parts.append(np.array([*ids, end] if ends else ids, dtype=dtype).tobytes())
            n_bytes += len(text.encode("utf-8", LENIENT))
    data = b"".join(parts)
    files.write_atomically(folder / name, data)
    digest, n_tokens = hashlib.sha256(data).hexdigest(), len(data) // dtype.itemsize
    return {"file": name, "tokens": n_tokens, "bytes": n_bytes, "sha256": digest}


def write_shards(jobs, n_workers):
    """Do what `write_shard` does for each job (its arguments). Yields the entries, in order.

    Never more than two jobs a process are under way, so a stream waits until there is room.
    """
    pool, pending = ProcessPoolExecutor(n_workers, initializer=start_worker), deque()
    try:
        for job in jobs:
            pending.append(pool.submit(write_shard, *job))
            if len(pending) >= 2 * n_workers:
                yield pending.popleft().result()
        yield from (future.result() for future in pending)
    finally:
        pool.shutdown(cancel_futures=True)


def prepare(source, folder, arguments):
    """Learn a vocabulary, and write all files of tokens that are not there yet."""
    settings = {k: v for k, v in vars(arguments).items() if k not in ("out", "workers", "restart")}
    settings["identity"] = source.identity
    manifest = None if arguments.restart else shards.read_manifest(folder)
    if manifest is None:
        files.check_writable(folder / shards.MANIFEST)
        print("learning the vocabulary", file=sys.stderr)
        sample = source.sample(int(arguments.sample_mb * MB))
        tokenizer = BPETokenizer.train(sample, arguments.vocab_size, (END_OF_TEXT, MASK)).to_json()
        manifest = {"format": shards.FORMAT, "settings": settings, "tokenizer": tokenizer}
    if manifest["settings"] != settings:
        raise UserError(f"{folder} holds another text, or was made with other options: --restart")
    tokenizer = manifest["tokenizer"]
    dtype = shards.token_dtype(load_tokenizer(tokenizer).vocab_size)
    entries = manifest.get("shards", [])
    done = {entry["file"]: entry for entry in entries if shards.is_whole(folder, entry, dtype)}
    files.remove_half_written(folder, lambda name: name.startswith(shards.MANIFEST))
    for path in folder.iterdir():  # what is left of a run that was killed or is replaced
        if shards.SHARD_NAME.match(path.name) and path.name not in done:
            path.unlink()

    def save(complete):
        manifest.update(shards=[done[name] for name in sorted(done)], complete=complete)
        data = json.dumps(manifest, indent=1).encode("utf-8")
        files.write_atomically(folder / shards.MANIFEST, data)

    save(complete=False)
    with tqdm(total=source.total, unit="B", unit_scale=True, desc="encoding") as bar:
        jobs = source.jobs(int(arguments.shard_mb * MB))
        left = ((folder, tokenizer, *job) for job in jobs if job[0] not in done)
        for entry in write_shards(left, max(1, int(arguments.workers))):
            done[entry["file"]] = entry
            save(complete=False)
            bar.update(sum(entry["bytes"] for entry in done.values()) - bar.n)
    save(complete=True)


def parse_arguments(argv=None):
    """Command line."""
    parser = files.Parser(__doc__)
    cores = min(os.cpu_count() or 1, 61)  # Windows cannot wait for more
    for name, kind, default, purpose in [
        ("vocab-size", int, 8192, "number of tokens"),
        ("sample-mb", float, 32.0, "text to learn them from"),
        ("val-mb", float, 8.0, "validation text, and test text, at most"),
        ("shard-mb", float, 32.0, "text in each file of tokens"),
        ("workers", float, cores, "processes"),
        ("separator", str, "", "what stands between the documents of a file (none)"),
        ("config", str, None, "of a data set: one of its configurations (its own choice)"),
        ("split", str, "train", "of a data set"),
        ("column", str, "text", "of a data set"),
        ("limit-mb", float, 1e6, "of a data set: text to read, at most"),
    ]:
        shown = default if kind is str else f"{default:,.0f}"
        help = f"{purpose} ({shown})" if shown else purpose
        parser.add_argument(f"--{name}", type=kind, default=default, help=help)
    parser.add_argument("source", help="a text file, a folder of .txt files, or hf:OWNER/NAME")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the tokens go")
    parser.add_argument("--restart", action="store_true", help="replace what is there")
    arguments = parser.parse_args(argv)
    if not all(0 < v < float("inf") for v in vars(arguments).values() if isinstance(v, float)):
        parser.error("sizes and the number of workers must be more than 0")
    return arguments


def main(argv=None):
    """Prepare a corpus. Returns the exit code: 2 for a user's mistake, which gets one line."""
    files.use_utf8()
    arguments = parse_arguments(argv)
    start, folder = time.perf_counter(), Path(arguments.out)
    try:
        source = (Stream if arguments.source.startswith("hf:") else Files)(arguments)
        prepare(source, folder, arguments)
        _, train, val, test, *sizes = shards.open_tokens(folder, ("train", "val", "test"))
        if not all(map(len, (train, val, test))):
            raise UserError(f"{arguments.source}: too little text for three parts")
    except UserError as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 2
    except BrokenProcessPool:
        print(f"prepare.py: a worker was killed; {shards.AGAIN}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"prepare.py: stopped; {shards.AGAIN}", file=sys.stderr)
        return 130
    seconds, size = time.perf_counter() - start, sum(sizes) / MB
    print(f"{folder}: tokens of training, validation and test text:", end=" ")
    print(f"{len(train):,}, {len(val):,} and {len(test):,}, from {size:,.1f} MB", end=" ")
    print(f"in {seconds:.0f} s, {size / seconds:.1f} MB/s")
    print(f"now: python train.py --data {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
