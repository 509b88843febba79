"""Pictures and animations: the run as a file, or in a notebook."""

import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pygame
from PIL import Image

from files import write_atomically
from visual.colors import THEMES
from visual.controls import END, State
from visual.drawing import Canvas, Fonts
from visual.items import glide
from visual.page import lay_out
from visual.record import Record, Settings, add_trajectory

OUTPUTS = (".gif", ".png")


def pictures(lanes, state, size, moments, seconds=None):
    """The run at some moments of the clock as Pillow images, without any window. A generator.

    seconds: from one to the next, if they follow each other, so that words move gently.
    """
    fonts, page, theme = Fonts(), None, THEMES[state.theme]
    canvas = Canvas(pygame.Surface(size), fonts)
    state = State(view=state.view, theme=state.theme, controls=False)  # and no card, no help
    for moment in moments:
        now = lay_out(lanes, replace(state, at=moment), size, fonts)
        page = glide(page, now, seconds)[0] if seconds else now
        canvas.draw(page, theme.page)
        yield Image.frombytes("RGB", size, pygame.image.tobytes(canvas.surface, "RGB"))
    if fonts.missing:
        print(fonts.lacking(), file=sys.stderr)


def sheet(images, columns):
    """Images of one size on a sheet of so many columns."""
    images = list(images)
    w, h = images[0].size
    whole = Image.new("RGB", (w * columns, h * -(-len(images) // columns)))
    for i, image in enumerate(images):
        whole.paste(image, (i % columns * w, i // columns * h))
    return whole


def to_bytes(image, kind, **options):
    """What Pillow would write into a file of that kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


HOLD = 4  # seconds for which the last frame is shown


def gif(lanes, state, size, n_frames, fps):
    """The bytes of an animated GIF. Its first frame is from the middle of the run, as it is all
    that some pages show; from there it goes round and round."""
    moments = np.linspace(0, END, n_frames)
    palette = sheet(pictures(lanes, state, size, moments[:: -(-n_frames // 6)]), 1).quantize(256)
    images = [  # one palette for all: it must not flicker
        image.quantize(palette=palette, dither=Image.Dither.NONE)
        for image in pictures(lanes, state, size, moments, 1 / fps)
    ]
    times, middle = [round(1000 / fps)] * (n_frames - 1) + [1000 * HOLD], n_frames // 2
    images, times = images[middle:] + images[:middle], times[middle:] + times[:middle]
    options = dict(save_all=True, append_images=images[1:], duration=times, loop=0)
    return to_bytes(images[0], "gif", **options)


def save(path, lanes, state, size, at=None, n_frames=80):
    """Write the run to a .gif or .png file. Raises UserError if it cannot be written.

    `at`: for .png, that moment of the run from 0 to 1, instead of six moments on one sheet.
    """
    if Path(path).suffix.lower() == ".gif":
        return write_atomically(path, gif(lanes, state, size, n_frames, fps=12))
    moments = np.linspace(0, END, 6) if at is None else [at if at < 1 else END]
    image = sheet(pictures(lanes, state, size, moments), min(2, len(moments)))
    write_atomically(path, to_bytes(image, "png"))


def show_inline(
    trajectory, tokenizer, view="text", row=0, theme="light", size=(800, 480), n_frames=60
):
    """Text number `row` of a `Trajectory` as an animation that a notebook displays.

    view: "text" or "order" (the trajectory does not know what else the model predicted). Returns
    an IPython Image.
    """
    from IPython.display import Image as Display

    settings = Settings(steps=trajectory.n_steps, length=trajectory.tokens.shape[1])
    record = add_trajectory(Record(tokenizer, settings), trajectory, row)
    data = gif([record], State(view=view, theme=theme), size, n_frames, fps=10)
    alt = tokenizer.decode(trajectory.tokens[row].tolist())
    return Display(data, format="gif", alt=alt)
