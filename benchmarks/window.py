"""What the window costs: while a text is sampled in it, and while nothing happens.

python benchmarks/window.py             with the included model, in a real window, about a minute
"""

import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pygame
import torch
from common import ROOT, make_parser

import mdlm.sampling
from mdlm.model import DiffusionTransformer
from saving import load_checkpoint
from visual.controls import State
from visual.record import Settings
from visual.window import find_display, open_window, show
from visual.worker import Worker


def clocks():
    """(Seconds, CPU seconds of this thread, CPU seconds of the process)."""
    return np.array([time.perf_counter(), time.thread_time(), time.process_time()])


class Watched(Worker):
    """A worker that says how long it samples."""

    def sample(self, lanes):
        start = clocks()
        super().sample(lanes)
        self.span, self.took = (start[0], time.perf_counter()), clocks() - start
        return lanes


def in_thread(function, *arguments):
    """The function's value. The thread ends, and with it its team of OpenMP threads, which would
    slow down any other team."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()


def sample_alone(model, s):
    """The clocks of a run without a window."""
    start, noise = clocks(), torch.Generator().manual_seed(s.seed)
    masks = torch.full((1, s.length), model.mask_id)
    mdlm.sampling.sample(model, masks, s.steps, generator=noise, top_p=s.top_p)
    return clocks() - start


def shown(window, worker, state, settled):
    """Show the window until so many seconds after all is computed: (the clocks of each frame, the
    clocks afterwards)."""
    frames, marks, flip = [], [], pygame.Window.flip

    class Flips:
        def __getattr__(self, name):
            return getattr(window, name)

        def flip(self):
            flip(window)
            frames.append(clocks())

    def watch():
        while not marks or marks[-1][0] < marks[0][0] + settled:
            time.sleep(0.01)
            if worker.lanes[0].done and worker.lanes[0].rows[-2].bits is not None:
                if not marks:  # to the end of the replay: from now on nothing moves
                    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_END, mod=0))
                marks.append(clocks())
        pygame.event.post(pygame.event.Event(pygame.QUIT))

    threading.Thread(target=watch).start()
    show(Flips(), worker, state)
    worker.close()
    return frames, [mark for mark in marks if mark[0] > marks[0][0] + 1]


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--checkpoint", default=ROOT / "checkpoints" / "kjv.safetensors")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    find_display()
    model, tokenizer, _ = in_thread(load_checkpoint, arguments.checkpoint, DiffusionTransformer)
    ratios, gaps, costs = [], [], []
    window = open_window((1000, 700))
    rounds = 1 if arguments.smoke else arguments.rounds
    for seed in range(1, rounds + 1):
        s, last = Settings(length=arguments.length, top_p=0.9, seed=seed), seed == rounds
        alone = in_thread(sample_alone, model, s)
        worker = Watched(lambda s: (model, tokenizer, "", [], s), s)
        frames, marks = shown(window, worker, State(playing=not last), 5 if last else 0)
        ratios.append(worker.took[:2] / alone[:2])
        frames = [at for at in frames if worker.span[0] < at[0] < worker.span[1]]
        for gap, cost, _ in np.diff(frames, axis=0)[len(frames) * last :]:
            gaps.append(gap)
            costs.append(cost)
    idle = (marks[-1] - marks[0])[2] / (marks[-1] - marks[0])[0]
    wall, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(
        f"sampling {arguments.length} tokens in the window: {wall:.2f} x the time, {cpu:.2f} x the"
    )
    print(f"CPU time of its thread; {alone[0]:.2f} s alone. The window's thread is not counted.")
    within = "half within {:.1f} ms, 99 % within {:.1f}, all within {:.1f}"
    for name, found in (("time", gaps), ("CPU time", costs)):
        if found:
            told = within.format(*(1000 * np.quantile(found, [0.5, 0.99, 1])))
            print(f"frames meanwhile, {name}: {told}; mean {1000 * np.mean(found):.1f} ms")
    print(f"idle: {idle:.1%} of a core")


if __name__ == "__main__":
    main()
