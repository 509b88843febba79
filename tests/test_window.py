"""The window under a real X server: each control is used, and the screen changes."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageGrab

from bpe_tokenizer import BPETokenizer
from conftest import make_model
from saving import save_checkpoint
from visual.controls import END, State
from visual.drawing import Fonts
from visual.page import lay_out
from visual.record import Settings
from visual.sampler import begin

ROOT, SIZE = Path(__file__).resolve().parent.parent, (1000, 700)
TEXT = "In the beginning God created the heaven and the earth. And the earth was without form.\n"
TOOLS = ("Xvfb", "xdotool")
# the program, which says in each frame whether the window has come to rest
PROGRAM = """
import sys, sample_visual, visual.window
advance = visual.window.advance
def told(state, lanes, seconds):
    state = advance(state, lanes, seconds)
    moves = state.busy or state.playing or not all(lane.done for lane in lanes)
    print("moves" if moves else "rests", flush=True)
    return state
visual.window.advance = told
sys.exit(sample_visual.main(sys.argv[1:]))
"""
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, TOOLS)), reason="needs Xvfb and xdotool (apt install xvfb xdotool)"
)


@pytest.fixture
def screen(monkeypatch):
    """A display of its own."""
    # a number of our own: a server that looks for a free one takes away the sockets of others
    display, (read, write) = f":{1000 + os.getpid() % 50000}", os.pipe()
    command = ["Xvfb", display, "-displayfd", str(write), "-screen", "0", "1000x700x24"]
    server = subprocess.Popen(command, pass_fds=[write], stderr=subprocess.DEVNULL)
    os.close(write)
    os.read(read, 9)  # when it is ready
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    yield lambda: ImageGrab.grab(xdisplay=os.environ["DISPLAY"])
    server.terminate()
    server.wait()
    os.close(read)


def changes(screen, before, seconds=120):
    """Whether the screen becomes another picture."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if ImageChops.difference(screen(), before).getbbox():
            return True
        time.sleep(0.05)
    return False


def settled(screen, told, seconds=300):
    """The screen, once the program has said that it rests and nothing changes any more."""
    end, old, new = time.monotonic() + seconds, None, screen()
    while told[-1:] != [b"rests\n"] or old is None or ImageChops.difference(new, old).getbbox():
        assert time.monotonic() < end, "it does not come to rest"
        time.sleep(0.1)
        old, new = new, screen()
    return new


def test_every_control_in_a_real_window(screen, tmp_path):
    tokenizer = BPETokenizer.train(TEXT * 9, 300)
    model = make_model(context=40)
    model.config.corpus = str(tmp_path / "text.txt")
    Path(model.config.corpus).write_text((TEXT + "And " + TEXT) * 90, encoding="utf-8")
    path = str(tmp_path / "tiny.safetensors")
    save_checkpoint(path, model, tokenizer, {"steps": model.config.steps})
    asked = ["--length", "40", "--steps", "24", "--prompt", "In the"]
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, path, *asked],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    assert changes(screen, Image.new("RGB", SIZE)), "no window"
    told = []  # what the program has said
    threading.Thread(target=lambda: told.extend(program.stdout), daemon=True).start()

    def do(*command):
        subprocess.run(["xdotool", *map(str, command)], check=True, capture_output=True)

    page = lay_out(
        [begin(model, tokenizer, Settings(length=40, prompt="In the"))],
        State(at=END),
        SIZE,
        Fonts(),
    )

    def place(command="", token=None):
        item = next(i for i in page.items if i.command == command and i.token == token)
        return round(item.x + item.w / 2), round(item.y + item.h / 2)

    def click(command="", token=None):
        do("mousemove", *place(command, token), "click", 1)

    keys = lambda *names: lambda: do("key", "--delay", 60, *names)  # noqa: E731
    dragged = lambda: do(  # noqa: E731
        *["mousemove", *place(token=0), "mousedown", 1],
        *["mousemove", *place(token=1), "mouseup", 1],
    )
    controls = {  # in this order
        "to the start": keys("Home"),
        "to the end": keys("End"),
        **{f"the view {view}": keys(str(k)) for k, view in ((2, "order"), (3, "prediction"))},
        "a view by click": lambda: click("view text"),
        "a step back": lambda: click("step -1"),
        "pause and play": keys("Home", "space"),
        "the timeline": lambda: click("timeline"),
        "theme": keys("ctrl+t"), "help": keys("F1"), "no help": keys("Escape"),
        "a setting by key": keys("Down", "plus"), "a setting by click": lambda: click("more steps"),
        "a tooltip": lambda: do("mousemove", *place("branch")),
        "the card of a word": lambda: do("mousemove", *place(token=1)),
        "a word is chosen": lambda: click(token=1),
        "attention": keys("ctrl+a"),
        "words are chosen by dragging": dragged,
        "they are erased and filled": keys("BackSpace"), "undo": keys("ctrl+z"),
        "a word to replace": lambda: click(token=1), "another is typed": keys(*"earth"),
        "which takes its place": keys("Return"),
        "a moment before": keys("Left", "Left", "Left"), "branch here": keys("ctrl+b"),
        "compare": keys("ctrl+d"), "compare no more": lambda: click("compare"),
        "a real text loses its words": keys("ctrl+r"), "an example": lambda: click("example 1"),
        "a new seed": keys("ctrl+n"), "a prompt": keys("Tab"),
        "its text": keys("ctrl+a", "n", "q", "underscore"), "which is written": keys("Return"),
        "another, typed at once": keys("A", "n", "d"), "which is written, too": keys("Return"),
        "a copy": keys("ctrl+c"), "a picture": keys("ctrl+s"), "an animation": keys("ctrl+g"),
        "full screen": keys("F11"),
    }  # fmt: skip
    settled(screen, told)
    assert any(b"million parameters" in line for line in told)
    do("mousemove", 500, 350)
    under = subprocess.check_output(["xdotool", "getmouselocation", "--shell"], text=True)
    do("windowfocus", under.split("WINDOW=")[1].strip())  # no window manager does it here
    for name, use in controls.items():
        before = settled(screen, told)
        use()
        changed = changes(screen, before) or name == "full screen"  # which it fills already
        if os.environ.get("SCREENSHOTS"):  # a folder, to look at them
            screen().save(Path(os.environ["SCREENSHOTS"]) / f"{name}.png")
        assert changed, name
        assert program.poll() is None, name
    settled(screen, told)
    assert sorted(path.name for path in tmp_path.glob("text-*")) == ["text-1.gif", "text-1.png"]
    assert Image.open(tmp_path / "text-1.png").size == SIZE
    do("key", "ctrl+q")
    assert program.wait(timeout=20) == 0
