"""What the window shows, as a `State`, and how it changes.

Keys and clicks become commands, a command makes a new state (`handle`).
"""

import math
from dataclasses import dataclass, field, replace

import pygame

from visual.record import MOST_STEPS, SAMPLERS, Settings

VIEWS = {  # name: what it shows, in one line
    "text": "Colour: how probable a token was when it was drawn. Grey: it is masked again later.",
    "order": "Colour: the step in which a token appeared. Any order can happen.",
    "prediction": "Under each mask: what the model would write there now, the clearer the surer.",
}


@dataclass(frozen=True)
class State:
    """All that the window shows besides the record."""

    settings: Settings = field(default_factory=Settings)  # of the next run
    at: float = 0.0  # where we are in the run, in steps
    playing: bool = True
    speed: float = 1.0
    view: str = "text"
    theme: str = "dark"
    help: bool = False
    mouse: tuple | None = None  # where it is, in pixels
    dragging: tuple | None = None  # x and width of the timeline, while it is dragged
    picked: int = 0  # the setting that the keyboard changes, one of CHOICES
    draft: str | None = None  # the prompt while it is being typed
    busy: str = ""  # what the worker is doing
    message: str = ""
    request: str = ""  # what the program shall do: "run" or "quit"
    controls: bool = True  # whether there is somebody to control it


SECONDS = 8  # a whole run at speed 1
CHOICES = ("steps", "temperature", "top_p", "sampler", "seed")  # settings with two arrows
BINDINGS = (  # keys, their commands, what they do
    ("Space", "play", "play, pause"),
    ("Left Right", "step -1, step 1", "one step back, forward"),
    ("Home End", "step -inf, step inf", "to the start, the end"),
    (", .", "speed 0.5, speed 2", "slower, faster"),
    ("1 2 3", "view text, view order, view prediction", "text, order, prediction"),
    ("P", "prompt", "type a prompt; each _ in it is a mask to fill"),
    ("Up Down", "pick -1, pick 1", "choose a setting of the next run"),
    ("- +", "less, more", "change it"),
    ("Return N", "run, new", "run with these settings; with a new seed"),
    ("T", "theme", "dark, light"),
    ("H ? Escape", "help, help, escape", "this help; close it"),
    ("Q", "quit", "quit"),
)
KEYS = {"=": "more", "Enter": "run"}  # + without Shift on many keyboards; the keypad's Enter
for keys, commands, _ in BINDINGS:
    KEYS |= zip(keys.split(), commands.split(", "), strict=True)


def on_event(event, state, layout, record, scale=1.0):
    """The state after one of pygame's events. `layout`: what is on the screen."""
    if event.type in (pygame.QUIT, pygame.WINDOWCLOSE):
        return replace(state, request="quit")
    if event.type in (pygame.KEYDOWN, pygame.TEXTINPUT):
        return on_key(event, state, record)
    if event.type == pygame.WINDOWLEAVE:
        return replace(state, mouse=None)
    if event.type not in (pygame.MOUSEMOTION, pygame.MOUSEBUTTONDOWN, pygame.MOUSEBUTTONUP):
        return state
    state = replace(state, mouse=(event.pos[0] * scale, event.pos[1] * scale))
    if event.type == pygame.MOUSEBUTTONUP:
        return replace(state, dragging=None)
    if event.type == pygame.MOUSEBUTTONDOWN and event.button == 1:
        item = layout.at(*state.mouse)
        if item is not None and item.command != "timeline":
            return handle(state, item.command, record)
        state = replace(state, dragging=item and (item.x, item.w))
    if state.dragging:
        x, width = state.dragging
        return seek(state, (state.mouse[0] - x) / width * record.n_steps, record)
    return state


def on_key(event, state, record):
    """The state after a key, or after a text, which is what keys have typed on their layout."""
    if event.type == pygame.TEXTINPUT:
        if state.draft is not None:
            return replace(state, draft=state.draft + event.text)
        return handle(state, KEYS.get(event.text.upper(), ""), record)
    key = pygame.key.name(event.key).title().replace(" ", "")
    if state.draft is None:  # what types a character comes as a text, too
        return handle(state, KEYS.get(key, "") if len(key) > 1 else "", record)
    if key in ("Return", "Enter"):
        settings = replace(state.settings, prompt=state.draft)
        return replace(state, settings=settings, draft=None, request="run")
    if key == "Escape":
        return replace(state, draft=None)
    if key == "Backspace":
        return replace(state, draft=state.draft[:-1])
    if key == "V" and event.mod & (pygame.KMOD_CTRL | pygame.KMOD_META):
        return replace(state, draft=state.draft + pygame.scrap.get_text().strip())
    return state


def handle(state, command, record):
    """The state after a command, which is a verb and perhaps an argument. Pure."""
    state = replace(state, message="")
    match command.split():
        case ["play"]:
            again = not state.playing and state.at >= record.n_steps
            return replace(state, playing=not state.playing, at=0.0 if again else state.at)
        case ["step", n]:
            return seek(state, math.floor(state.at) + float(n), record)
        case ["speed", factor]:
            return replace(state, speed=min(max(state.speed * float(factor), 0.125), 16.0))
        case ["view", name]:
            return replace(state, view=name)
        case ["theme"]:
            return replace(state, theme="light" if state.theme == "dark" else "dark")
        case [("help" | "escape") as verb]:
            return replace(state, help=verb == "help" and not state.help)
        case ["prompt"]:
            return replace(state, draft=state.settings.prompt, help=False)
        case ["pick", n]:
            return replace(state, picked=(state.picked + int(n)) % len(CHOICES))
        case [("less" | "more") as verb, *name]:
            name = name[0] if name else CHOICES[state.picked]
            return replace(state, settings=changed(state.settings, name, verb == "more"))
        case ["new"]:
            settings = replace(state.settings, seed=state.settings.seed + 1)
            return replace(state, settings=settings, request="run")
        case [("run" | "quit") as verb]:
            return replace(state, request=verb)
    return state


def seek(state, at, record):
    """Go to a moment of the run, and stay there."""
    return replace(state, at=float(min(max(at, 0), record.n_steps)), playing=False)


def changed(settings, name, up):
    """The settings with one of CHOICES a little higher or lower."""
    s, sign = settings, 1 if up else -1
    samplers = list(SAMPLERS)
    value = {
        "steps": min(s.steps * 2, MOST_STEPS) if up else max(1, s.steps // 2),
        "temperature": max(0.1, round(s.temperature + 0.1 * sign, 1)),
        "top_p": min(max(0.05, round(s.top_p + 0.05 * sign, 2)), 1.0),
        "sampler": samplers[(samplers.index(s.sampler) + sign) % len(samplers)],
        "seed": max(0, s.seed + sign),
    }[name]
    return replace(settings, **{name: value})


def advance(state, record, seconds):
    """The state a moment later."""
    if not state.playing or record.live or state.dragging:
        return state
    at = state.at + seconds * state.speed * record.n_steps / SECONDS
    return replace(state, at=float(min(at, record.n_steps)), playing=at < record.n_steps)
