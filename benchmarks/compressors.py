"""What compressors need for the validation text when they know the training text, in bits per byte.

    python benchmarks/compressors.py

The cost of the validation part, given the training part, is the compressed size of both together
minus that of the training part alone. PPMd (Shkarin 2002, variant I) predicts each byte from up to
`order` bytes before it, as a language model does; it is the strongest of them on text.
"""

import argparse
import sys
from pathlib import Path

import pyppmd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from mdlm.compressors import COMPRESSORS, compressed_bpb  # noqa: E402
from mdlm.corpus import load_text, split_text  # noqa: E402


def ppmd(order):
    """Size of data under PPMd with contexts of up to `order` bytes."""
    return lambda data: len(pyppmd.compress(data, max_order=order, mem_size=1 << 28))


COMPRESSORS |= {f"PPMd, order {order}": ppmd(order) for order in (4, 6, 8, 12, 16)}


def main(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="kjv", help="as in train.py (default: %(default)s)")
    arguments = parser.parse_args(argv)
    parts = split_text(load_text(arguments.data, ROOT / "data"))
    print("| | whole text | validation, given training |\n|---|---:|---:|")
    for name, size in COMPRESSORS.items():
        whole, given = compressed_bpb(size, *parts)
        print(f"| {name} | {whole:.3f} | {given:.3f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
