"""The dial from GPT to diffusion: the same network and time for each size of the blocks.

    python benchmarks/blocks.py                      train what is missing, measure, draw: hours
    python benchmarks/blocks.py --names 16 gpt --seeds 1 2
    python benchmarks/blocks.py --costs              measure what a training step costs (RUNS)
    python benchmarks/blocks.py --included           texts of the included models: minutes

Every run takes as long as so many steps of plain diffusion, `--steps`: others cost more, so they
get fewer. (Costs are ratios, measured in turns: seconds depend on what else the machine does.) A
finished run is a checkpoint in runs/blocks/, and is not trained again. The figures go to
blocks.json, the curve to img/blocks.png. The test text is opened for the last column only.
"""

import statistics
import time
from functools import partial
from pathlib import Path

import matplotlib
import torch
from common import ROOT, keep, make_parser, random_corpus, run_apart, start_table, trainer
from samples import Judge

from compressors import bits_per_byte
from corpus import covering_windows, load_parts, open_test, prepare_corpus
from hardware import over_batches
from mdlm.blocks import (
    BlockDenoiser,
    block_nats,
    block_nelbo,
    block_sizes,
    block_training_loss,
    sample_blocks,
    spread_over_blocks,
)
from mdlm.diffusion import loss_in_nats, mask_counts, next_token_nats
from mdlm.model import DiffusionTransformer
from mdlm.sampling import sample_first_hitting
from mdlm.training import evaluate
from mdlm.twin import sample_twin
from saving import INCLUDED, save_checkpoint
from settings import settings
from train import load_any, parts

FOLDER = ROOT / "runs" / "blocks"
JUDGE = ROOT / "checkpoints" / "kjv-twin.safetensors"


def clipped(low, high):
    """A training loss with shares of masks from low to high only: the paper's clipped schedule."""

    def loss(model, x, t, generator=None):
        sizes = block_sizes(x.shape[1], model.config.block)
        share = low + (high - low) * spread_over_blocks(t, len(sizes), generator)
        return block_nats(model, x, mask_counts(share, sizes), generator).sum(dim=1)

    return loss


RUNS = {  # name: (cost of a step, in steps of plain diffusion; changed settings, training loss)
    "diffusion": (1.0, {}, None),
    "64": (1.25, dict(block=64), block_training_loss),
    "16": (1.45, dict(block=16), block_training_loss),
    "8": (1.55, dict(block=8), block_training_loss),
    "4": (1.75, dict(block=4), block_training_loss),
    "2": (1.95, dict(block=2), block_training_loss),
    "1": (2.15, dict(block=1), block_training_loss),
    "gpt": (1.65, dict(causal=True, muon_lr=0.01), None),  # Muon's rate as for the included twin
    "4, clipped": (1.75, dict(block=4), clipped(0.45, 0.95)),
    "16, clipped": (1.45, dict(block=16), clipped(0.3, 0.8)),
    # GPT's rate of Muon for the others
    "4, rate 0.01": (1.75, dict(block=4, muon_lr=0.01), block_training_loss),
    "16, rate 0.01": (1.45, dict(block=16, muon_lr=0.01), block_training_loss),
    "diffusion, rate 0.01": (1.0, dict(muon_lr=0.01), None),
}


def start_run(name, **changes):
    """(config, corpus, model, ema, step) of a run: step() does one step of training."""
    _, setting, loss = RUNS[name]
    config = settings("small", **(dict(short_windows=0.0) | setting | changes))
    corpus, config = (
        (random_corpus(config), config) if changes.get("corpus") == "" else prepare_corpus(config)
    )
    model, _, ema, step = trainer(config, corpus, loss, torch.device("cpu"))
    return config, corpus, model, ema, step


def train_for(name, seed, steps, folder, **changes):
    """One run, as long as so many steps of plain diffusion. Writes its checkpoint."""
    torch.set_num_threads(1)
    changes |= dict(seed=seed, steps=max(1, round(steps / RUNS[name][0])))
    config, corpus, model, ema, step = start_run(name, **changes)
    began = time.process_time()
    for _ in range(config.steps):
        step()
    metadata = dict(steps=config.steps, seconds=time.process_time() - began)
    ema.swap()
    for block in model.blocks:
        block._compiled_call_impl = None
    save_checkpoint(path_of(name, seed, folder), model, corpus.tokenizer, metadata)


def path_of(name, seed, folder=FOLDER):
    return Path(folder) / f"{name.replace(',', '').replace(' ', '-')}-seed-{seed}.safetensors"


def costs(rounds):
    """CPU time of a step of each run, in steps of plain diffusion: medians over the rounds."""
    torch._dynamo.config.automatic_dynamic_shapes = False  # each size has its own compiled code
    torch._dynamo.config.recompile_limit = 100
    times = {name: [] for name in RUNS if "," not in name}
    steps = {name: start_run(name, corpus="")[-1] for name in times}
    for _ in range(rounds + 2):
        for name, step in steps.items():
            began = time.process_time()
            step()
            times[name].append(time.process_time() - began)
    usual = statistics.median(times["diffusion"][2:])
    return {name: statistics.median(its[2:]) / usual for name, its in times.items()}


@torch.no_grad()
def scatter(model, tokens, draws):
    """Standard deviation of a text's loss over its masks, in nats a token: the mean over texts."""
    (x, *_), config = covering_windows(tokens, model.config.context, 1, 32), model.config
    noise, found = torch.Generator().manual_seed(0), []
    for _ in range(draws):
        k = torch.randint(1, x.shape[1] + 1, (len(x),), generator=noise)
        found.append((block_nelbo if config.block else loss_in_nats)(model, x, k, noise))
    return (torch.stack(found).var(dim=0).mean().sqrt() / x.shape[1]).item()


def write(model, n, length):
    """n texts from a model, one token a call: (tokens, seconds of CPU time)."""
    z, noise = torch.full((n, length), model.mask_id), torch.Generator().manual_seed(1)
    start = time.process_time()
    if model.config.causal:
        made = sample_twin(model, z, noise)
    elif model.config.block:
        made = sample_blocks(model, z, None, noise)
    else:
        made = sample_first_hitting(model, z, None, noise)
    return made.tokens, time.process_time() - start


def measure(name, seed, judge, smoke):
    """All figures of one checkpoint, a dict."""
    model, tokenizer, metadata = load_any(path_of(name, seed), "cpu")
    corpus, config = prepare_corpus(model.config)
    bound = parts(config)["bound"]
    row = dict(name=name, seed=seed, steps=metadata["steps"], seconds=metadata["seconds"])
    test = open_test(config, tokenizer)
    for part, tokens, n_bytes in (("validation", corpus.val, corpus.val_bytes), ("test", *test)):
        tokens = tokens[: 4 * config.context] if smoke else tokens
        nats, error = evaluate(model, tokens, bound=bound)
        exact = config.causal or config.block == 1  # nothing was drawn by lot
        row[part] = bits_per_byte(nats, len(tokens), n_bytes)
        row[part + "_error"] = 0.0 if exact else bits_per_byte(error, len(tokens), n_bytes)
    row["scatter"] = 0.0 if config.causal else scatter(model, corpus.val, 2 if smoke else 8)
    texts, seconds = write(model, 2 if smoke else 16, config.context)
    row["ms_per_token"] = 1000 * seconds / texts.numel()
    k = torch.ones(len(texts), dtype=torch.long)
    nats = over_batches(lambda judge, x, *_: next_token_nats(judge, x), judge, texts, k)
    row["judged"] = nats.mean().item() / config.context
    row["judged_error"] = nats.std().item() / config.context / len(nats) ** 0.5
    return row


def speed(length, context, block, steps):
    """Tokens a second of an untrained network of that size, one text."""
    config = settings("small", context=context, block=block)
    model, z = BlockDenoiser(config).eval(), torch.full((1, length), config.vocab_size - 1)
    start = time.process_time()
    sample_blocks(model, z, steps, torch.Generator().manual_seed(1))
    return length / (time.process_time() - start)


@torch.no_grad()
def speed_without(length, block, steps):
    """The same, if nothing can be kept: from calls at eight places of the text, not all."""
    config, calls = settings("small", context=length, block=block), []
    model = BlockDenoiser(config).eval()
    for part in range(8):
        n = max(1, round((part + 0.5) / 8 * length / block)) * block  # up to the end of a block
        start = time.process_time()
        model.head(model.features(torch.full((1, n), 7))[:, -1])
        calls.append(time.process_time() - start)
    return block / steps / statistics.mean(calls)


def speed_of_twin(length):
    model = DiffusionTransformer(settings("small", context=length, causal=True)).eval()
    return length / write(model, 1, length)[1]


def speeds(smoke):
    """Tokens a second by length: a list of dicts."""
    rows = []
    for length in (32,) if smoke else (128, 512, 2048):
        row = dict(length=length, gpt=speed_of_twin(length))
        for steps in (16, 4):
            row[f"without, {steps}"] = speed_without(length, 16, steps)
            row[f"cache, {steps}"] = speed(length, length, 16, steps)
            row[f"sliding, {steps}"] = speed(length, 32 if smoke else 128, 16, steps)
        rows.append(row)
    return rows


def included(n):
    """Print what the included models' texts are like, beside real ones."""
    loaded = {name: load_any(JUDGE.with_stem(name), "cpu") for name in INCLUDED}
    twin, tokenizer, _ = loaded[JUDGE.stem]
    corpus, config = prepare_corpus(twin.config)
    judge = Judge(load_parts(config.corpus, ROOT / "data")[0], tokenizer, twin)
    real = covering_windows(corpus.val, config.context)[0]
    real = real[:: len(real) // n][:n]  # evenly spread
    masks = torch.full_like(real, tokenizer.mask_id)
    row = start_table("", "top-p", "calls", "distinct pairs", "no words", "nats per token")

    def show(name, top_p, tokens, calls):
        r = judge.row(name, tokens)
        nats = f"{r['nats']:.2f} ± {r['error']:.2f}"
        row(name, top_p, calls, f"{r['distinct_pairs']:.0%}", f"{r['no_words']:.1%}", nats)

    show("real text", "", real, "")
    for top_p in (1.0, 0.9):
        for name, sampler in (
            ("kjv", sample_first_hitting), ("kjv-blocks", sample_blocks),
            ("kjv-blocks", partial(sample_blocks, steps=2)), ("kjv-twin", sample_twin),
        ):  # fmt: skip
            noise = torch.Generator().manual_seed(1)
            made = sampler(loaded[name][0], masks, generator=noise, top_p=top_p)
            show(name, top_p, made.tokens, f"{made.network_calls:.0f}")


def draw(rows):
    """The curve: bits per byte of the test text against the size of the blocks."""
    matplotlib.use("Agg")
    from pictures import plt

    _, axis = plt.subplots(figsize=(6, 3.2))
    sizes = {"diffusion": 128} | {name: int(name) for name in RUNS if name.isdigit()}
    points = [(sizes[r["name"]], r["test"]) for r in rows if r["name"] in sizes]
    means = {s: statistics.mean(v for size, v in points if size == s) for s, _ in points}
    axis.plot(*zip(*sorted(means.items()), strict=True), "C0-", lw=1)
    axis.plot(*zip(*points, strict=True), "C0o", label="blocks (128: plain diffusion)")
    gpts = [row["test"] for row in rows if row["name"] == "gpt"]
    for i, bits in enumerate(gpts):
        axis.axhline(bits, color="C1", ls="--", lw=1, label=None if i else "GPT, exact")
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(means), sorted(means))
    axis.set(xlabel="tokens in a block", ylabel="test, bits per byte, at most")
    axis.legend(fontsize=8, loc="center right")
    plt.savefig(ROOT / "img" / "blocks.png", dpi=120, bbox_inches="tight")


def report(rows, fast):
    """Print the tables."""
    row = start_table(
        "blocks", "seed", "steps", "validation", "test, bits per byte", "scatter", "judged",
        "ms/token",
    )  # fmt: skip
    for r in rows:
        bound = "" if r["name"] in ("gpt", "1") else "at most "
        row(
            r["name"], r["seed"], r["steps"], f"{r['validation']:.3f}",
            f"{bound}{r['test']:.3f} ± {r['test_error']:.3f}", f"{r['scatter']:.2f}",
            f"{r['judged']:.2f} ± {r['judged_error']:.2f}", f"{r['ms_per_token']:.1f}",
        )  # fmt: skip
    print()
    names = list(fast[0])
    row = start_table(*names)
    for r in fast:
        row(*(f"{r[name]:,.0f}" for name in names))


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=800, help="of plain diffusion (default: 800)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="(default: 1 2)")
    parser.add_argument("--names", nargs="+", default=list(RUNS), help="(default: all)")
    parser.add_argument("--costs", action="store_true", help="only measure costs of a step")
    parser.add_argument("--included", action="store_true", help="only texts of included models")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.costs:
        for name, cost in costs(1 if arguments.smoke else 8).items():
            print(f"{name:<12}{cost:.2f}")
        return
    if arguments.included:
        included(2 if arguments.smoke else 16)
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    wanted = [(name, seed) for seed in arguments.seeds for name in arguments.names]
    if not arguments.smoke:
        calls = [(train_for, *run, arguments.steps, FOLDER) for run in wanted]
        list(run_apart([call for call in calls if not path_of(*call[1:3]).exists()]))
    judge = load_any(JUDGE, "cpu")[0]
    rows = [measure(*run, judge, arguments.smoke) for run in wanted if path_of(*run).exists()]
    fast = speeds(arguments.smoke)
    report(rows, fast)
    if not arguments.smoke:
        keep(__file__, dict(runs=rows, speeds=fast))
        draw(rows)


if __name__ == "__main__":
    main()
