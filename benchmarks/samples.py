"""Write checkpoints/samples.md: a table of samplers, and texts to read, nothing chosen or edited.

    python benchmarks/samples.py                     the included model; an hour on one core
    python benchmarks/samples.py checkpoints/mine.safetensors --save runs/mine.md

Seeds are fixed, so the same machine writes the same file. Passages are evenly spread over the
validation text. The figures are also written to samples.json.
"""

import math
import re
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev

import numpy as np
import torch
from common import ROOT, keep, make_parser

from corpus import load_parts, windows
from files import write_atomically
from hardware import over_batches
from mdlm.diffusion import forward_process, next_token_nats
from mdlm.model import DiffusionTransformer
from mdlm.sampling import predict, sample, sample_confident, sample_first_hitting, sample_remask
from mdlm.twin import sample_twin
from saving import load_checkpoint
from text_statistics import distinct_pairs, longest_copies

PAGE = """# Samples of {name}

Written by `python benchmarks/samples.py`, with fixed seeds; nothing is chosen and nothing is \
edited. The model has read the training text; the passages come from the validation text, evenly \
spread, which it has not.

## Blanks

One to three words are masked. Under each passage: what the model expects at each blank, the \
likeliest first; the true word is in bold.

{blanks}

## Gaps

A dozen tokens are masked and filled again, **in bold** (top-p 0.9).

{gaps}

## Sentences

Thirty tokens are masked, about a sentence, and filled again, **in bold** (top-p 0.9).

{sentences}

## Whole texts, ancestral sampling, top-p 0.8

Of the settings in the table below that keep most of the variety, the one with the fewest words \
that are no words. The window and the page begin with it.

{best}

## Whole texts, plain ancestral sampling

Without any sampling parameter, in as many steps as tokens.

{plain}

## The twin

The GPT of the same size, from left to right, top-p 0.9.

{twin}

## Where it breaks

{breaks}

## Which sampler?

{n} texts of {length} tokens from each, and as many real ones. *Distinct pairs*: the share of \
different ones among all pairs of neighbouring words. *No words*: the share of words that the \
training text does not have. *Longest copy*: the longest piece of a text that stands verbatim in \
the training text, in characters, the median. *Nats*: what the twin needs for a token; its own \
texts, the last two rows, are cheap for it. ± is the standard error over the texts. Low is not \
good by itself: a text that says the same thing again and again is cheap. *Corrected*: five times, \
a twentieth of the tokens is masked again at random and filled anew.

| | calls | distinct pairs | no words | longest copy | nats per token |
|---|---:|---:|---:|---:|---:|
{table}
"""


def quoted(text):
    """A text as a Markdown quotation that keeps its lines and shows nothing as markup."""
    for character in "\\*_[]<>#`":
        text = text.replace(character, "\\" + character)
    return "\n".join("> " + line + "  " for line in text.split("\n"))


def bold(text):
    """A piece of a quotation in bold."""
    inner = quoted(text)[2:].strip()
    return f" **{inner}** " if inner else " "


def corrected(sampler, model, z, generator, rounds=5, **options):
    """Sample, then mask a twentieth of the tokens again and refill them, `rounds` times."""
    result = sampler(model, z, generator=generator, **options)
    calls = [result.calls]
    for _ in range(rounds):
        again = forward_process(
            result.tokens, torch.full((len(z),), 0.95), model.mask_id, generator
        )
        result = sample_first_hitting(model, again, generator=generator, **options)
        calls.append(result.calls)
    result.calls = torch.cat(calls, dim=1)
    return result


def samplers(length):
    """{name: function (model, masks, generator) -> Trajectory}."""
    ancestral = partial(sample, steps=length)
    safer = dict(top_p=0.9)
    return {
        "ancestral": ancestral,
        "ancestral, 16 steps": partial(sample, steps=16),
        "ancestral, temperature 0.8": partial(ancestral, temperature=0.8),
        "ancestral, top-p 0.9": partial(ancestral, **safer),
        "ancestral, top-p 0.8": partial(ancestral, top_p=0.8),
        "margin, top-p 0.9": partial(sample_confident, steps=length, rule="margin", **safer),
        "entropy, top-p 0.9": partial(sample_confident, steps=length, rule="entropy", **safer),
        "confidence": partial(sample_confident, steps=length),
        "remasking, top-p 0.9": partial(sample_remask, steps=2 * length, **safer),
        "first-hitting, top-p 0.9, corrected": partial(corrected, sample_first_hitting, **safer),
    }


def words(text):
    """The words of a text: letters, marks and apostrophes, in lower case."""
    return re.findall(r"[^\W\d_]+(?:[’'][^\W\d_]+)*", text.lower())


def share_of_no_words(texts, known):
    """The share of words that are not among the known ones."""
    # the first and the last word of a text may be cut off
    found = [word for text in texts for word in words(text)[1:-1]]
    return mean(word not in known for word in found) if found else 0.0


class Judge:
    """What texts are like: their words against the training text's, and under the twin."""

    def __init__(self, train_text, tokenizer, twin):
        self.tokenizer, self.twin = tokenizer, twin
        self.known = set(words(train_text))

    def row(self, name, tokens, calls=None):
        """The figures of texts (B, L), and the texts, as a dict."""
        texts = [self.tokenizer.decode(ids) for ids in tokens.tolist()]
        nats = over_batches(
            lambda model, x, k, g: next_token_nats(model, x), self.twin, tokens, tokens[:, 0]
        )
        nats = (nats / tokens.shape[1]).tolist()
        return dict(
            name=name,
            calls=calls,
            distinct_pairs=distinct_pairs(texts),
            no_words=share_of_no_words(texts, self.known),
            texts=texts,
            nats=mean(nats),
            error=stdev(nats) / math.sqrt(len(nats)) if len(nats) > 1 else 0.0,
        )


def add_copies(rows, train_text):
    """Give each row its longest copy: all at once, as the training text is sorted for it."""
    copies = iter(longest_copies([text for row in rows for text in row["texts"]], train_text))
    for row in rows:
        row["longest_copy"] = median(len(next(copies)) for _ in row.pop("texts"))


def as_table(row):
    """A row of the table, in Markdown."""
    calls = "" if row["calls"] is None else f"{row['calls']:.0f}"
    return (
        f"| {row['name']} | {calls} | {row['distinct_pairs']:.0%} | {row['no_words']:.1%} "
        f"| {row['longest_copy']:.0f} | {row['nats']:.2f} ± {row['error']:.2f} |"
    )


@torch.no_grad()
def blank(model, tokenizer, ids, n_blanks):
    """A passage with blanks in it, and what the model expects there, as Markdown."""
    begins = [tokenizer.token_bytes[i][:1].isspace() for i in ids.tolist()]
    alone = [i for i in range(4, len(ids) - 5) if begins[i] and begins[i + 1]]  # whole words
    places = (
        [alone[len(alone) * (i + 1) // (n_blanks + 1)] for i in range(n_blanks)] if alone else []
    )
    z = ids[None].clone()
    z[0, places] = model.mask_id
    p = predict(model, z, z == model.mask_id, 1 - len(places) / len(ids))  # (N, V - 1)
    text = "".join(
        " ▁▁▁" if i in places else tokenizer.decode([t]) for i, t in enumerate(ids.tolist())
    )
    lines = [quoted(text.strip())]
    for row, place in zip(p, places, strict=True):
        guesses, best = [], row.topk(5).indices.tolist()
        for token in best:
            word = tokenizer.show(token).strip() or "(space)"
            word = f"**{word}**" if token == ids[place] else word
            guesses.append(f"{word} {row[token]:.0%}")
        if int(ids[place]) not in best:
            rank = int((row > row[ids[place]]).sum()) + 1
            guesses.append(f"… **{tokenizer.show(int(ids[place])).strip()}** (number {rank})")
        lines.append(f">\n> {', '.join(guesses)}")
    return "\n".join(lines)


def gap(model, tokenizer, ids, generator, size=12, **options):
    """A passage with a gap of `size` tokens, filled, as Markdown."""
    middle = slice((len(ids) - size) // 2, (len(ids) + size) // 2)
    z = ids[None].clone()
    z[0, middle] = model.mask_id
    made = sample_first_hitting(model, z, generator=generator, **options).tokens[0]
    before, inside, after = (
        tokenizer.decode(part.tolist())
        for part in (made[: middle.start], made[middle], made[middle.stop :])
    )
    true = tokenizer.decode(ids[middle].tolist()).strip()
    return f"{quoted(before)[:-2]}{bold(inside)}{quoted(after)[2:]}\n>\n> (the book: {true})"


def spread_windows(ids, n, length):
    """n windows of a text, evenly spread from its beginning to its end. (n, length)"""
    return windows(ids, np.linspace(0, len(ids) - length, n).astype(int), length)


def report(path, twin_path, n=16, shown=4, length=None, known=None):
    """The whole file as text, and the figures."""
    model, tokenizer, _ = load_checkpoint(path, DiffusionTransformer)
    twin, its_tokenizer, _ = load_checkpoint(twin_path, DiffusionTransformer)
    assert its_tokenizer == tokenizer, "the judge needs the same tokenizer"
    L = length or min(model.config.context, twin.config.context)
    train_text, val_text = load_parts(model.config.corpus, ROOT / "data")
    train_text, val = train_text[:known], np.array(tokenizer.encode(val_text))
    passages = partial(spread_windows, val)

    def noise(seed=1):
        return torch.Generator().manual_seed(seed)

    def as_texts(tokens):
        texts = [tokenizer.decode(ids) for ids in tokens[:shown].tolist()]
        return "\n\n".join(f"**{i}**\n\n{quoted(text)}" for i, text in enumerate(texts, 1))

    masks, judge = torch.full((n, L), model.mask_id), Judge(train_text, tokenizer, twin)
    rows, made = [judge.row("real text", passages(n, L))], {}
    for name, sampler in samplers(L).items():
        result = sampler(model, masks, generator=noise())
        made[name] = result.tokens
        rows.append(judge.row(name, result.tokens, result.network_calls))
    for name, options in (("the twin", {}), ("the twin, top-p 0.9", dict(top_p=0.9))):
        made[name] = sample_twin(twin, masks, noise(), **options).tokens
        rows.append(judge.row(name, made[name], L))
    add_copies(rows, train_text)
    breaks = []
    for name in ("ancestral, 16 steps", "confidence"):
        breaks.append(f"**{name}**\n\n{quoted(tokenizer.decode(made[name][0].tolist()))}")
    page = PAGE.format(
        name=Path(path).name,
        n=n,
        length=L,
        table="\n".join(map(as_table, rows)),
        blanks="\n\n".join(
            blank(model, tokenizer, ids, 1 + i % 3) for i, ids in enumerate(passages(3 * shown, 40))
        ),
        gaps="\n\n".join(
            gap(model, tokenizer, ids, noise(2), top_p=0.9) for ids in passages(2 * shown, 40)
        ),
        sentences="\n\n".join(
            gap(model, tokenizer, ids, noise(3), size=30, top_p=0.9) for ids in passages(shown, 80)
        ),
        best=as_texts(made["ancestral, top-p 0.8"]),
        plain=as_texts(made["ancestral"]),
        twin=as_texts(made["the twin, top-p 0.9"]),
        breaks="\n\n".join(breaks),
    )
    return page, rows


def main():
    parser = make_parser(__doc__)
    folder = ROOT / "checkpoints"
    parser.add_argument("checkpoint", nargs="?", default=folder / "kjv.safetensors")
    parser.add_argument("--twin", default=folder / "kjv-twin.safetensors")
    parser.add_argument("--save", default=folder / "samples.md")
    arguments = parser.parse_args()
    options = dict(n=1, shown=1, length=8, known=10_000) if arguments.smoke else {}
    page, rows = report(arguments.checkpoint, arguments.twin, **options)
    if not arguments.smoke:
        write_atomically(arguments.save, page.encode("utf-8"))
        keep(__file__, rows)
        print(arguments.save)


if __name__ == "__main__":
    main()
