"""The window: a loop that takes events, lets time pass, and draws what has changed."""

import contextlib
import gc
import os
import sys
from dataclasses import replace

import pygame

from bpe_tokenizer import UserError
from visual.controls import advance, commands_of, handle
from visual.drawing import Fonts, draw_items
from visual.items import THEMES
from visual.page import hidden_lines, lay_out
from visual.recording import check_settings
from visual.worker import receive


def find_display():
    """Raise UserError on a machine without a display."""
    if os.name == "nt":  # pixels of the screen, not ones that Windows scales up
        os.environ.setdefault("SDL_WINDOWS_DPI_AWARENESS", "permonitorv2")
    wanted = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"))
    if wanted or not sys.platform.startswith("linux"):  # else SDL would draw where nobody sees it
        with contextlib.suppress(pygame.error):
            pygame.display.init()
            if "SDL_VIDEODRIVER" in os.environ or pygame.display.get_driver() != "offscreen":
                return
            pygame.display.quit()  # the display that is named does not answer
    raise UserError("no display here: use --save out.gif (or .png, .webp, .mp4), or --text")


def open_window(size):
    """A window that can be resized and has all the pixels that the screen has."""
    window = pygame.Window("masked diffusion", size, resizable=True, allow_high_dpi=True)
    window.minimum_size = (360, 260)
    pygame.key.set_repeat(350, 40)
    pygame.key.start_text_input()
    return window


def order(worker, state):
    """Begin the run that was asked for, if it is possible: else the one under way goes on."""
    try:
        check_settings(state.settings, worker.model, worker.tokenizer)
    except UserError as error:
        return replace(state, message=str(error))
    worker.run(state.settings)
    return state


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
            if event.type in (pygame.WINDOWEXPOSED, pygame.WINDOWRESTORED):
                drawn = None  # what was drawn may be lost
            for command in commands_of(event, state, items, scale):
                if command == "paste":
                    command = f"type {pygame.scrap.get_text().strip()}"
                state = handle(state, command, record)
        if state.request == "run":
            state = replace(state, request="")
            if worker is None:
                state = replace(state, message="This is a recording: there is no model to run.")
            else:
                state = order(worker, state)
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


def close_window():
    """Give the screen back."""
    pygame.quit()
