"""Watch a masked diffusion model write.

    python sample_visual.py                              a window, with your newest checkpoint
    python sample_visual.py --prompt "God made ____."    each _ is a mask to fill
    python sample_visual.py --text                       in the terminal instead
    python sample_visual.py --save out.gif               a file instead (.gif, .webp, .mp4)
    python sample_visual.py --save out.png --view order  six moments on one sheet
    python sample_visual.py --race                       against the autoregressive twin
    python sample_visual.py --save run.safetensors       the recording itself ...
    python sample_visual.py --replay run.safetensors     ... which needs no model to be shown

In the window, H shows every key; whatever has a key can be clicked as well.

Here are the window and the command line; what they are made of is in visual/, whose __init__.py
says where to begin. In a notebook, `show_inline` shows a `Trajectory` as an animation.
"""

import argparse
import contextlib
import gc
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pygame

from bpe_tokenizer import UserError
from mdlm.training import load_checkpoint, newest_checkpoint
from visual.controls import VIEWS, State, advance, commands_of, handle
from visual.drawing import Fonts, draw_items
from visual.files import OUTPUTS, check_output, save, show_inline
from visual.items import THEMES
from visual.page import hidden_lines, lay_out
from visual.recording import (
    MASKED,
    SAMPLERS,
    Race,
    Settings,
    check_settings,
    live_record,
    load_record,
    record_run,
    starting_text,
    with_beliefs,
)
from visual.terminal import play_in_terminal
from visual.worker import Worker, receive

__all__ = ["main", "show", "show_inline"]

HERE = Path(__file__).resolve().parent


def find_display():
    """Raise UserError on a machine without a display."""
    if os.name == "nt":  # pixels of the screen, not ones that Windows scales up
        os.environ.setdefault("SDL_WINDOWS_DPI_AWARENESS", "permonitorv2")
    wanted = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"))
    if wanted or not sys.platform.startswith("linux"):  # else SDL would draw where nobody sees it
        with contextlib.suppress(pygame.error):
            pygame.display.init()
            return
    raise UserError("no display here: use --save out.gif (or .png, .webp, .mp4), or --text")


def open_window(size):
    """A window that can be resized and has all the pixels that the screen has."""
    window = pygame.Window("masked diffusion", size, resizable=True, allow_high_dpi=True)
    window.minimum_size = (360, 260)
    pygame.key.set_repeat(350, 40)
    pygame.key.start_text_input()
    return window


def show(window, record, state, worker=None):
    """Run the window until it is closed. Without a worker there is only the record to watch.

    Returns what was shown at the end: (record, state).
    """
    fonts, clock, drawn, items = Fonts(), pygame.Clock(), None, []
    gc.freeze()  # PyTorch's many objects stay: to look through them would make a frame late
    while state.request != "quit":
        surface = window.get_surface()
        size = surface.get_size()
        scale = size[0] / window.size[0]
        for event in pygame.event.get():
            for command in commands_of(event, state, items, scale):
                if command == "paste":
                    command = f"type {pygame.scrap.get_text().strip()}"
                state = handle(state, command, record)
        if state.request == "run":
            state = replace(state, request="")
            if worker is None:
                state = replace(state, message="This is a recording: there is no model to run.")
            else:
                worker.run(state.settings)
        if worker is not None:
            record, state = receive(worker, record, state)
        state = advance(state, record, min(0.1, clock.get_time() / 1000))
        items = lay_out(record, state, size, fonts, scale)
        state = replace(state, scroll=min(state.scroll, hidden_lines(items)))
        if (size, items) != drawn:
            draw_items(surface, items, fonts, THEMES[state.theme].page)
            window.flip()
            drawn = (size, items)
        clock.tick(60)
    return record, state


def parse_size(text):
    """ "1000x700" -> (1000, 700)."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or not all(200 <= int(n) <= 8000 for n in match.groups()):
        raise UserError(f"the size must be like 1000x700 and at least 200x200, not {text}")
    return int(match[1]), int(match[2])


def parse_arguments(argv=None):
    """Command line -> options."""
    defaults = Settings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?", help="a trained model (default: the newest)")
    run = parser.add_argument_group("the run")
    run.add_argument("--prompt", default="", help="how the text begins; each _ in it is one mask")
    run.add_argument("--steps", type=int, default=defaults.steps, help="(default: %(default)s)")
    run.add_argument("--temperature", type=float, default=1.0, help="below 1: safer words")
    run.add_argument("--top-p", type=float, default=1.0, help="below 1: no improbable words")
    run.add_argument("--sampler", choices=SAMPLERS, default=defaults.sampler)
    run.add_argument("--seed", type=int, default=defaults.seed, help="(default: %(default)s)")
    run.add_argument("--length", type=int, help="in tokens (default: the model's context)")
    run.add_argument(
        "--race",
        nargs="?",
        const="",
        metavar="TWIN",
        help="against an autoregressive twin (default: the newest)",
    )
    run.add_argument("--replay", metavar="FILE", help="show a recording instead of a new run")
    look = parser.add_argument_group("what it looks like")
    look.add_argument("--view", choices=VIEWS, default="text")
    look.add_argument("--theme", choices=THEMES, default="dark")
    look.add_argument("--size", default="1000x700", help="in pixels (default: %(default)s)")
    out = parser.add_argument_group("without a window")
    out.add_argument("--save", metavar="FILE", help="write " + ", ".join(OUTPUTS) + " instead")
    out.add_argument("--at", type=float, help="for .png: only this moment of the run, 0 to 1")
    out.add_argument("--frames", type=int, default=80, help="of an animation (default: 80)")
    out.add_argument("--text", action="store_true", help="animate in the terminal instead")
    return parser.parse_args(argv)


def load_model(arguments):
    """(model, tokenizer, title) of the checkpoint that was asked for, or the newest one."""
    path = arguments.checkpoint or newest_checkpoint(HERE / "checkpoints")
    model, tokenizer, _ = load_checkpoint(path)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    return model, tokenizer, f"{Path(path).stem}, {size:.1f} million parameters"


def load_twin(arguments, model, tokenizer):
    """The model to race against: the twin that was asked for, or the newest one."""
    path = arguments.race or newest_checkpoint(HERE / "checkpoints", twin=True)
    twin, its_tokenizer, _ = load_checkpoint(path)
    if not twin.config.causal or model.config.causal:
        raise UserError("a race needs a diffusion model, and a twin: see twin.ipynb")
    if its_tokenizer.to_json() != tokenizer.to_json() or twin.config.context < model.config.context:
        raise UserError(f"{path}: the twin of another model (tokenizer or context differ)")
    return twin


def warm_up(model, tokenizer):
    """Run a model once, as the first run is slower: the clock of a race should not count that."""
    record_run(model, tokenizer, Settings(steps=4, length=model.config.context))


def headless_record(arguments, settings, model, tokenizer, title, twin=None):
    """The run that --save or --text shows, saying on stderr what takes time."""

    def say(text):
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    say("sampling")
    record = record_run(model, tokenizer, settings, title)
    if twin is not None:
        say("the twin writes")
        record = Race((record, record_run(twin, tokenizer, settings)))
    if arguments.view == "belief" or str(arguments.save).endswith(".safetensors"):
        say("asking the model what it believes")
        record = with_beliefs(model, record)
    say("")
    return record


def run(arguments):
    """Do what the command line says. Raises UserError for what cannot be done."""
    size = parse_size(arguments.size)
    if arguments.save:
        check_output(arguments.save)
    if arguments.at is not None and not 0 <= arguments.at <= 1:
        raise UserError(f"--at must be from 0 to 1, not {arguments.at}")
    if arguments.frames < 1:
        raise UserError(f"--frames must be at least 1, not {arguments.frames}")
    if arguments.race is not None and arguments.replay:
        raise UserError("a recording is of one model: --race and --replay exclude each other")
    if arguments.race is not None and str(arguments.save).endswith(".safetensors"):
        raise UserError("a race cannot be recorded; save it as .gif, .webp, .mp4 or .png")
    headless = arguments.save or arguments.text
    if not headless:
        find_display()
    if arguments.replay:
        record, worker = load_record(arguments.replay), None
        settings = record.settings
    else:
        model, tokenizer, title = load_model(arguments)
        names = ("steps", "temperature", "top_p", "sampler", "seed", "prompt")
        given = {name: getattr(arguments, name) for name in names}
        length = model.config.context if arguments.length is None else arguments.length
        settings = Settings(**given, length=length)
        check_settings(settings, model, tokenizer)
        twin = None
        if arguments.race is not None:
            twin = load_twin(arguments, model, tokenizer)
            title += ", against its twin"
            for racer in (model, twin):
                warm_up(racer, tokenizer)
        if headless:
            record = headless_record(arguments, settings, model, tokenizer, title, twin)
        else:
            worker = Worker(model, tokenizer, title, twin)
            z = starting_text(settings, tokenizer).numpy()
            z = np.where(z == tokenizer.mask_id, MASKED, z)
            record = live_record(title, settings, worker.names, np.zeros(1, np.int64), z, 0)
            if twin is not None:
                record = Race((record, record))
            worker.run(settings)
    state = State(settings=settings, view=arguments.view, theme=arguments.theme)
    if arguments.save:
        save(arguments.save, record, state, size, arguments.at, arguments.frames)
        print(f"{arguments.save}: {Path(arguments.save).stat().st_size / 1e3:,.0f} kB")
    if arguments.text:
        play_in_terminal(record, state, sys.stdout)
    if not headless:
        try:
            show(open_window(size), record, state, worker)
        finally:
            if worker is not None:
                worker.close()
            pygame.quit()


def main(argv=None):
    """Command line. Returns the exit code: 2 for a user's mistake, which gets one line."""
    try:
        run(parse_arguments(argv))
    except UserError as error:
        print(f"sample_visual.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
