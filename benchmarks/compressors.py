"""What compressors need for the validation text when they know the training text, in bits per byte.

    python benchmarks/compressors.py
    python benchmarks/compressors.py --data my_novel.txt

The cost of the validation part, given the training part, is the compressed size of both together
minus that of the training part alone. PPMd (Shkarin 2002, variant I) predicts each byte from up to
`order` bytes before it, as a language model does; it is the strongest of them on text.
"""

import pyppmd
from common import ROOT, make_parser, start_table

from compressors import COMPRESSORS, compressed_bpb
from corpus import load_text, split_text


def ppmd(order):
    """Size of data under PPMd with contexts of up to `order` bytes."""
    return lambda data: len(pyppmd.compress(data, max_order=order, mem_size=1 << 28))


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--data", default="kjv", help="as in train.py (default: %(default)s)")
    arguments = parser.parse_args()
    text = load_text(arguments.data, ROOT / "data")
    parts = split_text(text[: 10**5] if arguments.smoke else text)
    print_row = start_table("", "whole text", "validation, given training")
    contestants = COMPRESSORS | {f"PPMd, order {n}": ppmd(n) for n in (4, 6, 8, 12, 16)}
    for name, size in contestants.items():
        whole, given = compressed_bpb(size, *parts)
        print_row(name, f"{whole:.3f}", f"{given:.3f}")


if __name__ == "__main__":
    main()
