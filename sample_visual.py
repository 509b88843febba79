"""Watch a masked diffusion model write.

    python sample_visual.py                              a window, with your newest checkpoint
    python sample_visual.py --prompt "God made ____."    each _ is a mask to fill (\\_ is none)
    python sample_visual.py --text                       in the terminal instead
    python sample_visual.py --save out.gif               a file instead
    python sample_visual.py --save out.png --view order  six moments on one sheet
    python sample_visual.py --race                       against the autoregressive twin
    python sample_visual.py --block --length auto        in blocks, until the text ends by itself
    python sample_visual.py --compare steps=8            beside a run with another setting
    python sample_visual.py --sudoku                     a grid, with a network that knows all grids

In the window, F1 shows every key; whatever has a key can be clicked as well. Its parts are in
visual/. In a notebook, `visual.files.show_inline` shows a `Trajectory` as an animation.
"""

import os
import re
import sys
import threading
from dataclasses import fields, replace
from functools import partial
from math import isqrt
from pathlib import Path

from files import Parser, UserError, check_writable, use_utf8
from visual.colors import THEMES
from visual.controls import VIEWS, State
from visual.files import OUTPUTS, save
from visual.record import SAMPLERS, Settings
from visual.sudoku import BOXES, perfect, puzzle
from visual.terminal import play_in_terminal
from visual.window import find_display, open_window, show
from visual.worker import Worker

HERE = Path(__file__).resolve().parent

# What is shown unless something else is asked for: settings at which the model is at its best.
DEFAULTS = dict(steps=128, temperature=1.0, top_p=0.8, sampler="ancestral", seed=1, length=112)
PROMPTS = {"kjv": "And God said", "shakespeare": "First Citizen:"}  # of the corpora with a name


def parse_arguments(argv=None):
    """Command line -> options."""
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", nargs="?", help="a trained model (default: the newest)")
    parser.add_argument(
        "--block", type=int, nargs="?", const=0, metavar="N", help="the newest that writes in "
        "blocks; of N tokens, if you say so",
    )  # fmt: skip
    parser.add_argument("--folder", default=HERE / "checkpoints", help="where to look for it")
    run = parser.add_argument_group("the run")
    run.add_argument("--prompt", help="how the text begins; each _ in it is one mask")
    run.add_argument("--steps", type=int, help="(default: %(default)s)")
    run.add_argument("--temperature", type=float, help="below 1: safer words (%(default)s)")
    run.add_argument("--top-p", type=float, help="below 1: no improbable words (%(default)s)")
    run.add_argument("--sampler", choices=SAMPLERS, help="(default: %(default)s)")
    run.add_argument("--seed", type=int, help="(default: %(default)s)")
    run.add_argument(
        "--length", type=length, metavar="TOKENS", help="(%(default)s; with blocks: or auto)"
    )
    run.add_argument("--sudoku", action="store_true", help="a grid instead of a text")
    run.add_argument(
        "--race", nargs="*", metavar="CHECKPOINT", help="against others (default: its GPT twin)"
    )
    run.add_argument(
        "--compare", action="append", metavar="NAME=VALUE", help="beside a run with this setting"
    )
    parser.set_defaults(**DEFAULTS)
    shown = parser.add_argument_group("what it looks like")
    shown.add_argument("--view", choices=VIEWS, default="text")
    shown.add_argument("--theme", choices=THEMES, default="dark")
    shown.add_argument("--size", default="1000x700", help="in pixels (default: %(default)s)")
    out = parser.add_argument_group("without a window")
    out.add_argument("--save", metavar="FILE", help="write " + ", ".join(OUTPUTS) + " instead")
    out.add_argument("--at", type=float, help="for .png: only this moment of the run, 0 to 1")
    out.add_argument("--frames", type=int, default=80, help="of an animation (default: 80)")
    out.add_argument("--text", action="store_true", help="animate in the terminal instead")
    return parser.parse_args(argv)


def length(text):
    """Tokens; 0 for "auto"."""
    return 0 if text == "auto" else int(text)


def check_arguments(arguments):
    """Raise UserError for what cannot be done, before anything is loaded. Returns the size."""
    size = re.fullmatch(r"(\d{3,4})x(\d{3,4})", arguments.size)
    if not size or min(map(int, size.groups())) < 200:
        raise UserError(f"--size must be like 1000x700, at least 200x200, not {arguments.size}")
    if arguments.at is not None and not 0 <= arguments.at <= 1:
        raise UserError(f"--at must be from 0 to 1, not {arguments.at}")
    if arguments.frames < 1:
        raise UserError(f"--frames must be at least 1, not {arguments.frames}")
    if arguments.sudoku and arguments.text:
        raise UserError("a grid needs the window, or --save")
    if arguments.save:
        if Path(arguments.save).suffix.lower() not in OUTPUTS:
            raise UserError(f"{arguments.save}: the name must end with {' or '.join(OUTPUTS)}")
        check_writable(arguments.save)
    elif not arguments.text:
        find_display()
    return int(size[1]), int(size[2])


def changed(settings, changes):
    """The settings with changes such as "steps=8". Raises UserError for what is none."""
    kinds = {field.name: type(field.default) for field in fields(Settings)[:-1]}  # not the grid
    for change in changes or ():
        name, _, value = change.partition("=")
        name = name.strip().replace("-", "_")
        try:
            settings = replace(settings, **{name: kinds[name](value)})
        except (KeyError, ValueError):
            names = ", ".join(kinds).replace("_", "-")
            raise UserError(f"--compare {change}: not like steps=8; there are {names}") from None
    if settings.sampler not in SAMPLERS:
        raise UserError(f"--compare: the sampler must be one of {', '.join(SAMPLERS)}")
    return settings


def for_grid(settings, model):
    """The settings, for a network whose texts are grids. Raises UserError if they are not."""
    size = isqrt(model.config.context)
    if size not in BOXES or size**2 != model.config.context or model.config.causal:
        raise UserError("--sudoku: this model was not trained on grids; without one it works, too")
    top_p = 1.0 if settings.top_p == DEFAULTS["top_p"] else settings.top_p  # no digit is left out
    return replace(settings, grid=size, length=size**2, top_p=top_p)


def load(arguments, settings):
    """What a `Worker` needs: (model, tokenizer, title, those that race it, settings that fit them,
    perhaps those of a second run)."""
    # here, as it takes seconds, and may raise UserError
    from saving import INCLUDED, newest_checkpoint
    from train import load_any
    from visual.sampler import begin, write

    folder, rivals = arguments.folder, []
    if arguments.sudoku and not arguments.checkpoint:
        from mdlm.sudoku import TOKENIZER as tokenizer

        model, title = perfect(), "Sudoku: the network that knows all grids"
    else:
        wanted = arguments.block  # None: not in blocks, 0: blocks of any size
        path = arguments.checkpoint or newest_checkpoint(folder, blocks=wanted is not None)
        model, tokenizer, metadata = load_any(path)
        block = model.config.block
        if wanted is not None and (not block or wanted not in (0, block)):
            its = f"for blocks of {block}" if block else "without blocks"
            raise UserError(
                f"{path}: trained {its}: name another checkpoint, or train one with train.py "
                f"--block {wanted or 16}"
            )
        which = "the included model, " if Path(path).stem in INCLUDED else "your newest model, "
        which *= not arguments.checkpoint
        parameters = f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters"
        print(f"{which}{path}: {parameters}", flush=True)
        if metadata["steps"] < model.config.steps:
            done = f"{metadata['steps']:,} of {model.config.steps:,} steps"
            print(f"after {done}; trained to the end: {HERE / 'checkpoints' / 'kjv.safetensors'}")
        corpus = Path(model.config.corpus).name
        title = f"{which}{Path(path).stem}: {parameters}, trained on {corpus}"
    prompt = PROMPTS.get(model.config.corpus, "")
    if arguments.sudoku:
        settings = for_grid(settings, model)
        prompt = puzzle(settings.seed) if settings.grid == 6 else ""
    if settings.prompt is None:
        settings = replace(settings, prompt=prompt)
    if settings.length == DEFAULTS["length"]:
        settings = replace(settings, length=min(settings.length, model.config.context))
    if model.config.block and settings.sampler == DEFAULTS["sampler"]:
        settings = replace(settings, sampler="first-hitting")  # a block is short: one token a call
    if model.config.block and settings.steps == DEFAULTS["steps"]:
        whole = settings.length or model.config.context
        settings = replace(settings, steps=max(settings.steps, whole))
    runs = [settings] + [changed(settings, arguments.compare)] * bool(arguments.compare)
    for each in runs:  # raises UserError if they make no sense
        begin(model, tokenizer, each)
    if arguments.race is not None:
        for path in arguments.race or [newest_checkpoint(folder, twin=True)]:
            rival, its_tokenizer, _ = load_any(path)
            if its_tokenizer != tokenizer:
                raise UserError(
                    f"{path}: it has another tokenizer, so it cannot race this model: train it on "
                    "the same text, or race the two that are included: sample_visual.py "
                    "checkpoints/kjv.safetensors --race checkpoints/kjv-twin.safetensors"
                )
            rivals.append(rival)
            title = f"{title.partition(':')[0]}, against {Path(path).stem}"  # sizes stand over each
        for racer in (model, *rivals):  # a first run is slower: the clock should not count that
            write(begin(racer, tokenizer, replace(settings, steps=4)))
    return model, tokenizer, title, rivals, *runs


def run(arguments):
    """Do what the command line says. Raises UserError for what cannot be done."""
    size = check_arguments(arguments)
    asked = {name: getattr(arguments, name) for name in (*DEFAULTS, "prompt")}
    settings = Settings(**asked)
    changed(settings, arguments.compare)  # a mistake is said at once
    worker = Worker(partial(load, arguments), settings)
    look = dict(view=arguments.view, theme=arguments.theme, touring=True)
    state = State(replace(settings, prompt=""), **look)
    if arguments.save or arguments.text:
        worker.open()
        lanes = worker.sample(worker.begin(worker.settings))
        if arguments.save:
            save(arguments.save, lanes, state, size, arguments.at, arguments.frames)
            print(f"{arguments.save}: {Path(arguments.save).stat().st_size / 1e3:,.0f} kB")
        if arguments.text:
            play_in_terminal(lanes, state, sys.stdout)
        return
    window = open_window(size)
    try:
        show(window, worker, state)
    finally:
        window.destroy()
        worker.close()


def main(argv=None):
    """Command line. Returns the exit code: 2 for a user's mistake, which gets one line."""
    use_utf8()
    try:
        run(parse_arguments(argv))
        sys.stdout.flush()
    except UserError as error:
        print(f"sample_visual.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def leave(code):
    """End the program, even if a network call is still under way."""
    if any(thread.name == "sampling" for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # PyTorch would abort a process that ends around it
    sys.exit(code)


if __name__ == "__main__":
    leave(main())
