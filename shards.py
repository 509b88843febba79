"""Files of tokens on the disk, as `prepare.py` writes them: training reads them a little at a time.

A folder of tokens holds files of ids ("shards"), and a manifest: their list and the tokenizer.
"""

import hashlib
import json
import os
import re
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import numpy as np

from bpe_tokenizer import BPETokenizer
from files import UserError

MANIFEST, FORMAT = "corpus.json", "mdlm-tokens 3"
SHARD_NAME = re.compile(r"(train|val|test)-\d{6}\.bin")
AGAIN = "to go on, run the same prepare.py command again (without --restart)"


def token_dtype(vocab_size):
    """The smallest type that holds every id: two bytes a token up to 65,536 ids, else four."""
    return np.dtype("<u2" if vocab_size <= 65_536 else "<u4")


class Shards:
    """Files of tokens that read as one long array. Only what is asked for comes into memory.

    paths, lengths: the files, and how many tokens are in each. Each file is opened for each
    reading: thousands of them may not all be open at once. unread: whether the last reading failed.
    """

    unread = False

    def __init__(self, paths, lengths, dtype, digest):
        self.paths, self.lengths, self.dtype, self.digest = paths, lengths, dtype, digest
        self.ends = list(accumulate(lengths))
        self.versions = [version(path.stat()) for path in paths]

    def __len__(self):
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, part):
        """tokens[start:stop] as an array in memory, across the borders of files if need be.

        Raises UserError if a file is not the one that was there at the beginning.
        """
        self.unread = True
        start, stop, _ = part.indices(len(self))
        found, i = [np.empty(0, self.dtype)], bisect_right(self.ends, start)
        while start < stop:
            place = start - self.ends[i] + self.lengths[i]  # in file number i
            count = min(stop, self.ends[i]) - start
            try:
                with self.paths[i].open("rb") as file:
                    if version(os.fstat(file.fileno())) != self.versions[i]:
                        raise OSError(0, "it has been changed while it was in use")
                    offset = place * self.dtype.itemsize
                    found.append(np.fromfile(file, self.dtype, count, offset=offset))
            except OSError as error:
                raise UserError(f"{self.paths[i]}: cannot be read ({error.strerror})") from None
            start, i = start + count, i + 1
        self.unread = False
        return np.concatenate(found)


def version(status):
    """Size and time of the last change, from `os.stat`: they tell a file from its successor."""
    return status.st_size, status.st_mtime_ns


def open_tokens(folder, parts=("train", "val")):
    """What `prepare.py` wrote to `folder`: (tokenizer, train, val, train_bytes, val_bytes).

    train, val: `Shards`. With parts=["test"], for published figures alone: (tokenizer, test,
    test_bytes). Raises UserError if something is missing, damaged or not finished.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(
            f"{folder} is a folder that prepare.py has not made: first run "
            f"python prepare.py {folder} --out data/{folder.name}-tokens"
        )
    tokenizer, found, sizes = BPETokenizer.from_json(manifest["tokenizer"]), [], []
    dtype = token_dtype(tokenizer.vocab_size)
    if not manifest["complete"] or not all(is_whole(folder, s, dtype) for s in manifest["shards"]):
        raise UserError(f"{folder}: not finished, or files are missing or cut off: {AGAIN}")
    for split in parts:
        shards = [shard for shard in manifest["shards"] if shard["file"].startswith(split)]
        digest = hashlib.sha256("".join(s["sha256"] for s in shards).encode()).hexdigest()
        paths, lengths = [folder / s["file"] for s in shards], [s["tokens"] for s in shards]
        found.append(Shards(paths, lengths, dtype, digest))
        sizes.append(sum(shard["bytes"] for shard in shards))
    return tokenizer, *found, *sizes


def read_manifest(folder):
    """The manifest of a folder, checked; None if there is none. Raises UserError."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        shards, _ = manifest["shards"], (manifest["settings"], manifest["complete"])
        if manifest["format"] != FORMAT or not all(SHARD_NAME.fullmatch(s["file"]) for s in shards):
            raise ValueError("of another version, or with strange names of files")
        BPETokenizer.from_json(manifest["tokenizer"])
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}): prepare again with --restart") from None
    return manifest


def is_whole(folder, shard, dtype):
    """Whether the file that an entry of the manifest names is there, and as long as it says."""
    path = folder / shard["file"]
    return path.is_file() and path.stat().st_size == shard["tokens"] * dtype.itemsize
