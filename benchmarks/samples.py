"""Write checkpoints/samples.md: 20 texts from nothing and 20 filled gaps, unedited, and measured.

    python benchmarks/samples.py                     the model in checkpoints/kjv.safetensors
    python benchmarks/samples.py checkpoints/mine.safetensors --save runs/mine.md

Seeds are fixed, so the same machine writes the same file. "Distinct pairs" is the share of
different ones among all pairs of neighbouring words; a "copy" is the longest piece that occurs
verbatim in the training text. Both are shown beside the figures for as many real texts of the same
length, which the model never saw.
"""

import argparse
import sys
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bpe_tokenizer import UserError, write_atomically  # noqa: E402
from mdlm.corpus import load_parts, windows  # noqa: E402
from mdlm.sampling import distinct_pairs, longest_copies, sample  # noqa: E402
from mdlm.twin import sample_twin  # noqa: E402
from saving import load_checkpoint  # noqa: E402

N, STEPS = 20, 256


def quoted(text):
    """A text as a Markdown quotation that keeps its lines and shows nothing as markup."""
    for character in "\\*_[]<>#`":
        text = text.replace(character, "\\" + character)
    return "\n".join("> " + line + "  " for line in text.split("\n"))


def figures(name, texts, source):
    """A row of the table."""
    words, pairs = distinct_words(texts), distinct_pairs(texts)
    copied = [len(piece) for piece in longest_copies(texts, source)]
    return (
        f"| {name} | {words:.0%} | {pairs:.0%} | {median(copied):.0f} | {mean(copied):.0f} "
        f"| {max(copied)} |"
    )


def distinct_words(texts):
    """Share of different ones among all words."""
    words = [word for text in texts for word in text.split()]
    return len(set(words)) / max(1, len(words))


def report(path, twin_path):
    """The whole file as text."""
    model, tokenizer, _ = load_checkpoint(path)
    L, name = model.config.context, Path(path).name
    train_text, val_text = load_parts(model.config.corpus, ROOT / "data")
    val = np.array(tokenizer.encode(val_text))
    real = windows(val, np.linspace(0, len(val) - L, N).astype(int), L)  # (N, L)
    masks = torch.full((N, L), model.mask_id)

    def noise(seed):
        return torch.Generator().manual_seed(seed)

    def decode(tokens):
        return [tokenizer.decode(ids) for ids in tokens.tolist()]

    free = decode(sample(model, masks, STEPS, noise(1)).tokens)
    safer = decode(sample(model, masks, STEPS, noise(1), top_p=0.9).tokens)
    middle, gaps = slice(L // 4, L - L // 4), real.clone()
    gaps[:, middle] = model.mask_id
    filled = sample(model, gaps, STEPS, noise(2)).tokens
    rows = [
        figures(f"real, {L} tokens", decode(real), train_text),
        figures("from nothing", free, train_text),
        figures("from nothing, top-p 0.9", safer, train_text),
    ]
    if twin_path and Path(twin_path).exists():
        twin, its_tokenizer, _ = load_checkpoint(twin_path)
        if its_tokenizer == tokenizer and twin.config.context >= L:
            texts = decode(sample_twin(twin, masks, noise(1)).tokens)
            rows.append(figures("the twin", texts, train_text))
    rows += [
        figures(f"real, {L // 2} tokens", decode(real[:, middle]), train_text),
        figures("filled gaps", decode(filled[:, middle]), train_text),
    ]
    lines = [
        f"# Samples of {name}",
        f"Written by `python benchmarks/samples.py`: ancestral sampling, {STEPS} steps, "
        "temperature 1, seeds fixed, nothing chosen and nothing edited. Each row of the table is "
        f"{N} texts, to be compared with real ones of the same length. The longest copy is the "
        "longest piece of a text that stands verbatim in the training text. Texts with top-p (the "
        "least likely tokens left out) and those of the twin are only counted, not shown.",
        "| | distinct words | distinct word pairs "
        "| longest copy, characters: median | mean | most |\n"
        "|---|---:|---:|---:|---:|---:|\n" + "\n".join(rows),
        f"## {N} texts from nothing",
        *(f"**{i}**\n\n{quoted(text)}" for i, text in enumerate(free, 1)),
        f"## {N} filled gaps",
        "Real text that the model never saw, its middle half masked and filled again. "
        "**Bold** is the model's.",
    ]
    for i, ids in enumerate(filled.tolist(), 1):
        before, after = tokenizer.decode(ids[: middle.start]), tokenizer.decode(ids[middle.stop :])
        own = tokenizer.decode(ids[middle])
        lines.append(f"**{i}**\n\n{quoted(before)}\n>\n{bold(own)}\n>\n{quoted(after)}")
    return "\n\n".join(lines) + "\n"


def bold(text):
    """A quotation in bold, line by line."""
    lines = quoted(text).split("\n")
    return "\n".join(f"> **{line[2:].strip()}**  " if line[2:].strip() else line for line in lines)


def main(argv=None):
    """Command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?", default=str(ROOT / "checkpoints/kjv.safetensors"))
    parser.add_argument("--twin", default=str(ROOT / "checkpoints/kjv-twin.safetensors"))
    parser.add_argument("--save", default=str(ROOT / "checkpoints/samples.md"))
    arguments = parser.parse_args(argv)
    try:
        write_atomically(
            arguments.save, report(arguments.checkpoint, arguments.twin).encode("utf-8")
        )
    except UserError as error:
        print(f"samples.py: {error}", file=sys.stderr)
        return 2
    print(arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())
