"""Does a model serve short texts as well as its whole context? Tables for several lengths.

    python benchmarks/lengths.py                            the included model
    python benchmarks/lengths.py checkpoints/mine.safetensors --lengths 40 64 128

The first table: the bound on real validation text cut into windows of so many tokens, in nats per
token, alone ("short"), and followed by masks up to the context, which are not counted ("padded").
The second: the share of distinct pairs of words in texts that each sampler writes at that length,
divided by that of as many real texts.
"""

import math
from functools import partial

import torch
from common import ROOT, keep, make_parser, start_table

from corpus import corpus_of, covering_windows
from hardware import over_batches
from mdlm.diffusion import masked_nats, spread_mask_counts
from mdlm.model import DiffusionTransformer
from mdlm.sampling import (
    distinct_pairs,
    sample,
    sample_confident,
    sample_first_hitting,
    sample_remask,
)
from saving import load_checkpoint

SAMPLERS = {
    "ancestral": sample,
    "ancestral, top-p 0.9": partial(sample, top_p=0.9),
    "first-hitting": sample_first_hitting,
    "margin": partial(sample_confident, rule="margin"),
    "entropy": partial(sample_confident, rule="entropy"),
    "remasking": sample_remask,
}


def padded_nats(model, x, k, generator, padding):
    """Estimate of the bound of texts x (B, n), with so many masks after each. (B,)"""
    moment = torch.rand(x.shape, generator=generator, dtype=torch.float64)
    masked = (moment.argsort(dim=1).argsort(dim=1) < k[:, None]).to(x.device)
    ends = torch.full((len(x), padding), model.mask_id, device=x.device)
    z = torch.cat([torch.where(masked, model.mask_id, x), ends], dim=1)
    nats, row = masked_nats(model, torch.cat([x, ends.fill_(0)], dim=1), z)
    counted = torch.cat([masked, torch.zeros_like(ends, dtype=torch.bool)], dim=1)
    nats = nats * counted[z == model.mask_id]
    total = torch.zeros(len(x), device=x.device).index_add(0, row, nats)
    return total * x.shape[1] / k.to(x.device)


@torch.no_grad()
def bound(model, tokens, n, padding):
    """(nats per token, standard error) of a text in windows of n tokens."""
    x = covering_windows(tokens, n)[0]  # (N, n)
    k = spread_mask_counts(*x.shape, torch.Generator().manual_seed(0))
    nats = over_batches(partial(padded_nats, padding=padding), model, x, k) / n
    error = (nats[k.argsort()].diff().pow(2).mean() / 2 / len(nats)).sqrt()
    return nats.mean().item(), error.item()


def main():
    parser = make_parser(__doc__)
    included = ROOT / "checkpoints" / "kjv.safetensors"
    parser.add_argument("checkpoint", nargs="?", default=included, help="(default: the included)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[40, 64, 128, 256])
    parser.add_argument("--texts", type=int, default=16, help="of each sampler (default: 16)")
    arguments = parser.parse_args()
    model, tokenizer, metadata = load_checkpoint(arguments.checkpoint, DiffusionTransformer)
    tokens = corpus_of(model.config, tokenizer, metadata).val
    lengths = [n for n in arguments.lengths if n <= model.config.context]
    if arguments.smoke:
        tokens, lengths, arguments.texts = tokens[:300], [8], 2
    rows, row = [], start_table("tokens", "short", "padded to the context")
    for n in lengths:
        short, error = bound(model, tokens, n, 0)
        padded, _ = bound(model, tokens, n, model.config.context - n)
        rows.append(dict(tokens=n, short=short, padded=padded, error=error))
        row(n, f"{short:.3f} ± {error:.3f}", f"{padded:.3f}")
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
