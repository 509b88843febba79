"""The window: a loop that takes events, lets time pass, and draws when something has changed."""

import contextlib
import gc
import os
import sys
import time
from dataclasses import replace

import pygame

from files import UserError
from visual.colors import THEMES
from visual.controls import END, advance, handle, on_event
from visual.drawing import Canvas, Fonts
from visual.items import Layout, glide
from visual.page import lay_out
from visual.record import pieces

FRAMES = 60  # a second, while something moves
REST = 0.03  # seconds between two looks for events, while nothing does


def find_display():
    """Raise UserError on a machine without a display, or where SDL draws for nobody to see."""
    os.environ.setdefault("SDL_MOUSE_FOCUS_CLICKTHROUGH", "1")  # the first click counts
    if os.name == "nt":  # pixels of the screen, not ones that Windows scales up
        os.environ.setdefault("SDL_WINDOWS_DPI_AWARENESS", "permonitorv2")
    named = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if named or not sys.platform.startswith("linux"):
        with contextlib.suppress(pygame.error):  # the display that is named may not answer
            pygame.display.init()
            if pygame.display.get_driver() == "x11":  # there OpenGL without a GPU is slow
                os.environ.setdefault("SDL_FRAMEBUFFER_ACCELERATION", "0")
            if pygame.display.get_driver() not in ("dummy", "offscreen", "KMSDRM"):
                return
            pygame.display.quit()
    raise UserError("no display here: use --text, or --save out.gif (or .png)")


def open_window(size):
    """A window that can be resized and has all the pixels that the screen has."""
    window = pygame.Window("Masked diffusion", size, resizable=True, allow_high_dpi=True)
    window.minimum_size = (360, 260)
    window.set_icon(icon())
    pygame.key.set_repeat(350, 40)
    pygame.key.start_text_input()
    return window


def icon():
    """Masks, two of which have become words."""
    theme, image = THEMES["dark"], pygame.Surface((64, 64), pygame.SRCALPHA)
    pygame.draw.rect(image, theme.page, (0, 0, 64, 64), border_radius=12)
    for i, (x, w) in enumerate([(10, 18), (32, 22), (10, 26), (40, 14), (10, 12), (26, 28)]):
        color = theme.accent if i in (1, 4) else theme.faint
        pygame.draw.rect(image, color, (x, 12 + i // 2 * 15, w, 10), border_radius=3)
    return image


def obey(state, worker, window, lanes):
    """Do what the state requests: the state afterwards. What cannot be done changes nothing."""
    verb, *words = state.request.split()
    before, settings = replace(state, request=""), state.settings
    state = before
    if verb in ("new", "branch", "erase"):  # these want another text
        settings = replace(settings, seed=settings.seed + 1)
        said = f"with seed {settings.seed}" if verb != "new" else ""
        state = replace(state, settings=settings, message=said)
    try:
        match verb:
            case "run" | "new":
                worker.run(settings)
            case "example":
                state = replace(state, settings=worker.example(int(words[0]), settings))
                worker.run(state.settings)
            case "corrupt":
                worker.corrupt(settings)
            case "branch":
                worker.go_on(replace(state, selected=frozenset()), lanes)
            case "erase" | "put" | "type":
                worker.go_on(state, lanes, words, given=verb == "type")
            case "undo":
                state = replace(state, settings=worker.undo())
            case "compare":
                if not worker.kept and settings == lanes[0].settings:
                    state = handle(state, "more seed", lanes)
                worker.compare(state.settings, lanes[0])
            case "copy":
                text = "".join(p or " _" for p in pieces(lanes[0], lanes[0].at(state.at)))
                pygame.scrap.put_text(text.replace("\0", ""))
                state = replace(state, message="copied")
            case "picture" | "animation":
                worker.store(verb, lanes, state, window.get_surface().get_size())
            case "fullscreen" if window.size == pygame.display.get_desktop_sizes()[0]:
                window.set_windowed()
            case "fullscreen":
                window.set_fullscreen(desktop=True)
    except UserError as error:
        return replace(before, message=str(error))
    return state


def show(window, worker, state):
    """Show what the worker does until the window is closed. Returns the last state.

    Raises the UserError that kept the worker from loading its model.
    """
    sys.setswitchinterval(0.0001)  # so that the sampler need not wait for each frame
    fonts, clock, lanes, lacking = Fonts(), pygame.Clock(), worker.lanes, ""
    layout = drawn = size = None  # layout: what is on the screen; drawn: what it was made of
    asked, loaded, moving = state.settings, False, True
    while state.request != "quit":
        surface = window.get_surface()
        if size != surface.get_size():
            canvas, layout, size = Canvas(surface, fonts), None, surface.get_size()
        scale, calm = size[0] / window.size[0], not (moving or state.playing or worker.busy)
        if calm:  # asleep: pygame's own wait looks for events a thousand times a second
            time.sleep(REST)
        for event in pygame.event.get():
            if event.type in (pygame.WINDOWEXPOSED, pygame.WINDOWRESTORED):
                canvas, drawn = Canvas(surface, fonts), None  # what was drawn may be lost
            state = on_event(event, state, layout or Layout([], [], ()), lanes, scale)
        if worker.error:
            raise worker.error
        if worker.settings and not loaded:
            loaded, new = True, vars(state.settings).items()
            changed = {k: v for k, v in new if v != getattr(asked, k)}  # meanwhile
            state = replace(state, settings=replace(worker.settings, **changed))
            gc.freeze()  # PyTorch's many objects stay: to look through them makes a frame late
            # Two teams of OpenMP threads share the cores badly: the sampler's takes twice as long
            # if this thread, which computes what a card shows, ever starts one as well.
            import torch

            torch.set_num_threads(1)
        if state.request not in ("", "quit") and (loaded or state.request == "fullscreen"):
            state = obey(state, worker, window, lanes)
        if worker.lanes is not lanes:
            lanes, layout = worker.lanes, None
            at = min(END, lanes[0].start)
            state = replace(state, at=at, playing=True)
            if lanes[0].grid and state.selected:  # a given was typed: see what it changes
                state = replace(state, playing=False)
            else:
                state = replace(state, selected=frozenset())
        if worker.message or fonts.lacking() != lacking:
            lacking = fonts.lacking()
            state, worker.message = replace(state, message=worker.message or lacking), ""
        passed = min(0.1, clock.get_time() / 1000)
        state = replace(state, busy=worker.busy, kept=worker.kept is not None)
        state = advance(state, lanes, passed)
        late = [(len(lane.rows), lane.rows[-1].look, lane.done) for lane in lanes]
        now = (state, size, lanes, late, lanes[0].rows[-2:][0].bits)  # of what comes late
        changed, drawn = moving or now != drawn, now
        if changed:
            wanted = lay_out(lanes, state, size, fonts, scale)
            layout, moving = glide(layout, wanted, passed)
            canvas.draw(layout, THEMES[state.theme].page)
            window.flip()
            for item in layout.items if state.prompt else ():
                if item.command == "caret":  # an input method opens its list there
                    place = (item.x / scale, item.y / scale, 1, item.h / scale)
                    pygame.key.set_text_input_rect(pygame.Rect(place))
        if worker.thread.ident is None:  # now that there is something to see
            worker.thread.start()
        clock.tick(FRAMES)
    return state
