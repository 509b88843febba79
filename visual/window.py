"""The window: a loop that takes events, lets time pass, and draws when something has changed."""

import contextlib
import gc
import os
import sys
from dataclasses import replace

import pygame

from files import UserError
from visual.colors import THEMES
from visual.controls import advance, on_event
from visual.drawing import Fonts, draw_layout
from visual.page import lay_out


def find_display():
    """Raise UserError on a machine without a display, or where SDL draws for nobody to see."""
    if os.name == "nt":  # pixels of the screen, not ones that Windows scales up
        os.environ.setdefault("SDL_WINDOWS_DPI_AWARENESS", "permonitorv2")
    named = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if named or not sys.platform.startswith("linux"):
        with contextlib.suppress(pygame.error):  # the display that is named may not answer
            pygame.display.init()
            if pygame.display.get_driver() not in ("dummy", "offscreen", "KMSDRM"):
                return
            pygame.display.quit()
    raise UserError("no display here: use --save out.gif (or .png, .mp4), or --text")


def open_window(size):
    """A window that can be resized and has all the pixels that the screen has."""
    window = pygame.Window("masked diffusion", size, resizable=True, allow_high_dpi=True)
    window.minimum_size = (360, 260)
    pygame.key.set_repeat(350, 40)
    pygame.key.start_text_input()
    return window


def show(window, worker, state):
    """Show what the worker does until the window is closed. Returns the last state."""
    fonts, clock, record = Fonts(), pygame.Clock(), worker.record
    layout, drawn = lay_out(record, state, window.get_surface().get_size(), fonts), None
    gc.freeze()  # PyTorch's many objects stay: to look through them would make a frame late
    while state.request != "quit":
        surface = window.get_surface()
        size = surface.get_size()
        scale = size[0] / window.size[0]
        for event in pygame.event.get():
            if event.type in (pygame.WINDOWEXPOSED, pygame.WINDOWRESTORED):
                drawn = None  # what was drawn may be lost
            state = on_event(event, state, layout, record, scale)
        if state.request == "run":
            state = replace(state, request="")
            try:
                worker.run(state.settings)
            except UserError as error:
                state = replace(state, message=str(error))
        if worker.record is not record:
            record = worker.record
            if not record.live:
                state = replace(state, at=0.0, playing=True)
        if worker.message:
            state, worker.message = replace(state, message=worker.message), ""
        state = replace(state, busy=worker.busy)
        state = advance(state, record, min(0.1, clock.get_time() / 1000))
        if (record, state, size) != drawn:
            layout = lay_out(record, state, size, fonts, scale)
            draw_layout(surface, layout, fonts, THEMES[state.theme].page)
            window.flip()
            drawn = (record, state, size)
        clock.tick(60)
    return state
