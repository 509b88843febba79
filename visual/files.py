"""Pictures, animations, recordings: the run as a file, or in a notebook."""

import importlib.util
import io
import tempfile
from dataclasses import replace
from pathlib import Path

import pygame

from bpe_tokenizer import UserError, check_place, write_atomically
from visual.controls import State
from visual.drawing import Fonts, draw_items
from visual.items import THEMES
from visual.page import lay_out
from visual.recording import make_record, record_bytes, with_beliefs


def picture(record, state, size, fonts, scale=1.0):
    """One frame as a surface, without any window."""
    surface = pygame.Surface(size)
    items = lay_out(record, state, size, fonts, scale)
    draw_items(surface, items, fonts, THEMES[state.theme].page)
    return surface


def animation(record, state, size, fonts, n_frames):
    """The whole run as a generator of n_frames surfaces."""
    for i in range(n_frames):
        at = record.n_steps * i / max(1, n_frames - 1)
        yield picture(record, replace(state, at=at), size, fonts)


def contact_sheet(record, state, size, fonts, columns=2, n=6):
    """`n` moments of the run on one surface."""
    rows = -(-n // columns)
    sheet = pygame.Surface((size[0] * columns, size[1] * rows))
    for i, surface in enumerate(animation(record, state, size, fonts, n)):
        sheet.blit(surface, (i % columns * size[0], i // columns * size[1]))
    return sheet


def to_image(surface):
    """A pygame surface -> a Pillow image."""
    from PIL import Image

    return Image.frombytes("RGB", surface.get_size(), pygame.image.tobytes(surface, "RGB"))


def animated_image(surfaces, kind, fps, hold=2000):
    """Surfaces -> the bytes of an animated "gif" or "webp" that shows the last for `hold` ms."""
    from PIL import Image

    images = [to_image(surface) for surface in surfaces]
    durations = [round(1000 / fps)] * (len(images) - 1) + [hold]
    options = {"lossless": True, "method": 4} if kind == "webp" else {}
    if kind == "gif":  # one palette for all: it must not flicker
        some = images[:: max(1, len(images) // 6)] + images[-1:]
        sheet = Image.new("RGB", (images[0].width, images[0].height * len(some)))
        for i, image in enumerate(some):
            sheet.paste(image, (0, i * image.height))
        palette = sheet.quantize(256, method=Image.Quantize.MEDIANCUT)
        images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        kind,
        save_all=True,
        append_images=images[1:],
        duration=durations,
        loop=0,
        **options,
    )
    return buffer.getvalue()


def video(surfaces, size, fps):
    """Surfaces of even width and height -> the bytes of an MP4 file. Raises UserError."""
    import imageio_ffmpeg

    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "video.mp4"
            writer = imageio_ffmpeg.write_frames(
                str(path), size, fps=fps, macro_block_size=2, output_params=["-crf", "18"]
            )
            writer.send(None)
            surface = None
            for surface in surfaces:
                writer.send(pygame.image.tobytes(surface, "RGB"))
            for _ in range(2 * fps):  # hold the last for two seconds
                writer.send(pygame.image.tobytes(surface, "RGB"))
            writer.close()
            data = path.read_bytes()
    except (OSError, RuntimeError) as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"ffmpeg could not make the video ({line})") from None
    if b"moov" not in data:  # what ffmpeg writes last
        raise UserError("ffmpeg did not finish the video: is the disk for temporary files full?")
    return data


OUTPUTS = (".gif", ".webp", ".mp4", ".png", ".safetensors")


def check_output(path):
    """Raise UserError, before any work is done, if we cannot make a file of that name."""
    path = Path(path)
    if path.suffix.lower() not in OUTPUTS:
        raise UserError(f"{path}: the name must end with one of {', '.join(OUTPUTS)}")
    if path.suffix.lower() == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise UserError(f"{path}: for .mp4, install imageio-ffmpeg: pip install imageio-ffmpeg")
    check_place(path)


def save(path, record, state, size, at=None, n_frames=80, fps=12):
    """Write the run to a file of the kind that its name says.

    `at`: for .png, that moment of the run from 0 to 1, instead of six moments on one sheet.
    Raises UserError if the file cannot be written.
    """
    check_output(path)
    kind = Path(path).suffix.lower()
    if kind == ".safetensors":
        write_atomically(path, record_bytes(record))
        return
    fonts, state = Fonts(), replace(state, controls=False)
    if kind == ".png":
        if at is None:
            surface = contact_sheet(record, state, size, fonts)
        else:
            surface = picture(record, replace(state, at=at * record.n_steps), size, fonts)
        buffer = io.BytesIO()
        to_image(surface).save(buffer, "png", optimize=True)
        data = buffer.getvalue()
    elif kind == ".mp4":
        size = (size[0] // 2 * 2, size[1] // 2 * 2)
        data = video(animation(record, state, size, fonts, n_frames), size, fps)
    else:
        data = animated_image(animation(record, state, size, fonts, n_frames), kind[1:], fps)
    write_atomically(path, data)


def show_inline(
    trajectory,
    tokenizer,
    model=None,
    view="text",
    row=0,
    theme="light",
    size=(800, 480),
    n_frames=60,
):
    """A recorded `Trajectory` as an animation that a notebook displays.

    `row`: which text of the batch. The belief view needs the model. Returns an IPython Image.
    """
    from IPython.display import Image

    record = make_record(trajectory, tokenizer, row=row)
    if model is not None and view == "belief":
        record = with_beliefs(model, record)
    state = State(view=view, theme=theme, controls=False)
    surfaces = animation(record, state, size, Fonts(), n_frames)
    alt = tokenizer.decode(trajectory.tokens[row].tolist())
    return Image(animated_image(surfaces, "gif", 10), format="gif", alt=alt)
