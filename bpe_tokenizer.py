"""Byte-pair encoding (BPE) in plain Python: train it, use it, look inside it.

A tokenizer turns text into a list of integers and back. This one works on bytes, so it can spell
every text there is, and it learns its vocabulary by one rule applied again and again:

    find the pair of neighbouring tokens that occurs most often, and make it a new token.

That rule is from Sennrich et al. 2016 (arXiv 1508.07909); running it on bytes inside words is from
GPT-2 (Radford et al. 2019). Read this file from top to bottom, then try it on a text of your own:

    python bpe_tokenizer.py train data/kjv.txt --vocab-size 2048 --save tokenizer.json
    python bpe_tokenizer.py show tokenizer.json "In the beginning God created the heaven"
"""

import argparse
import json
import os
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from functools import cache
from heapq import heapify, heappop, heappush
from itertools import chain, pairwise, repeat

from files import UserError, check_writable, read_text, to_text, use_utf8, write_atomically

MASK = "<|mask|>"  # the special token of a masked diffusion model; it stands for no text at all
LENIENT = "surrogatepass"  # broken JSON can hold half a character; it is encoded, too

# ------------------------------------------------------------------------------------------------
# 1. The algorithm


def merge(ids, pair, new_id):
    """Replace every occurrence of a pair in a list of ids, from left to right."""
    merged, i = [], 0
    while i < len(ids):
        found = i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair
        merged.append(new_id if found else ids[i])
        i += 2 if found else 1
    return merged


def learn_merges_simply(word_counts, n_merges):
    """Learn merges from `word_counts`, a dict of words (bytes) to how often each occurs.

    Returns a list of pairs of ids: pair number i becomes token 256 + i. Of pairs that occur equally
    often, the one with the smaller left id goes first, then the one with the smaller right id.
    Fewer than `n_merges` are returned if no pair is left to merge.

    >>> learn_merges_simply({b"the": 3, b"then": 2, b"he": 1}, 3)  # "he", then "the", then "then"
    [(104, 101), (116, 256), (257, 110)]
    """
    words = [(list(word), count) for word, count in word_counts.items()]
    merges = []
    while len(merges) < n_merges:
        pair_counts = Counter()
        for ids, count in words:
            for pair in pairwise(ids):
                pair_counts[pair] += count
        if not pair_counts:
            break
        best = min(pair_counts, key=lambda pair: (-pair_counts[pair], pair))
        words = [(merge(ids, best, 256 + len(merges)), count) for ids, count in words]
        merges.append(best)
    return merges


def encode_simply(word, merges):
    """Encode a word (bytes): do to it what learning did, in the same order. Returns ids."""
    ids = list(word)
    for i, pair in enumerate(merges):
        ids = merge(ids, pair, 256 + i)
    return ids


# ------------------------------------------------------------------------------------------------
# 2. From text to words
#
# A text is first cut into words, and no token ever crosses a cut. A word keeps the space before it
# (" the"), so that joining tokens again needs no rule about spaces. Numbers, punctuation and white
# space are words, too: every character falls into exactly one branch of the pattern below. No word
# has more than 64 characters and a space: without that limit a megabyte with no space in it would
# be one word, and merging inside it would take hours.

LETTER = r"[^\W\d_]"
# Vowel signs and accents can be characters of their own, which follow a letter and belong to it:
# Unicode's categories M. So do two joiners and the variation selectors, which are named here.
CATEGORIES = "".join(unicodedata.category(chr(code))[0] for code in range(0x20000))
RUNS = [(run.start(), run.end() - 1) for run in re.finditer("M+", CATEGORIES)]
MARK = "[\u200c\u200d\U000e0100-\U000e01ef" + "".join(f"{chr(a)}-{chr(z)}" for a, z in RUNS) + "]"
PATTERN = (
    r" ?[A-Za-z]{1,64}(?![A-Za-z\x80-\U0010ffff])"  # what the next line would find, found faster
    rf"| ?{LETTER}(?:{LETTER}|{MARK}){{0,63}}"  # letters of any script
    r"|['’](?:ll|re|ve|[sdmt])\b"  # English contractions: it | 's
    r"| ?\d{1,64}"  # digits
    r"| ?(?:[^\s\w]|_){1,64}"  # punctuation and symbols
    r"|\s{1,64}(?!\S)|\s{1,64}"  # white space, leaving the last space to the word that follows
)
find_words = re.compile(PATTERN).findall
find_cut = re.compile(r" (?=\S)").search  # a space that begins a word, whatever stands before it


def split_into_words(text, size=16_000):
    """Yields lists of words, those of about `size` characters at a time: that saves memory."""
    start = 0
    while start < len(text):
        cut = find_cut(text, start + size)
        end = cut.start() if cut else len(text)
        yield find_words(text, start, end)
        start = end


# ------------------------------------------------------------------------------------------------
# 3. Learning fast


def learn_merges(word_counts, n_merges):
    """What `learn_merges_simply` returns, hundreds of times as fast.

    A merge changes only the pairs beside it. So pairs are counted once, and after each merge we
    correct the counts beside it, in the words that contain it. A heap hands out the best pair.
    """
    words = [list(word) for word in word_counts]  # the ids of each word, so far
    counts = list(word_counts.values())
    pair_counts = defaultdict(int)  # pair -> how often it occurs in the text
    words_with = defaultdict(set)  # pair -> indices of the words that contain it (or once did)
    for w, ids in enumerate(words):
        for pair in pairwise(ids):
            pair_counts[pair] += counts[w]
            words_with[pair].add(w)

    def becomes(old, new, w):
        """In word number w, one pair beside the merge has given way to another."""
        pair_counts[old] -= counts[w]
        pair_counts[new] += counts[w]
        words_with[new].add(w)
        new_pairs.add(new)

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

        new_pairs = set()  # that this merge brings into being
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
        for new in new_pairs:
            if pair_counts[new] > 0:  # not if the next merge in the same word took it away again
                heappush(heap, (-pair_counts[new], new))
    return merges


# ------------------------------------------------------------------------------------------------
# 4. The tokenizer


class BPETokenizer:
    """Ids 0..255 are the bytes, then come one id per merge (a pair of ids), then special tokens.

    Make one with `BPETokenizer.train(text, vocab_size)` or `BPETokenizer.load(path)`.
    """

    def __init__(self, merges, special_tokens=(MASK,)):
        self.merges = [tuple(pair) for pair in merges]
        self.token_bytes = [bytes([b]) for b in range(256)]
        for left, right in self.merges:
            self.token_bytes.append(self.token_bytes[left] + self.token_bytes[right])
        self.special_ids = {s: len(self.token_bytes) + i for i, s in enumerate(special_tokens)}
        self.token_bytes += [s.encode("utf-8") for s in special_tokens]
        self.vocab_size = len(self.token_bytes)
        self.mask_id = self.special_ids.get(MASK)
        self.merge_ids = {pair: 256 + i for i, pair in enumerate(self.merges)}
        # Most of any text is the same few thousand words over and over: remember their ids.
        self.encode_word = cache(self.encode_new_word)

    @classmethod
    def train(cls, text, vocab_size, special_tokens=(MASK,)):
        """Learn a vocabulary of `vocab_size` ids from a text, or an iterable of parts of one.

        A short text may run out of pairs to merge; the vocabulary is then smaller. Raises UserError
        if `vocab_size` leaves no room for the 256 bytes and the special tokens.
        """
        smallest = 256 + len(special_tokens)
        if vocab_size < smallest:
            raise UserError(f"a vocabulary of {vocab_size} is too small: at least {smallest}")
        counts = Counter()
        for part in [text] if isinstance(text, str) else text:
            for words in split_into_words(part):
                counts.update(words)
        word_counts = {word.encode("utf-8", LENIENT): count for word, count in counts.items()}
        return cls(learn_merges(word_counts, vocab_size - smallest), special_tokens)

    def encode(self, text):
        """Text -> list of ids.

        The letters "<|mask|>" in a text are just letters: no text can smuggle a mask into a model.
        """
        ids = []
        for words in split_into_words(text):
            ids += chain.from_iterable(map(self.encode_word, words))
            if self.encode_word.cache_info().currsize > 100_000:  # memory is bounded
                self.encode_word.cache_clear()
        return ids

    def encode_new_word(self, word):
        """What `encode_simply` returns, faster: only the merges that the word needs are looked at.

        Of all pairs in the word, the one that was learned first is merged, until none is known.
        """
        ids, unknown, get = list(word.encode("utf-8", LENIENT)), self.vocab_size, self.merge_ids.get
        made = list(map(get, pairwise(ids), repeat(unknown)))  # what each pair would become
        while (new_id := min(made, default=unknown)) != unknown:
            i = made.index(new_id)
            ids[i : i + 2] = [new_id]
            del made[i]
            if i > 0:
                made[i - 1] = get((ids[i - 1], new_id), unknown)
            if i < len(made):
                made[i] = get((new_id, ids[i + 1]), unknown)
        return tuple(ids)

    def decode_bytes(self, ids):
        """Ids -> the bytes of their text. Raises IndexError for a number that is no id."""
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
        return isinstance(other, BPETokenizer) and (
            (self.merges, self.special_ids) == (other.merges, other.special_ids)
        )

    def to_json(self):
        """The tokenizer as JSON text, one merge a line, each with the token that it makes."""
        rows = [[*pair, self.show(256 + i)] for i, pair in enumerate(self.merges)]
        rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        special = json.dumps(list(self.special_ids), ensure_ascii=False)
        head = f'"format": "bpe-tokenizer", "version": 1, "special_tokens": {special}'
        return f'{{{head}, "merges": [\n{rows}\n]}}\n'

    @classmethod
    def from_json(cls, text, name="the tokenizer"):
        """Inverse of `to_json`. Raises UserError for what `to_json` cannot have written."""
        try:
            data = json.loads(text)
            if (data["format"], data["version"]) != ("bpe-tokenizer", 1):
                raise ValueError("another format or version")
            tokens = [bytes([b]) for b in range(256)]
            for left, right, shown in data["merges"]:  # checked one by one: forged merges can make
                token = tokens[left] + tokens[right]  # tokens so long that they fill the memory
                if min(left, right) < 0 or token.decode("utf-8", "backslashreplace") != shown:
                    raise ValueError(f"the merge of {left, right} makes another token than it says")
                tokens.append(token)
            return cls([(left, right) for left, right, _ in data["merges"]], data["special_tokens"])
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{name}: damaged, or none at all: train it again ({error})") from None

    def save(self, path):
        """Write the tokenizer to `path` as readable JSON."""
        write_atomically(path, self.to_json().encode("utf-8"))

    @classmethod
    def load(cls, path):
        """Read a tokenizer from `path`. Raises UserError if that is no tokenizer."""
        return cls.from_json(read_text(path), path)


# ------------------------------------------------------------------------------------------------
# Command line


def main(argv=None):
    """Command line. Returns the exit code: 2 for a user's mistake, which gets one line."""
    parser = argparse.ArgumentParser(description="Byte-pair encoding: learn a vocabulary, use it.")
    parser.add_argument("command", choices=["train", "encode", "decode", "show"])
    parser.add_argument("file", help="train: a text to learn from; else: what train has written")
    parser.add_argument("text", nargs="*", help="a text, or ids; left out: standard input")
    parser.add_argument("--vocab-size", type=int, default=2048, help="train: how many ids to make")
    parser.add_argument("--save", default="tokenizer.json", help="train: file to write")
    arguments = parser.parse_args(argv)
    use_utf8()
    try:
        run(arguments)
    except UserError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read this, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def run(arguments):
    """Do what the command line says. Raises UserError."""
    if arguments.command == "train":
        check_writable(arguments.save)
        text = read_text(arguments.file)
        tokenizer = BPETokenizer.train(text, arguments.vocab_size)
        tokenizer.save(arguments.save)
        n_bytes, n_tokens = len(text.encode("utf-8")), len(tokenizer.encode(text))
        print(f"{arguments.save}: {tokenizer.vocab_size:,} tokens; {n_bytes:,} bytes", end=" ")
        print(f"are {n_tokens:,} tokens, {n_bytes / n_tokens:.2f} bytes a token")
        return
    tokenizer = BPETokenizer.load(arguments.file)
    text = " ".join(arguments.text) or to_text(sys.stdin.buffer.read(), "standard input")
    if arguments.command == "encode":
        print(*tokenizer.encode(text))
    elif arguments.command == "show":
        ids = tokenizer.encode(text)
        print("|".join(map(tokenizer.show, ids)))
        print(*(f"{i:>6}  {tokenizer.show(i)!r}" for i in ids), sep="\n")
    else:
        try:
            print(tokenizer.decode(map(int, text.split())))
        except (ValueError, IndexError):
            last = tokenizer.vocab_size - 1
            raise UserError(f"decode takes whole numbers from 0 to {last}") from None


if __name__ == "__main__":
    sys.exit(main())
