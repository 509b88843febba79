"""Pictures and animations: the run as a file, or in a notebook."""

import importlib.util
import io
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pygame
from PIL import Image

from files import UserError, check_writable, write_atomically
from visual.colors import THEMES
from visual.controls import State
from visual.drawing import Fonts, draw_layout
from visual.page import lay_out
from visual.record import record_trajectory

OUTPUTS = (".gif", ".mp4", ".png")


def pictures(record, state, size, moments):
    """The run at some moments, 0 to 1, as Pillow images, without any window. A generator."""
    fonts = Fonts()
    for moment in moments:
        surface = pygame.Surface(size)
        now = replace(state, at=moment * record.n_steps, controls=False)
        draw_layout(surface, lay_out(record, now, size, fonts), fonts, THEMES[state.theme].page)
        yield Image.frombytes("RGB", size, pygame.image.tobytes(surface, "RGB"))


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


def gif(record, state, size, n_frames, fps):
    """The bytes of an animated GIF that shows the last frame for two seconds."""
    palette = sheet(pictures(record, state, size, np.linspace(0, 1, 6)), 1).quantize(256)
    images = [  # one palette for all: it must not flicker
        image.quantize(palette=palette, dither=Image.Dither.NONE)
        for image in pictures(record, state, size, np.linspace(0, 1, n_frames))
    ]
    times = [round(1000 / fps)] * (n_frames - 1) + [2000]  # milliseconds
    options = dict(save_all=True, append_images=images[1:], duration=times, loop=0)
    return to_bytes(images[0], "gif", **options)


def video(record, state, size, n_frames, fps):
    """The bytes of an MP4 file that shows the last frame for two seconds. Raises UserError."""
    import imageio_ffmpeg

    size = (size[0] // 2 * 2, size[1] // 2 * 2)  # the codec wants even numbers
    moments = [*np.linspace(0, 1, n_frames), *[1.0] * 2 * fps]
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "video.mp4"
            options = dict(fps=fps, macro_block_size=2, output_params=["-crf", "18"])
            writer = imageio_ffmpeg.write_frames(str(path), size, **options)
            writer.send(None)
            for image in pictures(record, state, size, moments):
                writer.send(image.tobytes())
            writer.close()
            return path.read_bytes()
    except (OSError, RuntimeError) as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"ffmpeg could not make the video ({line})") from None


def check_output(path):
    """Raise UserError, before any work is done, if we cannot make a file of that name."""
    path = Path(path)
    if path.suffix.lower() not in OUTPUTS:
        raise UserError(f"{path}: the name must end with one of {', '.join(OUTPUTS)}")
    if path.suffix.lower() == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise UserError(f"{path}: for .mp4, install imageio-ffmpeg: pip install imageio-ffmpeg")
    check_writable(path)


def save(path, record, state, size, at=None, n_frames=80, fps=12):
    """Write the run to a file of the kind that its name says.

    `at`: for .png, that moment of the run from 0 to 1, instead of six moments on one sheet.
    Raises UserError if the file cannot be written.
    """
    check_output(path)
    kind = Path(path).suffix.lower()
    if kind == ".png":
        moments = np.linspace(0, 1, 6) if at is None else [at]
        data = to_bytes(sheet(pictures(record, state, size, moments), min(2, len(moments))), "png")
    else:
        data = (video if kind == ".mp4" else gif)(record, state, size, n_frames, fps)
    write_atomically(path, data)


def show_inline(
    trajectory, tokenizer, view="text", row=0, theme="light", size=(800, 480), n_frames=60
):
    """Text number `row` of a `Trajectory` as an animation that a notebook displays.

    view: "text" or "order" (the trajectory does not know what else the model predicted). Returns
    an IPython Image.
    """
    from IPython.display import Image as Display

    record = record_trajectory(trajectory, tokenizer, row=row)
    data = gif(record, State(view=view, theme=theme), size, n_frames, fps=10)
    alt = tokenizer.decode(trajectory.tokens[row].tolist())
    return Display(data, format="gif", alt=alt)
