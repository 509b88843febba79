"""What texts are like: how varied they are, and how much of them is copied."""

from itertools import pairwise

import numpy as np


def distinct_pairs(texts):
    """The share of different ones among all pairs of neighbouring words, in [0, 1]."""
    pairs = [pair for text in texts for pair in pairwise(text.split())]
    return len(set(pairs)) / max(1, len(pairs))


def longest_copies(texts, source):
    """The longest piece of each text that stands verbatim in `source`; "" if below 8 bytes.

    All pieces of eight bytes of the source are sorted once, each with its place. A piece of a text
    is looked up there, and each match is followed for as long as the two agree.
    """
    n, end = 8, b"\xff" * 8  # bytes, looked up as one 64-bit number; and what is in no text
    data = np.frombuffer(source.encode("utf-8") + end, np.uint8)
    pieces = np.lib.stride_tricks.sliding_window_view(data, n).copy().view(np.uint64)[:, 0]
    places = pieces.argsort()
    pieces, found = pieces[places], []
    for text in texts:
        text, best = text.encode("utf-8") + b"\xfe", b""
        for i in range(len(text) - n):
            piece = np.frombuffer(text, np.uint64, count=1, offset=i)
            left, right = (np.searchsorted(pieces, piece, side)[0] for side in ("left", "right"))
            at, length = places[left:right], n
            while len(at):
                best = max(best, text[i : i + length], key=len)
                at, length = at[data[at + length] == text[i + length]], length + 1
        found.append(best.decode("utf-8", "ignore"))
    return found
