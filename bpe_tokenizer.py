"""Byte-pair encoding (BPE) in plain Python: train it, use it, look inside it.

A tokenizer turns text into a list of integers and back. This one works on bytes, so it can spell
every text there is, and it learns its vocabulary by one rule applied again and again:

    find the pair of neighbouring tokens that occurs most often, and make it a new token.

That rule is from Sennrich et al. 2016 (arXiv 1508.07909); running it on bytes inside words is from
GPT-2 (Radford et al. 2019). Read the file from top to bottom, then try it on a text of your own:

    python bpe_tokenizer.py train data/kjv.txt --vocab-size 2048 --save tokenizer.json
    python bpe_tokenizer.py show tokenizer.json "In the beginning God created the heaven"
"""

import argparse
import contextlib
import json
import os
import re
import sys
import time
from collections import Counter, defaultdict
from heapq import heapify, heappop, heappush
from itertools import chain, islice, pairwise
from pathlib import Path

MASK = "<|mask|>"  # the special token of a masked diffusion model; it stands for no text at all
FORMAT, VERSION = "bpe-tokenizer", 1

# Text is first cut into pieces, and no token ever crosses a cut. A word keeps the space before it
# (" the"), so that joining tokens again needs no rule about spaces. Every character falls into
# exactly one branch, and no piece is longer than 64 characters: without that limit a megabyte
# with no space in it would be one piece, and merging inside it would take hours.
PATTERN = (
    r"['’](?:ll|re|ve|[sdmt])\b"  # English contractions: it | 's
    r"| ?[^\W\d_]{1,64}"  # letters of any script, with their leading space
    r"| ?\d{1,64}"  # digits
    r"| ?(?:[^\s\w]|_){1,64}"  # punctuation and symbols
    r"|\s{1,64}(?!\S)|\s{1,64}"  # white space, leaving the last space to the word that follows
)
LONGEST_PIECE = 1 + 64 * 4  # bytes: a space, and characters of at most four

# A regular expression takes longer to find a piece than a dictionary to look it up. Where no space
# stands before white space or at the end, every space begins a piece, and `str.split` can cut.
PIECES = re.compile(PATTERN).findall
ODD_SPACE = re.compile(r" (?:\s|\Z)")
BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\S)")


def print_anything():
    """From now on a character that the console lacks is printed as "?", and no error.

    A file or another program gets UTF-8, and so all of it, unless PYTHONIOENCODING says otherwise.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            asked = stream.isatty() or "PYTHONIOENCODING" in os.environ
            stream.reconfigure(encoding=None if asked else "utf-8", errors="replace")


class UserError(ValueError):
    """A mistake that the user can mend: one line that names the cause and the cure."""

    def _render_traceback_(self):  # what IPython prints instead of a traceback
        return [f"{type(self).__name__}: {self}"]


def read_text(path):
    """The text of a UTF-8 file (a byte-order mark at its start is dropped).

    Raises UserError if the file is missing, unreadable, empty, or not UTF-8 (and says where).
    """
    try:
        data = Path(path).read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        at = len(data) - len(error.object) + error.start  # the object is without the mark
        line = data[:at].count(b"\n") + 1
        raise UserError(
            f"{path}: not UTF-8 at byte {at} (line {line}): save it as UTF-8 text"
        ) from None
    except ValueError as error:  # a path with a NUL byte in it
        raise UserError(f"{path!r}: cannot be read ({error})") from None
    if not text.strip():
        raise UserError(f"{path}: there is no text in it")
    return text


def plain_file(path):
    """Where a file named `path` is, or would be: links are followed, so that they stay links.

    Raises UserError for what a file cannot replace: no name, a folder, a device.
    """
    path = Path(path)
    if not path.name:
        raise UserError(f"{path}: cannot be written (a file needs a name)")
    try:
        plain, place = path.is_file() or not path.exists(), Path(os.path.realpath(path))
    except (OSError, ValueError) as error:  # a name too long, or with a NUL byte in it
        raise UserError(f"{str(path)!r}: cannot be written ({error})") from None
    if not plain:
        raise UserError(f"{path}: cannot be written (it is not a plain file)")
    return place


def rename(path, new):
    """Give a file (Path) a new name, replacing the file that had it.

    On Windows that fails while a virus scanner, say, reads one of them: we try for a second.
    """
    for _ in range(20):
        with contextlib.suppress(PermissionError):
            path.replace(new)
            return
        time.sleep(0.05)
    path.replace(new)


def write_atomically(path, data):
    """Write `data` (bytes) to `path` so that a crash leaves the old file or the new one, whole.

    Raises UserError if the place cannot be written to.
    """
    place = plain_file(path)
    temporary = place.with_name(f"{place.name}.{os.getpid()}.tmp")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # on the disk before the old file loses its name
        rename(temporary, place)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        with contextlib.suppress(OSError):  # what went wrong has been said above
            temporary.unlink()


def remove_half_written(folder, is_ours):
    """Remove what a killed process left of `write_atomically`: files whose name `is_ours`."""
    for left in Path(folder).glob("*.tmp"):
        if is_ours(left.name):
            with contextlib.suppress(OSError):  # on Windows a virus scanner may be reading it
                left.unlink()


def check_place(path):
    """Raise UserError now if a file could not be written to `path` after hours of work."""
    place = plain_file(path)
    probe = place.with_name(f"{place.name}.probe")
    try:
        write_atomically(probe, b"")
    except UserError as error:
        raise UserError(str(error).replace(str(probe), str(path), 1)) from None
    with contextlib.suppress(OSError):  # on Windows a virus scanner may be reading it
        probe.unlink()


def learn_merges(piece_counts, n_merges, progress=None):
    """Learn up to `n_merges` merges from `piece_counts`, a dict of pieces (bytes) to their counts.

    Returns (merges, words): a list of pairs of ids, of which number i makes token 256 + i, and for
    each piece the ids that it has become. The pair that occurs most often goes first; among equals
    the one with the smaller left id, then the smaller right id, so the result depends on the text
    alone. Stops early when no pair is left.

    Counting every pair anew for every merge would cost (merges x corpus). Two ideas avoid that.
    A word that occurs 60,000 times is merged once, and counted 60,000 times. And a merge changes
    only the pairs beside it: their counts are corrected, and a heap hands out the most frequent.
    `progress(done, total)` is called after each merge.
    """
    words = [list(piece) for piece in piece_counts]  # the ids of each distinct piece, so far
    counts = list(piece_counts.values())
    pair_counts = defaultdict(int)  # pair -> how often it occurs in the corpus
    words_with = defaultdict(set)  # pair -> indices of the words that contain it (or once did)
    for w, ids in enumerate(words):
        for pair in pairwise(ids):
            pair_counts[pair] += counts[w]
            words_with[pair].add(w)

    def becomes(old, new, w):
        """In word number w, one pair has given way to another."""
        pair_counts[old] -= counts[w]
        pair_counts[new] += counts[w]
        words_with[new].add(w)
        grown.add(new)

    # Python's heap pops the smallest item first: (-count, pair) is our order, ties included.
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapify(heap)
    merges = []
    while len(merges) < n_merges and heap:
        negative_count, pair = heappop(heap)
        if -negative_count != pair_counts[pair]:  # an outdated entry: put it back where it belongs
            if pair_counts[pair] > 0:
                heappush(heap, (-pair_counts[pair], pair))
            continue
        (left, right), new_id = pair, 256 + len(merges)
        merges.append(pair)

        grown = set()  # the pairs that this merge brings into being
        for w in words_with.pop(pair):
            ids, i = words[w], 0
            while i < len(ids) - 1:
                if ids[i] == left and ids[i + 1] == right:
                    ids[i : i + 2] = [new_id]
                    if i > 0:
                        becomes((ids[i - 1], left), (ids[i - 1], new_id), w)
                    if i < len(ids) - 1:
                        becomes((right, ids[i + 1]), (new_id, ids[i + 1]), w)
                i += 1
        del pair_counts[pair]
        for new in grown:
            if pair_counts[new] > 0:  # not if the next merge in the same word took it away again
                heappush(heap, (-pair_counts[new], new))
        if progress:
            progress(len(merges), n_merges)
    return merges, words


def _escape(text):
    """str or bytes -> str in which bytes that are not UTF-8 are escaped, so that none is lost."""
    if isinstance(text, str):
        if text.isascii():
            return text
        text = text.encode("utf-8", errors="surrogatepass")
    return text.decode("utf-8", errors="surrogateescape")


def _to_bytes(piece):
    """Inverse of `_escape` for one piece."""
    return piece.encode("utf-8", errors="surrogateescape")


def _cut(text, size=4000):
    """Cut a text block by block. Yields (pieces, words): `words` follow, each without its space.

    Blocks have about `size` characters and end where a space stands between two words.
    """
    start = 0
    while start < len(text):
        cut = BETWEEN_WORDS.search(text, start + size)
        block = text[start : cut.start() if cut else len(text)]
        start += len(block)
        if ODD_SPACE.search(block):
            yield PIECES(block), []
        else:
            first, *words = block.split(" ")
            yield PIECES(first), words


class Cache(dict):
    """Text -> its token ids (a tuple), computed when first asked for and then remembered.

    Most of any text is a few thousand words over and over, so encoding is mostly looking up.
    The cache starts afresh when it holds `limit` texts, and long ones, which seldom come again,
    are left out: so its memory is bounded.
    """

    def __init__(self, encode, limit=200_000):
        self.encode, self.limit = encode, limit

    def __missing__(self, text):  # dict calls this for a key that it does not hold
        ids = self.encode(text)
        if len(text) > 100:
            return ids
        if len(self) >= self.limit:
            self.clear()
        self[text] = ids
        return ids


class BPETokenizer:
    """Byte-level BPE. Ids 0..255 are the bytes, then one id per merge, then the special tokens.

    `merges` is a list of pairs of ids, in the order in which they were learned; `special_tokens`
    a list of strings. Make one with `train` or `load`.
    """

    def __init__(self, merges, special_tokens=(MASK,)):
        self.merges = [tuple(pair) for pair in merges]
        self.token_bytes = [bytes([b]) for b in range(256)]
        for left, right in self.merges:
            self.token_bytes.append(self.token_bytes[left] + self.token_bytes[right])
        self.special_ids = {s: len(self.token_bytes) + i for i, s in enumerate(special_tokens)}
        self.token_bytes += [s.encode("utf-8") for s in special_tokens]
        self.merge_ids = {pair: 256 + i for i, pair in enumerate(self.merges)}
        self._ids_of_piece = Cache(self._encode_piece)
        self._ids_of_word = Cache(self._encode_word)

    @classmethod
    def train(cls, text, vocab_size, special_tokens=(MASK,), progress=None):
        """Learn a vocabulary of `vocab_size` ids (bytes, merges and special tokens) from `text`.

        A text that does not fit in memory can be given as an iterable of parts, each whole words.
        `progress(done, total)` is called after each merge. A short text may run out of pairs to
        merge; the vocabulary is then smaller. Raises UserError if `vocab_size` leaves no room for
        the 256 bytes and the special tokens.
        """
        smallest = 256 + len(special_tokens)
        if vocab_size < smallest:
            raise UserError(
                f"a vocabulary of {vocab_size} is too small: 256 bytes and {len(special_tokens)} "
                f"special token(s) need at least {smallest}"
            )
        counts, word_counts = Counter(), Counter()
        for part in [text] if isinstance(text, (str, bytes)) else text:
            for pieces, words in _cut(_escape(part)):
                counts.update(pieces)
                word_counts.update(words)
        for word, count in word_counts.items():
            for piece in PIECES(" " + word):
                counts[piece] += count
        piece_counts = {_to_bytes(piece): count for piece, count in counts.items()}
        merges, encoded = learn_merges(piece_counts, vocab_size - smallest, progress)
        tokenizer = cls(merges, special_tokens)
        known = zip(counts, map(tuple, encoded), strict=True)  # learning has encoded every piece
        tokenizer._ids_of_piece.update(islice(known, tokenizer._ids_of_piece.limit))
        return tokenizer

    @property
    def vocab_size(self):
        """Number of ids: bytes, merges and special tokens."""
        return len(self.token_bytes)

    @property
    def mask_id(self):
        """Id of the mask token."""
        return self.special_ids[MASK]

    def encode(self, text):
        """Text (str, or bytes of any kind) -> list of ids.

        The letters "<|mask|>" in a text are just letters: no text can smuggle a mask into a model.
        """
        ids = []
        for pieces, words in _cut(_escape(text)):
            ids += chain.from_iterable(map(self._ids_of_piece.__getitem__, pieces))
            ids += chain.from_iterable(map(self._ids_of_word.__getitem__, words))
        return ids

    def _encode_word(self, word):
        """Cut a word, with the space before it, into pieces, and look each up."""
        pieces = PIECES(" " + word)
        return tuple(chain.from_iterable(map(self._ids_of_piece.__getitem__, pieces)))

    def _encode_piece(self, piece):
        """Merge the pair that was learned first, again and again, until none is left."""
        ids, never = list(_to_bytes(piece)), self.vocab_size
        while len(ids) > 1:
            merged = [self.merge_ids.get(pair, never) for pair in pairwise(ids)]
            new_id = min(merged)
            if new_id == never:
                break
            i = merged.index(new_id)
            ids[i : i + 2] = [new_id]
        return tuple(ids)

    def decode_bytes(self, ids):
        """Ids -> bytes. Exactly what was encoded, be it valid UTF-8 or not.

        Raises IndexError for a number that is no id.
        """
        ids = list(ids)
        if min(ids, default=0) < 0:  # Python would count from the end
            raise IndexError(f"{min(ids)} is no token id")
        return b"".join([self.token_bytes[i] for i in ids])

    def decode(self, ids):
        """Ids -> text. Bytes that are not valid UTF-8 become U+FFFD, the replacement character."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def show(self, i):
        """Token `i` as readable text: bytes that are no text of their own as \\xNN."""
        return self.token_bytes[i].decode("utf-8", errors="backslashreplace")

    def __eq__(self, other):
        """Whether the two turn every text into the same ids."""
        if not isinstance(other, BPETokenizer):
            return NotImplemented
        return (self.merges, self.special_ids) == (other.merges, other.special_ids)

    def to_json(self):
        """The tokenizer as JSON text, one merge a line, each with the token that it makes."""
        lines = [
            f"    {json.dumps([left, right, self.show(256 + i)], ensure_ascii=False)}"
            for i, (left, right) in enumerate(self.merges)
        ]
        head = {"format": FORMAT, "version": VERSION, "special_tokens": list(self.special_ids)}
        return (
            json.dumps(head, indent=2, ensure_ascii=False)[:-2]
            + ',\n  "merges": [\n'
            + ",\n".join(lines)
            + "\n  ]\n}\n"
        )

    @classmethod
    def from_json(cls, text):
        """Inverse of `to_json`. Raises UserError for what `to_json` cannot have written."""
        try:
            data = json.loads(text)
            if data["format"] != FORMAT or data["version"] != VERSION:
                raise UserError(
                    f"this tokenizer is of format {data['format']!r} version {data['version']!r}, "
                    f"this program reads {FORMAT!r} version {VERSION}: train it again"
                )
            merges, special_tokens = data["merges"], data["special_tokens"]
            lengths = [1] * 256  # of the tokens: doubling a few dozen times would fill the memory
            for i, (left, right, _) in enumerate(merges):
                if not (type(left) is type(right) is int and min(left, right) >= 0):
                    raise ValueError("a merge is not a pair of ids")
                if max(left, right) >= 256 + i:
                    raise ValueError(f"merge {i} uses a token that is not made yet")
                lengths.append(lengths[left] + lengths[right])
                if lengths[-1] > LONGEST_PIECE:
                    raise ValueError(f"merge {i} makes a token longer than any piece of text")
            if not all(type(s) is str and s for s in special_tokens):
                raise ValueError("a special token is not a text")
            tokenizer = cls([(left, right) for left, right, _ in merges], special_tokens)
            for i, (_, _, shown) in enumerate(merges):
                if tokenizer.show(256 + i) != shown:
                    raise ValueError(f"merge {i} makes another token than it says")
            return tokenizer
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"not a tokenizer, or a damaged one ({error}): train it again"
            ) from None

    def save(self, path):
        """Write the tokenizer to `path` as readable JSON."""
        write_atomically(path, self.to_json().encode("utf-8"))

    @classmethod
    def load(cls, path):
        """Read a tokenizer from `path`. Raises UserError if that is no tokenizer."""
        text = read_text(path)
        try:
            return cls.from_json(text)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


# ------------------------------------------------------------------------------------------------
# Command line


def main(argv=None):
    """Command line: train, encode, decode, show. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Byte-pair encoding: learn a vocabulary from a text, and use it."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    p = commands.add_parser("train", help="learn a vocabulary from a UTF-8 text file")
    p.add_argument("text", help="the text file to learn from")
    p.add_argument("--vocab-size", type=int, default=2048, help="number of ids (default: 2048)")
    p.add_argument("--save", default="tokenizer.json", help="file to write (default: %(default)s)")

    for name, explanation in [
        ("encode", "text -> ids, on one line"),
        ("decode", "ids -> text"),
        ("show", "how a text splits into tokens, one a line"),
    ]:
        p = commands.add_parser(name, help=explanation)
        p.add_argument("tokenizer", help="a file that `train` has written")
        p.add_argument("text", nargs="*", help="the text or the ids; left out: standard input")

    arguments = parser.parse_args(argv)
    print_anything()
    try:
        if arguments.command == "train":
            _train_command(arguments)
        else:
            _use_command(arguments)
    except UserError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read this, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _train_command(arguments):
    def progress(done, total):
        if sys.stderr.isatty() and (done == total or done % 64 == 0):
            end = "\n" if done == total else ""
            print(f"\rmerge {done:,} of {total:,}", end=end, file=sys.stderr, flush=True)

    check_place(arguments.save)
    text = read_text(arguments.text)
    tokenizer = BPETokenizer.train(text, arguments.vocab_size, progress=progress)
    tokenizer.save(arguments.save)
    n_bytes, n_tokens = len(text.encode("utf-8")), len(tokenizer.encode(text))
    print(f"{arguments.save}: {tokenizer.vocab_size:,} tokens; ", end="")
    print(f"{n_bytes:,} bytes are {n_tokens:,} tokens, {n_bytes / n_tokens:.2f} bytes a token")


def _use_command(arguments):
    tokenizer = BPETokenizer.load(arguments.tokenizer)
    text = os.fsencode(" ".join(arguments.text))  # the bytes that were typed
    if not arguments.text:
        text = sys.stdin.buffer.read().removeprefix(b"\xef\xbb\xbf")  # as read_text does
    if arguments.command == "encode":
        print(*tokenizer.encode(text))
    elif arguments.command == "show":
        ids = tokenizer.encode(text)
        print("|".join(tokenizer.show(i) for i in ids))
        for i in ids:
            print(f"{i:>6}  {tokenizer.show(i)!r}")
    else:
        try:
            decoded = tokenizer.decode([int(word) for word in text.split()])
        except (ValueError, IndexError):
            raise UserError(
                f"decode takes whole numbers from 0 to {tokenizer.vocab_size - 1}"
            ) from None
        print(decoded)


if __name__ == "__main__":
    sys.exit(main())
