"""What a good number is: bits per byte, and the compressors that everybody has."""

import bz2
import lzma
import math
import zlib

COMPRESSORS = {  # each: the size of some bytes, compressed
    "zlib": lambda data: len(zlib.compress(data, 9)),
    "bz2": lambda data: len(bz2.compress(data, 9)),
    "lzma": lambda data: len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
}


def compressed_bpb(size, train_text, val_text):
    """Bits per byte (of the whole text, of the validation text given the training text)."""
    train_bytes, val_bytes = train_text.encode("utf-8"), val_text.encode("utf-8")
    both = train_bytes + val_bytes
    whole = size(both)
    return 8 * whole / len(both), 8 * (whole - size(train_bytes)) / len(val_bytes)


def bits_per_byte(nats_per_token, n_tokens, n_bytes):
    """The unit for people: it can be compared between tokenizers, as nats per token cannot."""
    return nats_per_token * n_tokens / (math.log(2) * n_bytes)
