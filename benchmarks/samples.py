"""Write checkpoints/samples.md: 20 texts from nothing and 20 filled gaps, unedited, and measured.

    python benchmarks/samples.py                     the model in checkpoints/kjv.safetensors
    python benchmarks/samples.py checkpoints/mine.safetensors --save runs/mine.md

Seeds are fixed, so the same machine writes the same file. "Distinct pairs" is the share of
different ones among all pairs of neighbouring words; a "copy" is the longest piece that occurs
verbatim in the training text. Both are shown beside the figures for as many real texts of the same
length, which the model never saw.
"""

from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from common import ROOT, make_parser

from corpus import load_parts, windows
from files import write_atomically
from mdlm.model import DiffusionTransformer
from mdlm.sampling import distinct_pairs, longest_copies, sample
from mdlm.twin import sample_twin
from saving import load_checkpoint

PAGE = """# Samples of {name}

Written by `python benchmarks/samples.py`: ancestral sampling, {steps} steps, temperature 1, seeds \
fixed, nothing chosen and nothing edited. Each row of the table is {n} texts, to be compared with \
real ones of the same length. The longest copy is the longest piece of a text that stands verbatim \
in the training text. Texts with top-p (the least likely tokens left out) and those of the twin \
are only counted, not shown.

| | distinct words | distinct word pairs | longest copy, characters: median | mean | most |
|---|---:|---:|---:|---:|---:|
{table}

## {n} texts from nothing

{free}

## {n} filled gaps

Real text that the model never saw, its middle half masked and filled again, **in bold**.

{filled}
"""


def quoted(text):
    """A text as a Markdown quotation that keeps its lines and shows nothing as markup."""
    for character in "\\*_[]<>#`":
        text = text.replace(character, "\\" + character)
    return "\n".join("> " + line + "  " for line in text.split("\n"))


def bold(text):
    """A quotation in bold, line by line."""
    lines = (line[2:].strip() for line in quoted(text).split("\n"))
    return "\n".join(f"> **{line}**  " if line else ">   " for line in lines)


def figures(name, texts, source):
    """A row of the table."""
    words = [word for text in texts for word in text.split()]
    distinct, pairs = len(set(words)) / max(1, len(words)), distinct_pairs(texts)
    copies = [len(piece) for piece in longest_copies(texts, source)]
    cells = f"{distinct:.0%} | {pairs:.0%} | {median(copies):.0f} | {mean(copies):.0f}"
    return f"| {name} | {cells} | {max(copies)} |"


def report(path, twin_path, n=20, steps=256):
    """The whole file as text."""
    model, tokenizer, _ = load_checkpoint(path, DiffusionTransformer)
    twin, its_tokenizer, _ = load_checkpoint(twin_path, DiffusionTransformer)
    L = model.config.context
    train_text, val_text = load_parts(model.config.corpus, ROOT / "data")
    val = np.array(tokenizer.encode(val_text))
    real = windows(val, np.linspace(0, len(val) - L, n).astype(int), L)  # (n, L)
    masks, middle, gaps = torch.full((n, L), model.mask_id), slice(L // 4, L - L // 4), real.clone()
    gaps[:, middle] = model.mask_id

    def texts(tokens):
        return [tokenizer.decode(ids) for ids in tokens.tolist()]

    def noise(seed):
        return torch.Generator().manual_seed(seed)

    free = texts(sample(model, masks, steps, noise(1)).tokens)
    filled = sample(model, gaps, steps, noise(2)).tokens
    safer = texts(sample(model, masks, steps, noise(1), top_p=0.9).tokens)
    rows = {f"real, {L} tokens": texts(real), "from nothing": free}
    rows["from nothing, top-p 0.9"] = safer
    if its_tokenizer == tokenizer and twin.config.context >= L:
        rows["the twin"] = texts(sample_twin(twin, masks, noise(1)).tokens)
    rows[f"real, {L // 2} tokens"] = texts(real[:, middle])
    rows["filled gaps"] = texts(filled[:, middle])
    parts = [texts(part) for part in filled.split([L // 4, L - 2 * (L // 4), L // 4], dim=1)]
    shown = [f"{quoted(a)}\n>\n{bold(b)}\n>\n{quoted(c)}" for a, b, c in zip(*parts, strict=True)]
    return PAGE.format(
        name=Path(path).name,
        n=n,
        steps=steps,
        table="\n".join(figures(name, found, train_text) for name, found in rows.items()),
        free="\n\n".join(f"**{i}**\n\n{quoted(text)}" for i, text in enumerate(free, 1)),
        filled="\n\n".join(f"**{i}**\n\n{text}" for i, text in enumerate(shown, 1)),
    )


def main():
    parser = make_parser(__doc__)
    folder = ROOT / "checkpoints"
    parser.add_argument("checkpoint", nargs="?", default=folder / "kjv.safetensors")
    parser.add_argument("--twin", default=folder / "kjv-twin.safetensors")
    parser.add_argument("--save", default=folder / "samples.md")
    arguments = parser.parse_args()
    options = dict(n=1, steps=2) if arguments.smoke else {}
    text = report(arguments.checkpoint, arguments.twin, **options)
    if not arguments.smoke:
        write_atomically(arguments.save, text.encode("utf-8"))
        print(arguments.save)


if __name__ == "__main__":
    main()
