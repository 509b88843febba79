"""Turn a text too large for memory into files of tokens, which train.py reads from the disk.

    python prepare.py novels.txt --out data/novels     one large file
    python prepare.py folder --out data/library        each .txt file below a folder is a document
    python prepare.py hf:roneneldan/TinyStories --out data/stories --vocab-size 4096
    python train.py --data data/stories

The last kind streams a dataset from the Hugging Face hub (it needs `pip install datasets`). All
cores are used, memory stays bounded whatever the size, and interrupted work resumes where it
stopped.
A small text needs none of this: `python train.py --data my_novel.txt` reads it whole.

The vocabulary is learned from a sample: for files, pieces of 1 MB spread evenly over the training
part; for a stream, its beginning. Every document ends with the token <|endoftext|>. Kept for
validation: from files, the last tenth, but at most --val-mb; from a stream, one document in a
hundred, until --val-mb is reached.
"""

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from bisect import bisect_right
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bpe_tokenizer import (
    MASK,
    BPETokenizer,
    UserError,
    check_place,
    print_anything,
    remove_half_written,
    write_atomically,
)

END_OF_TEXT = "<|endoftext|>"
FORMAT, VERSION = "mdlm-tokens", 1
MANIFEST, TOKENIZER = "corpus.json", "tokenizer.json"
SHARD_NAME = re.compile(r"(train|val)-\d{6}\.bin")
NOTHING = (
    "nothing to validate on: no document ends in that last part of the text: prepare it again "
    "without --separator, or each document as a file of its own"
)
AGAIN = "to go on, run the same prepare.py command again (without --restart)"
MB = 1_000_000
BLOCK = 2 * MB  # bytes of text encoded at a time
LONGEST_DOCUMENT = 64 * MB  # where --separator says that a file holds several


# ------------------------------------------------------------------------------------------------
# Reading what has been prepared


def token_dtype(vocab_size):
    """The smallest type that holds every id: two bytes a token up to 65,536 ids, else four."""
    return np.dtype("<u2" if vocab_size <= 65_536 else "<u4")


class Shards:
    """Files of tokens that read as one long array. Only what is asked for comes into memory.

    Each file is opened for each reading: thousands of them may not all be open at once.
    """

    def __init__(self, paths, lengths, dtype, digest):
        self.paths, self.lengths, self.dtype, self.digest = paths, lengths, dtype, digest
        self.ends = np.cumsum(lengths, dtype=np.int64)

    def __len__(self):
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, part):
        """tokens[start:stop] as an array in memory, across the borders of files if need be."""
        start, stop, _ = part.indices(len(self))
        stop = max(start, stop)
        found = []
        first = bisect_right(self.ends, start)
        for i in range(first, len(self.paths)):
            begin = int(self.ends[i]) - self.lengths[i]
            if begin >= stop:
                break
            skip = max(0, start - begin)
            count = min(self.lengths[i], stop - begin) - skip
            offset = skip * self.dtype.itemsize
            found.append(np.fromfile(self.paths[i], self.dtype, count, offset=offset))
        return np.concatenate(found) if found else np.empty(0, dtype=np.uint16)


def open_tokens(folder):
    """What `prepare.py` wrote to `folder`: (tokenizer, train, val, train_bytes, val_bytes).

    train, val: `Shards`. Raises UserError if something is missing, damaged or not finished.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(
            f"{folder} is a folder that prepare.py has not made: first run "
            f"python prepare.py {folder} --out data/{folder.name}-tokens"
        )
    if not manifest["complete"]:
        raise UserError(f"{folder}: not finished: {AGAIN}")
    check_tokenizer(folder, manifest)
    tokenizer = BPETokenizer.load(folder / TOKENIZER)
    dtype = token_dtype(tokenizer.vocab_size)
    parts, sizes = [], []
    for split in ("train", "val"):
        shards = [shard for shard in manifest["shards"] if shard["split"] == split]
        for shard in shards:
            if not is_whole(folder, shard, dtype):
                raise UserError(
                    f"{folder / shard['file']}: missing, or not as long as it was written: {AGAIN}"
                )
        digest = hashlib.sha256("".join(s["sha256"] for s in shards).encode()).hexdigest()
        paths, lengths = [folder / s["file"] for s in shards], [s["tokens"] for s in shards]
        parts.append(Shards(paths, lengths, dtype, digest))
        sizes.append(sum(shard["bytes"] for shard in shards))
    return tokenizer, *parts, *sizes


def is_whole(folder, shard, dtype):
    """Whether the file that an entry of the manifest names is there, and as long as it says."""
    path = folder / shard["file"]
    return path.is_file() and path.stat().st_size == shard["tokens"] * dtype.itemsize


def file_digest(path):
    """SHA-256 of a small file. Raises UserError if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def check_tokenizer(folder, manifest):
    """Raise UserError if the folder's tokenizer is not the one that made its tokens."""
    path = folder / TOKENIZER
    if not path.is_file() or file_digest(path) != manifest["tokenizer"]:
        raise UserError(
            f"{path}: missing, or not the one of these tokens: prepare again with --restart"
        )


def read_manifest(folder):
    """The list of what is in a folder, checked; None if there is none. Raises UserError."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if (manifest["format"], manifest["version"]) != (FORMAT, VERSION):
            raise ValueError("another format or version")
        if type(manifest["complete"]) is not bool or not isinstance(manifest["settings"], dict):
            raise ValueError("an entry of the wrong kind")
        if type(manifest["tokenizer"]) is not str:
            raise ValueError("an entry of the wrong kind")
        for shard in manifest["shards"]:
            if not SHARD_NAME.fullmatch(shard["file"]):
                raise ValueError("a strange name of a file")
            if not all(type(shard[k]) is int and shard[k] >= 0 for k in ("tokens", "bytes")):
                raise ValueError("a length that is none")
            if shard["split"] not in ("train", "val") or type(shard["sha256"]) is not str:
                raise ValueError("an entry that is none")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}): prepare again with --restart") from None
    return manifest


# ------------------------------------------------------------------------------------------------
# Cutting files


def find_cut(file, position, size, separator=b""):
    """The first place from `position` on where a file can be cut without changing a token.

    That is after a separator, if there are such; else before white space that follows a printable
    ASCII character; in a text without any, at the border of a character.
    """
    if position <= 0 or position >= size:
        return min(max(position, 0), size)
    file.seek(position)
    data = file.read(1 << 16)
    if separator:
        while (at := data.find(separator)) < 0 and position + len(data) < size:
            if len(data) >= LONGEST_DOCUMENT:
                raise UserError(
                    f"{file.name}: {separator.decode()!r} does not occur in the "
                    f"{len(data) // MB} MB from byte {position} on: is it what stands between "
                    "documents?"
                )
            more = file.read(len(data))  # twice as much, until one is found
            if not more:
                raise UserError(f"{file.name}: it has become shorter while it was read")
            data += more
        return position + at + len(separator) if at >= 0 else size
    match = re.search(rb"[!-~](?=[ \n])", data)
    if match:
        return position + match.end()
    match = re.search(rb"[^\x80-\xbf]", data)  # not inside a character of several bytes
    return position + match.start() if match else size


def read_blocks(path, start, end, separator=b""):
    """Yields the text of a file from `start` to `end` (both moved to the next cut), as bytes."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start, end = (find_cut(file, place, size, separator) for place in (start, end))
            while start < end:
                stop = min(end, find_cut(file, start + BLOCK, size, separator))
                file.seek(start)
                block = file.read(stop - start)
                try:
                    block.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}: not UTF-8 at byte {start + error.start}: save it as UTF-8 text"
                    ) from None
                yield block[3:] if start == 0 and block.startswith(b"\xef\xbb\xbf") else block
                start = stop
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def pieces_of(source, separator):
    """Yields (text, whether a document ends with it) from spans of files or from whole texts."""
    for item in source:
        if isinstance(item, str):
            yield item, True
            continue
        path, start, end, ends_here = item
        blocks = read_blocks(path, start, end, separator)
        if not separator:
            yield from ((block, False) for block in blocks)
            if ends_here:
                yield b"", True
            continue
        for block in blocks:
            *whole, rest = block.split(separator)  # what follows the last one ends with the file
            yield from ((text.strip(b"\r\n"), True) for text in whole)
            if rest.strip():
                yield rest.strip(b"\r\n"), True


def shard_name(split, number):
    """Of a file of tokens; sorted, the names are in the order of the text."""
    return f"{split}-{number:06}.bin"


def byte_length(text):
    """Of bytes, or of str in UTF-8 (a broken surrogate pair is kept, as the tokenizer does)."""
    return len(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)


def sample_digest(path, size, n=64, length=4096):
    """SHA-256 of `n` blocks from all over a file: tells texts of one size apart, nearly always."""
    digest, step = hashlib.sha256(), max(length, (size - length) // (n - 1))
    try:
        with path.open("rb") as file:
            for start in range(0, size, step):  # a short file as a whole; of all, both ends
                file.seek(start)
                digest.update(file.read(length))
            return digest.hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


class Files:
    """Text files, read as one long row of documents."""

    def __init__(self, source, separator):
        source = Path(source)
        try:
            paths = [source]
            if source.is_dir():
                paths = sorted(path for path in source.rglob("*.txt") if path.is_file())
            sizes = [path.stat().st_size for path in paths]
        except OSError as error:
            raise UserError(f"{source}: cannot be read ({error.strerror})") from None
        except ValueError as error:  # a path with a NUL byte in it
            raise UserError(f"{str(source)!r}: cannot be read ({error})") from None
        if not paths:
            raise UserError(f"{source}: there is no .txt file in this folder or below it")
        if not any(sizes):
            raise UserError(f"{source}: there is no text in it")
        self.paths = [path for path, size in zip(paths, sizes, strict=True) if size]
        self.sizes = [size for size in sizes if size]
        self.ends = list(itertools.accumulate(self.sizes))
        self.total, self.separator = self.ends[-1], separator.encode("utf-8")
        identity = hashlib.sha256()
        for path, size in zip(self.paths, self.sizes, strict=True):
            name = path.relative_to(source) if path != source else path.name
            identity.update(f"{name}:{size}:{sample_digest(path, size)}\n".encode(errors="replace"))
        self.identity = identity.hexdigest()

    def spans(self, start, end):
        """The parts of files that lie from byte `start` to byte `end` of all.

        Each is (path, from, to, whether the file ends there).
        """
        found = []
        for i in range(bisect_right(self.ends, start), len(self.paths)):
            begin = self.ends[i] - self.sizes[i]
            if begin >= end:
                break
            place = max(0, start - begin), min(self.sizes[i], end - begin)
            found.append((self.paths[i], *place, self.ends[i] <= end))
        return found

    def split_at(self, val_bytes):
        """Where the validation part begins: the last tenth, if that is not too much."""
        return self.total - min(self.total // 10, val_bytes)

    def sample(self, n_bytes, val_bytes):
        """Yields pieces of the training part, evenly spread, of `n_bytes` in all."""
        length = self.split_at(val_bytes)
        n_pieces = max(1, -(-min(n_bytes, length) // MB))
        size = min(n_bytes, length) // n_pieces
        for i in range(n_pieces):
            begin = (length - size) * i // max(1, n_pieces - 1)
            for text, _ in pieces_of(self.spans(begin, begin + size), b""):  # also in documents
                yield text.replace(self.separator, b"\n") if self.separator else text

    def check(self, val_bytes):
        """Raise UserError at once, and not after hours, if nothing would be left to validate on."""
        if self.split_at(val_bytes) == self.total:
            raise UserError("the text is too short: nothing would be left to validate on")
        spans = self.spans(self.split_at(val_bytes), self.total)
        # find one cut: raises UserError if the separator is none of this text's
        list(read_blocks(spans[0][0], 1, 1, self.separator))
        if not any(text for text, _ in pieces_of(spans, self.separator)):
            raise UserError(NOTHING)

    def jobs(self, shard_bytes, val_bytes):
        """Yields (split, number, spans): what each shard is made of."""
        middle = self.split_at(val_bytes)
        for split, begin, end in (("train", 0, middle), ("val", middle, self.total)):
            for number, start in enumerate(range(begin, end, shard_bytes)):
                yield split, number, self.spans(start, min(end, start + shard_bytes))


class Stream:
    """A dataset of the Hugging Face hub, read row by row."""

    def __init__(self, name, column, limit):
        self.name, self.column, self.limit = name, column, limit
        self.total, self.identity = None, f"hf:{name}:{column}:{limit}"

    def check(self, val_bytes):
        """What a stream leaves to validate on is known when it has been read."""

    def documents(self):
        """Yields the text of each row."""
        try:
            import datasets
        except ImportError:
            raise UserError(
                "reading a dataset of the hub needs one more package: pip install datasets"
            ) from None
        n_bytes = 0
        try:
            for row in datasets.load_dataset(self.name, split="train", streaming=True):
                if row.get(self.column, "") is None:  # a row without a text
                    continue
                if not isinstance(row.get(self.column), str):
                    raise UserError(
                        f"{self.name} has no text in a column {self.column!r}: choose one of "
                        f"{', '.join(row)} with --column"
                    )
                yield row[self.column]
                n_bytes += byte_length(row[self.column])
                if n_bytes >= self.limit:
                    return
        except UserError:
            raise
        except Exception as error:  # of the network, the hub, or the dataset's files
            line = " ".join(str(error).split())[:200]
            raise UserError(f"{self.name}: cannot be read ({line})") from None

    def split(self, val_bytes):
        """Yields (split, text): one document in a hundred is for validation."""
        taken = 0
        for i, text in enumerate(self.documents()):
            if i % 100 == 0 and taken < val_bytes:
                taken += byte_length(text)
                yield "val", text
            else:
                yield "train", text

    def sample(self, n_bytes, val_bytes):
        """Yields the first training documents, of `n_bytes` in all."""
        for split, text in self.split(val_bytes):
            if split == "train":
                yield text
                n_bytes -= byte_length(text)
                if n_bytes <= 0:
                    return

    def jobs(self, shard_bytes, val_bytes):
        """Yields (split, number, texts): what each shard is made of."""
        texts, sizes, numbers = ({"train": zero(), "val": zero()} for zero in (list, int, int))
        for split, text in self.split(val_bytes):
            texts[split].append(text)
            sizes[split] += byte_length(text)
            if sizes[split] >= shard_bytes:
                yield split, numbers[split], texts[split]
                texts[split], sizes[split] = [], 0
                numbers[split] += 1
        for split in texts:
            if texts[split]:
                yield split, numbers[split], texts[split]


# ------------------------------------------------------------------------------------------------
# Writing shards. These functions run in the worker processes.

worker = {}  # tokenizer, folder and separator of this process


def start_worker(folder, separator):
    """Called once in each worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process
    worker.update(folder=folder, separator=separator.encode("utf-8"))
    worker["tokenizer"] = BPETokenizer.load(folder / TOKENIZER)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    """End this process when its parent is gone: killed, it cannot tell its workers to stop."""
    multiprocessing.parent_process().join()
    os._exit(1)


def write_shard(job):
    """Encode one shard. Returns its entry in the manifest."""
    split, number, source = job
    tokenizer = worker["tokenizer"]
    dtype, end = token_dtype(tokenizer.vocab_size), tokenizer.special_ids[END_OF_TEXT]
    parts, n_bytes = [], 0
    for text, ends in pieces_of(source, worker["separator"]):
        ids = tokenizer.encode(text)
        parts.append(np.array([*ids, end] if ends else ids, dtype=dtype).tobytes())
        n_bytes += byte_length(text)
    data, name = b"".join(parts), shard_name(split, number)
    write_atomically(worker["folder"] / name, data)
    return dict(
        file=name,
        split=split,
        tokens=len(data) // dtype.itemsize,
        bytes=n_bytes,
        sha256=hashlib.sha256(data).hexdigest(),
    )


# ------------------------------------------------------------------------------------------------
# The main process


def prepare(source, folder, arguments):
    """Learn a vocabulary, encode all shards that are not there yet. Returns the manifest."""
    names = ("vocab_size", "sample_mb", "shard_mb", "val_mb", "separator")
    settings = {name: getattr(arguments, name) for name in names} | {"text": source.identity}
    manifest = None if arguments.restart else read_manifest(folder)
    if manifest is None:
        check_place(folder / TOKENIZER)
        source.check(arguments.val_mb * MB)
        there = [path for path in (folder / TOKENIZER, *shard_files(folder)) if path.exists()]
        if there and not arguments.restart:
            raise UserError(
                f"{there[0]} is there already, and no {MANIFEST} that lists it: choose another "
                "--out, or replace it with --restart"
            )
        tokenizer = learn_vocabulary(source, arguments)  # may fail: what is there stays until then
        remove_shards(folder)
        tokenizer.save(folder / TOKENIZER)
        manifest = dict(
            format=FORMAT,
            version=VERSION,
            complete=False,
            settings=settings,
            tokenizer=file_digest(folder / TOKENIZER),
            shards=[],
        )
        save_manifest(folder, manifest)
        arguments.restart = False  # it has begun: from here on one goes on
    elif manifest["settings"] != settings:
        raise UserError(
            f"{folder} holds another text, or was made with other options: choose another --out, "
            "or replace it with --restart"
        )
    remove_half_written(folder, SHARD_NAME.match)
    check_tokenizer(folder, manifest)
    dtype = token_dtype(BPETokenizer.load(folder / TOKENIZER).vocab_size)
    whole = [shard for shard in manifest["shards"] if is_whole(folder, shard, dtype)]
    if len(whole) < len(manifest["shards"]):  # the gap must not look complete if this breaks off
        manifest.update(shards=whole, complete=False)
        save_manifest(folder, manifest)
    done = {shard["file"] for shard in manifest["shards"]}
    with tqdm(
        total=source.total,
        initial=sum(shard["bytes"] for shard in manifest["shards"]),
        unit="B",
        unit_scale=True,
        desc="encoding",
    ) as bar:
        jobs = source.jobs(arguments.shard_mb * MB, arguments.val_mb * MB)
        left = (job for job in jobs if shard_name(*job[:2]) not in done)
        for entry in work(left, folder, arguments):
            manifest["shards"].append(entry)
            save_manifest(folder, manifest)
            bar.update(entry["bytes"])
    manifest["shards"].sort(key=lambda shard: shard["file"])
    manifest["complete"] = True
    save_manifest(folder, manifest)
    return manifest


def work(jobs, folder, arguments):
    """Do the jobs in several processes; yields their results as they come.

    Never more than two jobs a process are under way, so a stream waits until there is room.
    If the text cannot be read on, what was read before is finished first.
    """
    most = 61 if sys.platform == "win32" else arguments.workers  # Windows cannot wait for more
    pool = ProcessPoolExecutor(
        min(most, arguments.workers),
        initializer=start_worker,
        initargs=(folder, arguments.separator),
    )
    pending, failure, jobs = set(), None, iter(jobs)
    try:
        while jobs or pending:
            try:
                if jobs and len(pending) < 2 * arguments.workers:
                    pending.add(pool.submit(write_shard, next(jobs)))
            except StopIteration:
                jobs = None
            except UserError as error:
                jobs, failure = None, error
            room = jobs and len(pending) < 2 * arguments.workers
            finished, pending = wait(pending, 0 if room else None, FIRST_COMPLETED)
            yield from (future.result() for future in finished)
        if failure:
            raise failure
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def learn_vocabulary(source, arguments):
    """Train a tokenizer on a sample of the text."""
    n_bytes = arguments.sample_mb * MB
    texts = source.sample(n_bytes, arguments.val_mb * MB)
    with tqdm(desc="learning tokens", unit="merge", leave=False) as bar:

        def progress(done, total):
            bar.total = total
            bar.update(done - bar.n)

        return BPETokenizer.train(
            texts, arguments.vocab_size, (END_OF_TEXT, MASK), progress=progress
        )


def shard_files(folder):
    """The files of tokens in a folder, listed in a manifest or not."""
    return [path for path in folder.glob("*.bin") if SHARD_NAME.fullmatch(path.name)]


def remove_shards(folder):
    """Remove what an earlier run has left. Raises UserError."""
    for path in [folder / MANIFEST, *shard_files(folder)]:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:  # on Windows also: a training still reads it
            raise UserError(f"{path}: cannot be removed ({error.strerror})") from None


def save_manifest(folder, manifest):
    """Write what is done so far, whole or not at all."""
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1).encode("utf-8"))


def peak_memory():
    """Most memory that (this process, a worker) has used, in bytes; None where unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    own, child = (
        resource.getrusage(who).ru_maxrss * unit
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own, child


def parse_arguments(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    number = positive_integer
    parser.add_argument("source", help="a text file, a folder of .txt files, or hf:OWNER/NAME")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the tokens go")
    parser.add_argument("--vocab-size", type=number, default=8192, help="default: %(default)s")
    parser.add_argument(
        "--sample-mb", type=number, default=32, help="to learn the vocabulary from: %(default)s"
    )
    parser.add_argument(
        "--val-mb", type=number, default=8, help="text to validate on, at most: %(default)s"
    )
    parser.add_argument(
        "--shard-mb", type=number, default=32, help="text in each file of tokens: %(default)s"
    )
    parser.add_argument(
        "--workers", type=number, default=os.cpu_count() or 1, help="processes: %(default)s"
    )
    parser.add_argument(
        "--separator",
        default="",
        metavar="TEXT",
        help="what stands between documents inside a file, such as '<|endoftext|>' (default: a "
        "file is a document)",
    )
    parser.add_argument("--column", default="text", help="of a dataset: %(default)s")
    parser.add_argument(
        "--limit-mb", type=number, default=10**6, help="of a dataset: read so much of it"
    )
    parser.add_argument(
        "--restart", action="store_true", help="start anew, replacing what is there"
    )
    return parser.parse_args(argv)


def positive_integer(text):
    """For argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def main(argv=None):
    """Prepare a corpus. Returns the exit code: 2 for a user's mistake, which gets one line."""
    print_anything()
    arguments = parse_arguments(argv)
    start, folder = time.perf_counter(), Path(arguments.out)
    try:
        if arguments.source.startswith("hf:"):
            name = arguments.source.removeprefix("hf:")
            source = Stream(name, arguments.column, arguments.limit_mb * MB)
        else:
            source = Files(arguments.source, arguments.separator)
        manifest = prepare(source, folder, arguments)
        _, train, val, train_bytes, val_bytes = open_tokens(folder)
        if not len(val):
            raise UserError(NOTHING)
    except UserError as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 2
    except BrokenProcessPool:
        print(f"prepare.py: a worker was killed; {AGAIN}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        again = "nothing has been replaced yet" if arguments.restart else AGAIN
        print(f"prepare.py: stopped; {again}", file=sys.stderr)
        return 130
    seconds, n_bytes = time.perf_counter() - start, train_bytes + val_bytes
    print(
        f"{folder}: {n_bytes / MB:,.1f} MB are {len(train):,} tokens to train on and "
        f"{len(val):,} to validate, in {len(manifest['shards'])} files"
    )
    print(f"{seconds:.0f} s, {n_bytes / MB / seconds:.1f} MB/s", end="")
    if memory := peak_memory():
        own, child = memory
        print(f"; at most {own / 1e9:.2f} GB, and {child / 1e9:.2f} GB in each worker", end="")
    print(f"\nnow: python train.py --data {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
