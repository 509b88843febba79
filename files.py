"""Options and files: mistakes get one line, and crashes leave no half of a file."""

import argparse
import contextlib
import difflib
import os
import sys
import time
from pathlib import Path

# Beside other programs, PyTorch's threads wait for each other by spinning, and a step takes many
# times as long. A short spin before sleeping cures that. To be set before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

NOT_TEXT = {  # how files begin that might be taken for plain text
    b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip (such as .docx and .epub)", b"%PDF": "PDF",
    b"{\\rtf": "RTF", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
}  # fmt: skip


class UserError(ValueError):
    """A mistake that the user can mend: one line that names the cause and the cure."""

    def _render_traceback_(self):  # what IPython prints instead of a traceback
        return [f"{type(self).__name__}: {self}"]


def require(holds, message):
    """Raise UserError with that message, unless it holds."""
    if not holds:
        raise UserError(message)


class Parser(argparse.ArgumentParser):
    """A command line that shows `doc` as its help. Options have no short forms."""

    def __init__(self, doc, **options):
        kind = argparse.RawDescriptionHelpFormatter
        super().__init__(description=doc, formatter_class=kind, allow_abbrev=False, **options)

    def error(self, message):
        """End the program with one line, which says what an unknown option may have meant."""
        if message.startswith("unrecognized arguments: --"):
            name = message.split()[2].partition("=")[0]
            for near in difflib.get_close_matches(name, self._option_string_actions, 1):
                message += f": did you mean {near}?"
        self.exit(2, f"{self.prog}: {message}\n")


def use_utf8():
    """From now on a character that the console lacks is printed as "?", and is no error.

    A file or another program gets UTF-8 and plain "\\n", unless PYTHONIOENCODING says otherwise.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not in a notebook
            given = stream.isatty() or "PYTHONIOENCODING" in os.environ
            choices = {} if given else {"encoding": "utf-8", "newline": "\n"}
            stream.reconfigure(errors="replace", **choices)


def plain_file(path):
    """Path of a file that a text is to be read from. Raises UserError if there is none."""
    if str(path).startswith(("hf:", "http:", "https:")):
        raise UserError(
            f"{path}: not a file: download it; a data set of the Hugging Face hub becomes files "
            "with python prepare.py hf:OWNER/NAME --out data/NAME"
        )
    place = Path(path)
    try:
        place.stat()
    except (OSError, ValueError) as error:  # a NUL byte in a path is a ValueError
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from None
    if not place.is_file():
        raise UserError(f"{path}: cannot be read (not a plain file, but a folder, pipe or device)")
    if place.suffix.lower() in (".html", ".htm", ".xml", ".jsonl"):
        print(f"{path}: note that the markup in it is learned, too", file=sys.stderr)
    return place


def read_text(path):
    """The text of a UTF-8 file, with "\\n" at the end of each line whatever the file has there.

    Raises UserError if the file is missing, unreadable, empty, or not plain text in UTF-8.
    """
    place = plain_file(path)
    try:
        text = to_text(place.read_bytes(), path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if not text.strip():
        raise UserError(f"{path}: there is no text in it")
    return text


def to_text(data, path, start=0):
    """The text of bytes from place `start` of the file `path`, without a byte-order mark."""
    cure = "save it as plain text in UTF-8"
    for beginning, kind in NOT_TEXT.items():
        if start == 0 and data.startswith(beginning):
            raise UserError(f"{path}: this is {kind}: {cure}")
    if b"\0" in data:
        raise UserError(f"{path}: it has NUL bytes, as UTF-16 and binary files have: {cure}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {start + error.start}: {cure}") from None
    text = text if start else text.removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def write_atomically(path, data):
    """Write `data` (bytes) to `path` so that a crash leaves the old file or the new one, whole.

    None instead of data: only try whether that can be done. Raises UserError if it cannot.
    """
    place = Path(os.path.realpath(path))  # links stay links
    temporary = Path(f"{place}.{os.getpid()}.tmp")
    try:
        if place.exists() and not place.is_file():
            raise OSError(0, "it is not a plain file")
        place.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data or b"")
            file.flush()
            os.fsync(file.fileno())  # on the disk before the old file loses its name
        if data is not None:
            replace(place, temporary)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        with contextlib.suppress(OSError):  # what went wrong has been said above
            temporary.unlink()


def replace(place, temporary):
    """Let one file take the place of another, which a virus scanner may hold on Windows."""
    for _ in range(20):
        with contextlib.suppress(PermissionError):
            return temporary.replace(place)
        time.sleep(0.05)
    return temporary.replace(place)


def check_writable(path):
    """Raise UserError now if a file could not be written to `path` after hours of work."""
    write_atomically(path, None)


def remove_half_written(folder, is_ours):
    """Remove what a killed process left of `write_atomically`: files whose name `is_ours`."""
    for left in Path(folder).glob("*.tmp"):
        if is_ours(left.name):
            with contextlib.suppress(OSError):  # a virus scanner again
                left.unlink()
