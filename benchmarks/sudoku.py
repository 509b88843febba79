"""Sudoku: how close to the truth, what solves puzzles, and what a GPT of the same size does.

    python benchmarks/sudoku.py                  diffusion and both GPTs, two seeds: an hour or more
    python benchmarks/sudoku.py --included       measure the model in checkpoints/
    python benchmarks/sudoku.py --grids 5 --picture img/sudoku.png
    python benchmarks/sudoku.py --make           first train that model anew: an hour or two
    python benchmarks/sudoku.py --nine 60        9 x 9: what so many minutes give, as an exercise

All is measured on held-out classes of grids. The GPTs get as much processor time as the diffusion
model, not as many steps. "Bound" is in nats a grid (for GPT (a) it is exact); "valid" is the share
of grids written from nothing, one token a call; the rest are shares of puzzles with one solution
that are solved, by their numbers of givens. Results are added to sudoku.json.
"""

import json
import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from common import ROOT, make_parser, start_table

from files import write_atomically
from identity import code_digest
from mdlm import sudoku
from mdlm.diffusion import next_token_nats, spread_mask_counts, training_loss
from mdlm.model import DiffusionTransformer
from mdlm.sampling import sample_confident, sample_first_hitting
from mdlm.twin import sample_twin
from saving import load_checkpoint, save_checkpoint
from settings import settings

RESULTS, INCLUDED = Path(__file__).with_suffix(".json"), ROOT / "checkpoints" / "sudoku.safetensors"
NETWORK = dict(
    corpus="sudoku", vocab_size=257, context=36, n_layers=10, d_model=64, n_heads=4,
    batch_size=256, muon_lr=0.02, adamw_lr=6e-3,
)  # fmt: skip
LARGER = dict(n_layers=12, d_model=96)  # the included one
GIVENS = (10, 12, 14, 18, 22)


class Measures:
    """Held-out grids and puzzles, the same for every model."""

    def __init__(self, n):
        classes, noise = sudoku.first_row_grids(6), torch.Generator().manual_seed(1234)
        self.exact, self.n = sudoku.PerfectNetwork(classes), n
        self.train, held_out = sudoku.split_classes(classes)
        self.entropy = math.log(len(classes) * math.factorial(6))
        self.x = sudoku.draw_grids(held_out, 2 * n, noise)
        self.k = spread_mask_counts(2 * n, 36, noise)
        self.best = sudoku.nats_at(self.exact, self.x, self.k)
        self.puzzles = {}
        for givens in GIVENS:
            grids = sudoku.draw_grids(held_out, n, noise)
            made = [(sudoku.make_puzzle(self.exact, x, givens, noise), x) for x in grids]
            made = [(z, x) for z, x in made if (z != self.exact.mask_id).sum() == givens]
            self.puzzles[givens] = [torch.stack(part) for part in zip(*made, strict=True)]

    def bound(self, model):
        """(nats a grid, its standard error): the entropy, and what the model needs beyond it."""
        excess = sudoku.nats_at(model, self.x, self.k) - self.best
        return self.entropy + excess.mean().item(), excess.std().item() / len(excess) ** 0.5

    def solved(self, solve):
        """Share of solved puzzles for each number of givens. solve(z) -> (B, 36)"""
        pairs = self.puzzles.values()
        return [(solve(z) == x).all(dim=1).double().mean().item() for z, x in pairs]

    def diffusion(self, model):
        """A row of results for each order."""
        noise, masks = torch.Generator().manual_seed(5), torch.full((self.n, 36), model.mask_id)
        nats, error = self.bound(model)
        orders = {"random": sample_first_hitting}
        for rule in ("confidence", "margin", "entropy"):
            orders[rule] = partial(sample_confident, steps=36, rule=rule)
        for name, write in orders.items():
            valid = sudoku.is_valid(write(model, masks, generator=noise).tokens)
            solved = self.solved(lambda z, write=write: write(model, z, generator=noise).tokens)
            valid = valid.double().mean().item()
            yield dict(order=name, nats=nats, error=error, valid=valid, solved=solved)

    @torch.no_grad()
    def gpt_a(self, model):
        """The row of the GPT that has learned grids from left to right; clues are clamped."""
        noise, masks = torch.Generator().manual_seed(5), torch.full((self.n, 36), model.mask_id)
        nats = torch.cat([next_token_nats(model, x) for x in self.x.split(256)])
        valid = sudoku.is_valid(sample_twin(model, masks, noise).tokens).double().mean().item()
        solved = self.solved(lambda z: sample_twin(model, z, noise).tokens)
        error = nats.std().item() / len(nats) ** 0.5
        return dict(
            order="left to right", nats=nats.mean().item(), error=error, valid=valid, solved=solved
        )

    def gpt_b(self, model):
        """The row of the GPT that has learned "puzzle=solution"."""
        noise = torch.Generator().manual_seed(5)

        def solve(z):
            dots = torch.where(z == model.mask_id, ord("."), z)
            rest = torch.full_like(z, model.mask_id)
            text = torch.cat([dots, torch.full_like(z[:, :1], ord("=")), rest], dim=1)
            return sample_twin(model, text, noise).tokens[:, 37:]

        solved = self.solved(solve)
        return dict(order="puzzle first", nats=None, error=None, valid=None, solved=solved)


def processor_time(config, draw, loss=training_loss, steps=12):
    """Seconds of processor time that a step takes."""
    marks = []
    watch = lambda model, step: marks.append(time.process_time())  # noqa: E731
    config = replace(config, steps=steps, eval_every=steps // 2)
    sudoku.learn(config, draw, loss, watch)
    return (marks[1] - marks[0]) / (steps // 2)


def compare(measures, steps, seed, changes):
    """Trains the three models with one seed. Yields rows."""
    config = settings("medium", **NETWORK | changes, steps=steps, seed=seed)
    grids = partial(sudoku.draw_grids, measures.train)
    pairs = partial(sudoku.draw_with_puzzles, measures.train)
    causal = replace(config, causal=True)
    contestants = {
        "diffusion": (config, grids, training_loss, measures.diffusion),
        "GPT (a)": (causal, grids, training_loss, lambda m: [measures.gpt_a(m)]),
        "GPT (b)": (replace(causal, context=73), pairs, sudoku.solution_nats,
                    lambda m: [measures.gpt_b(m)]),
    }  # fmt: skip
    allowed = steps * processor_time(*contestants["diffusion"][:3])
    for name, (its, draw, loss, measure) in contestants.items():
        if name != "diffusion":
            its = replace(its, steps=max(1, round(allowed / processor_time(its, draw, loss))))
        began = time.process_time()
        model = sudoku.learn(its, draw, loss)
        facts = dict(model=name, seed=seed, steps=its.steps, cpu=time.process_time() - began)
        yield from ({**facts, **row} for row in measure(model))


def make(measures, steps, path, changes):
    """Train the included model, and write it after every 250 steps: the best is kept."""
    larger = NETWORK | LARGER | changes
    config = settings("medium", **larger, steps=steps, eval_every=min(steps, 250))
    history, began = [], time.perf_counter()

    def watch(model, step):
        seconds = time.perf_counter() - began
        nats, error = measures.bound(model)
        bits = math.log(2) * 36
        row = dict(step=step, tokens=step * config.batch_size * 36, seconds=seconds)
        history.append(row | dict(bpb=nats / bits, error=error / bits, nats=nats, nats_error=error))
        print(f"step {step}, {seconds / 60:.0f} minutes: {nats:.3f} ± {error:.3f} nats", flush=True)
        if nats == min(past["nats"] for past in history):
            save(path, model, step, seconds, history)

    sudoku.learn(config, partial(sudoku.draw_grids, measures.train), watch=watch)


def save(path, model, step, seconds, history):
    """Write a checkpoint in bfloat16, which takes half the room."""
    facts = dict(steps=step, seconds=seconds, history=history, device="cpu", text="")
    parameters = sum(p.numel() for p in model.parameters())
    facts |= dict(parameters=parameters, code=code_digest(sudoku.learn))
    save_checkpoint(path, model, sudoku.TOKENIZER, facts, torch.bfloat16)


def search(generator):
    """One 9 x 9 grid, by filling the cell with the fewest possible digits, at random. (81,)"""
    places = sudoku.units(9)
    sees = [places[(places == cell).any(dim=1)].unique() for cell in range(81)]
    while True:
        grid, free = torch.zeros(81, dtype=torch.long), torch.ones(81, 9, dtype=torch.bool)
        for _ in range(81):
            n = free.sum(dim=1).masked_fill(grid > 0, 10)  # (81,) digits left in each empty cell
            fewest = (n == n.min()).nonzero()[:, 0]
            cell = fewest[torch.randint(len(fewest), (1,), generator=generator)].item()
            if n[cell] == 0:  # a dead end: begin anew
                break
            grid[cell] = 1 + torch.multinomial(free[cell].double(), 1, generator=generator).item()
            free[sees[cell], grid[cell] - 1] = False
        else:
            return grid


def shuffle(seeds, n, generator):
    """n grids: one of the seeds (N, 81), its bands, rows, stacks, columns and digits shuffled.

    (n, 81) tokens"""
    grids = sudoku.draw_grids(seeds, n, generator).view(n, 9, 9)
    for _ in range(2):  # rows, then columns
        bands = torch.rand(n, 3, 1, generator=generator).argsort(dim=1)
        rows = 3 * bands + torch.rand(n, 3, 3, generator=generator).argsort(dim=2)  # (n, 3, 3)
        grids = grids.gather(1, rows.view(n, 9, 1).expand(n, 9, 9)).mT
    return grids.flatten(1)


def nine(minutes, n, n_seeds, changes):
    """Train on 9 x 9 grids for so many minutes, and print what came of it every tenth of them."""
    noise = torch.Generator().manual_seed(99)
    seeds = torch.stack([search(noise) for _ in range(n_seeds)])
    train, held_out = seeds[n_seeds // 10 :], shuffle(seeds[: n_seeds // 10], n, noise)
    k = spread_mask_counts(n, 81, noise)
    setting = NETWORK | dict(context=81, batch_size=128) | changes
    step_time = processor_time(settings("medium", **setting), partial(shuffle, train))
    steps = max(10, round(60 * minutes / step_time))
    print(f"{steps} steps; the entropy of all grids is 50.25 nats")
    config = settings("medium", **setting, steps=steps, eval_every=max(1, steps // 10))
    masks, began = torch.full((min(n, 200), 81), sudoku.TOKENIZER.mask_id), time.process_time()
    row = start_table("step", "minutes", "nats", "valid", "50", "40", "30 givens: completed")

    def watch(model, step):
        spent = (time.process_time() - began) / 60
        nats, shares = sudoku.nats_at(model, held_out, k).mean().item(), []
        for givens in (0, 50, 40, 30):
            z, order = masks.clone(), torch.rand(masks.shape, generator=noise).argsort(dim=1)
            places = order[:, :givens]
            z.scatter_(1, places, held_out[: len(z)].gather(1, places))
            written = sample_confident(model, z, 81, noise, "margin").tokens
            shares.append(f"{sudoku.is_valid(written).double().mean().item():.1%}")
        row(step, f"{spent:.0f}", f"{nats:.2f}", *shares)

    sudoku.learn(config, partial(shuffle, train), watch=watch)


def show(rows):
    """Print the rows as a table."""
    row = start_table(
        "model", "seed", "order", "steps", "bound, nats", "valid", *(f"{n} givens" for n in GIVENS)
    )
    for r in rows:
        nats = f"{r['nats']:.3f} ± {r['error']:.3f}" if r["nats"] else ""
        valid = f"{r['valid']:.1%}" if r["valid"] is not None else ""
        solved = (f"{share:.1%}" for share in r["solved"])
        row(r["model"], r["seed"], r["order"], f"{r['steps']:,}", nats, valid, *solved)


def picture(measures, path):
    """Draw how the included model solves a puzzle: four moments, with what it expects."""
    from pictures import draw_sudoku, plt

    model, _, _ = load_checkpoint(INCLUDED, DiffusionTransformer)
    z, x = (part[:1] for part in measures.puzzles[12])
    solved = sample_confident(model, z, 24, torch.Generator().manual_seed(0), "margin")
    fig, axes = plt.subplots(1, 4, figsize=(12, 3.2), layout="constrained")
    for axis, step in zip(axes, (0, 8, 16, 24), strict=True):
        state = solved.state(step)
        with torch.no_grad():
            p = model(state.to(next(model.parameters()).device))[0].exp().cpu()
        p = p[:, sudoku.ONE : sudoku.ONE + 6]
        draw_sudoku(axis, state[0], sudoku.BOXES[6], z[0] != model.mask_id, p, x[0])
        axis.set_title(f"after {step} calls" if step else "the puzzle, and what is expected")
    fig.savefig(path, dpi=80, bbox_inches="tight")


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=800, help="of diffusion (default: 800)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="(default: 1 2)")
    parser.add_argument("--grids", type=int, default=1000, help="to measure on (default: 1000)")
    parser.add_argument("--included", action="store_true", help="measure checkpoints/sudoku")
    parser.add_argument("--picture", metavar="PATH", help="draw the included model at work")
    parser.add_argument("--make", action="store_true", help="train it first")
    parser.add_argument("--nine", type=float, metavar="MINUTES", help="train on 9 x 9 grids")
    parser.add_argument("--make-steps", type=int, default=3000, help="(default: 3000)")
    arguments = parser.parse_args()
    small = dict(n_layers=1, d_model=32, batch_size=8, compile=False) if arguments.smoke else {}
    n = 4 if arguments.smoke else arguments.grids
    if arguments.nine:
        nine(arguments.nine, n, 20 if arguments.smoke else 2000, small)
        return
    measures = Measures(n)
    if arguments.smoke:
        show(compare(measures, 2, 1, small))
        return
    if arguments.picture:
        picture(measures, arguments.picture)
        return
    if arguments.make:
        make(measures, arguments.make_steps, INCLUDED, small)
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    if arguments.make or arguments.included:
        model, _, facts = load_checkpoint(INCLUDED, DiffusionTransformer)
        found = [
            dict(model="included", seed=1, steps=facts["steps"], cpu=None, **row)
            for row in measures.diffusion(model)
        ]
        rows = [r for r in rows if r["model"] != "included"] + found
    else:
        for seed in arguments.seeds:
            for found in compare(measures, arguments.steps, seed, small):
                same = ("model", "seed", "order")
                rows = [r for r in rows if any(r[name] != found[name] for name in same)] + [found]
                write_atomically(RESULTS, (json.dumps(rows, indent=1) + "\n").encode())
    write_atomically(RESULTS, (json.dumps(rows, indent=1) + "\n").encode())
    show(rows)


if __name__ == "__main__":
    main()
