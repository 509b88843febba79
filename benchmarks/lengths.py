"""Does a model serve short texts as well as its whole context? Tables for several lengths.

    python benchmarks/lengths.py                            the included model
    python benchmarks/lengths.py checkpoints/mine.safetensors --lengths 40 64 128

The first table: the bound on real validation text cut into windows of so many tokens, in nats per
token, and by how much it falls where masks up to the context follow each, which are not counted.
The second: the share of distinct pairs of words in texts that each sampler writes at that length,
divided by that of as many real texts.
"""

import copy
import math
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from common import ROOT, keep, make_parser, start_table

from corpus import corpus_of, covering_windows
from mdlm.diffusion import nelbo
from mdlm.model import DiffusionTransformer
from mdlm.sampling import sample, sample_confident, sample_first_hitting, sample_remask
from mdlm.training import evaluate
from saving import load_checkpoint
from text_statistics import distinct_pairs

SAMPLERS = {
    "ancestral": sample,
    "ancestral, top-p 0.9": partial(sample, top_p=0.9),
    "first-hitting": sample_first_hitting,
    "margin": partial(sample_confident, rule="margin"),
    "entropy": partial(sample_confident, rule="entropy"),
    "remasking": sample_remask,
}


def reading(model, n, padding=0):
    """The model, for windows of n tokens. So many masks follow each, which are not counted."""
    reader = copy.copy(model)
    reader.config = replace(model.config, context=n)

    def features(z, t=None):
        z_padded = F.pad(z, (0, padding), value=model.mask_id)  # (B, n + padding)
        return model.features(z_padded, t)[:, : z.shape[1]]

    reader.features = features
    return reader


def measure(model, tokens, n, passes):
    """The bound on a text in windows of n tokens, and what masks behind each take off: a dict."""
    short, padded = reading(model, n), reading(model, n, model.config.context - n)

    def gain(_, x, k, noise):  # with the same masks in both: their difference has a small error
        return nelbo(short, x, k, noise.clone_state()) - nelbo(padded, x, k, noise)

    nats, error = evaluate(short, tokens, passes=passes)
    gains, gain_error = evaluate(short, tokens, passes=passes, bound=gain)
    return dict(tokens=n, short=nats, error=error, gain=gains, gain_error=gain_error)


def main():
    parser = make_parser(__doc__)
    included = ROOT / "checkpoints" / "kjv.safetensors"
    parser.add_argument("checkpoint", nargs="?", default=included, help="(default: the included)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[40, 64, 128, 256])
    parser.add_argument("--texts", type=int, default=16, help="of each sampler (default: 16)")
    arguments = parser.parse_args()
    model, tokenizer, metadata = load_checkpoint(arguments.checkpoint, DiffusionTransformer)
    tokens = corpus_of(model.config, tokenizer, metadata).val
    lengths, passes = [n for n in arguments.lengths if n <= model.config.context], 4
    if arguments.smoke:
        tokens, lengths, arguments.texts, passes = tokens[:300], [8], 2, 1
    rows, row = [], start_table("tokens", "nats a token", "masks behind take off")
    for n in lengths:
        rows.append(found := measure(model, tokens, n, passes))
        gain = f"{found['gain']:.3f} ± {found['gain_error']:.3f}"
        row(n, f"{found['short']:.3f} ± {found['error']:.3f}", gain)
    print()
    row = start_table("distinct pairs, of real text's", *(f"{n} tokens" for n in lengths))
    for name, sampler in SAMPLERS.items():
        shares = []
        for n in lengths:
            every = math.ceil(len(tokens) // n / arguments.texts)
            real = covering_windows(tokens, n)[0][::every][: arguments.texts]
            masks, noise = torch.full_like(real, model.mask_id), torch.Generator().manual_seed(1)
            made = sampler(model, masks, n, generator=noise).tokens
            pairs = [
                distinct_pairs([tokenizer.decode(ids) for ids in texts.tolist()])
                for texts in (made, real)
            ]
            shares.append(pairs[0] / max(1e-9, pairs[1]))
        rows.append(dict(sampler=name, lengths=lengths, distinct_pairs=shares))
        row(name, *(f"{share:.2f}" for share in shares))
    if not arguments.smoke:
        keep(__file__, rows)


if __name__ == "__main__":
    main()
