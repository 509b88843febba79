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

This is the command line; what it brings together is in visual/, whose __init__.py says where to
begin. In a notebook, `visual.files.show_inline` shows a `Trajectory` as an animation.
"""

import argparse
import os
import re
import sys
import threading
from pathlib import Path

from bpe_tokenizer import UserError, print_anything
from saving import load_checkpoint, newest_checkpoint
from visual.controls import VIEWS, State
from visual.files import OUTPUTS, check_output, save
from visual.items import THEMES
from visual.recording import (
    SAMPLERS,
    Race,
    Settings,
    check_settings,
    load_record,
    record_run,
    waiting_record,
    with_beliefs,
)
from visual.terminal import play_in_terminal, understand_escapes
from visual.window import close_window, find_display, open_window, show
from visual.worker import Worker

HERE = Path(__file__).resolve().parent


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
    if its_tokenizer != tokenizer or twin.config.context < model.config.context:
        raise UserError(
            f"{path}: the twin of another model (tokenizer or context differ): train one with "
            "`python run.py twin`, or race the two that are included: sample_visual.py "
            "checkpoints/kjv.safetensors --race checkpoints/kjv-twin.safetensors"
        )
    return twin


def records(arguments):
    """Whether --save asks for a recording, not for a picture."""
    return bool(arguments.save) and Path(arguments.save).suffix.lower() == ".safetensors"


def headless_record(arguments, settings, model, tokenizer, title, twin=None):
    """The run that --save or --text shows, saying on stderr what takes time."""

    def say(text):
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    understand_escapes()
    say("sampling")
    record = record_run(model, tokenizer, settings, title)
    if twin is not None:
        say("the twin writes")
        record = Race((record, record_run(twin, tokenizer, settings)))
    if arguments.view == "belief" or records(arguments):
        say("asking the model what it believes")
        record = with_beliefs(model, record)
    say("")
    return record


def check_arguments(arguments, size):
    """Raise UserError for what cannot be done, before anything is loaded."""
    if arguments.save:
        check_output(arguments.save)
    if arguments.at is not None and not 0 <= arguments.at <= 1:
        raise UserError(f"--at must be from 0 to 1, not {arguments.at}")
    if arguments.frames < 1:
        raise UserError(f"--frames must be at least 1, not {arguments.frames}")
    gigabytes = 3e-9 * size[0] * size[1] * arguments.frames  # of the frames, before compression
    if Path(arguments.save or "").suffix.lower() in (".gif", ".webp") and gigabytes > 2.5:
        raise UserError(
            f"{arguments.frames} frames of {size[0]}x{size[1]} take {gigabytes:.1f} GB of memory: "
            "choose a smaller --size, fewer --frames, or .mp4"
        )
    if arguments.race is not None and arguments.replay:
        raise UserError("a recording is of one model: --race and --replay exclude each other")
    if arguments.race is not None and records(arguments):
        raise UserError("a race cannot be recorded; save it as .gif, .webp, .mp4 or .png")
    if not (arguments.save or arguments.text):
        find_display()


def start(arguments):
    """Load and begin what the command line asks for. Returns (record, settings, worker or None).

    With a window, the record is of a run that has just begun, in the worker; else of a whole one.
    """
    if arguments.replay:
        record = load_record(arguments.replay)
        return record, record.settings, None
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
        for racer in (model, twin):  # a first run is slower: the clock should not count that
            record_run(racer, tokenizer, Settings(steps=4, length=racer.config.context))
    if arguments.save or arguments.text:
        record = headless_record(arguments, settings, model, tokenizer, title, twin)
        return record, settings, None
    worker = Worker(model, tokenizer, title, twin)
    worker.run(settings)
    record = waiting_record(title, settings, tokenizer)
    return (record if twin is None else Race((record, record))), settings, worker


def run(arguments):
    """Do what the command line says. Raises UserError for what cannot be done."""
    size = parse_size(arguments.size)
    check_arguments(arguments, size)
    record, settings, worker = start(arguments)
    state = State(settings=settings, view=arguments.view, theme=arguments.theme)
    if arguments.save:
        save(arguments.save, record, state, size, arguments.at, arguments.frames)
        print(f"{arguments.save}: {Path(arguments.save).stat().st_size / 1e3:,.0f} kB")
    if arguments.text:
        play_in_terminal(record, state, sys.stdout)
    if arguments.save or arguments.text:
        return
    try:
        show(open_window(size), record, state, worker)
    finally:
        if worker is not None:
            worker.close()
        close_window()


def main(argv=None):
    """Command line. Returns the exit code: 2 for a user's mistake, which gets one line."""
    print_anything()
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
    """End the program, even if a pass through the network is still under way."""
    if any(thread.name == "sampling" for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # PyTorch would abort a process that ends around it
    sys.exit(code)


if __name__ == "__main__":
    leave(main())
