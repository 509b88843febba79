"""What the window shows, as a `State`, and how it changes.

Keys and clicks become commands (`commands_of`), a command makes a new state (`handle`).
"""

import math
from dataclasses import dataclass, field, replace

import pygame

from visual.items import along_timeline, item_at
from visual.recording import MASKED, SAMPLERS, Settings, lane_of

VIEWS = {  # name: what it shows, in one line
    "text": "Colour: how probable the model found a token when it drew it.",
    "order": "Colour: the step in which a token appeared. Any order can happen.",
    "belief": "Under each mask: the model's first choice now, the brighter the surer.",
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
    zoom: float = 1.0  # of the text
    scroll: int = 0  # lines
    help: bool = False
    mouse: tuple | None = None  # where it is, in pixels
    dragging: bool = False  # the timeline
    cursor: int | None = None  # the token that the keyboard points at
    picked: int = 0  # the setting that the keyboard changes, one of FIELDS
    draft: str | None = None  # the prompt while it is being typed
    ignore: str = ""  # a character that is about to arrive, but is no part of it
    busy: str = ""  # what the worker is doing
    message: str = ""
    request: str = ""  # what the program shall do: "run" or "quit"
    controls: bool = True  # whether there is somebody to control it


SECONDS = 8  # a whole run at speed 1
FIELDS = ("steps", "temperature", "top_p", "sampler", "seed", "speed")
BINDINGS = (  # keys, their commands, what they do
    ("Space", "play", "play, pause"),
    ("Left Right", "step -1, step 1", "one step back, forward"),
    ("Home End", "seek 0, seek 1", "to the start, the end"),
    (", .", "less speed, more speed", "slower, faster"),
    ("1 2 3", "view text, view order, view belief", "text, order, belief"),
    ("Tab", "view next", "the next of these views"),
    ("[ ]", "cursor -1, cursor 1", "point at a token"),
    ("F", "fix", "keep that token in the next runs, or let it go"),
    ("X", "release", "let go of all tokens"),
    ("P", "prompt", "type a prompt; each _ in it is a mask to fill"),
    ("Up Down", "pick -1, pick 1", "choose a setting of the next run"),
    ("- +", "less, more", "change it"),
    ("Enter N", "run, new", "run with these settings; with a new seed"),
    ("PageUp PageDown", "scroll -5, scroll 5", "scroll, when the text is long (or the wheel)"),
    ("Ctrl+ Ctrl-", "zoom 1.1, zoom 0.909", "larger, smaller letters (or Ctrl and the wheel)"),
    ("T", "theme", "dark, light"),
    ("H ? Esc", "help, help, escape", "this help; close it"),
    ("Q", "quit", "quit"),
)
KEYS = {"=": "more", "Ctrl=": "zoom 1.1"}  # + without Shift on many keyboards
for keys, commands, _ in BINDINGS:
    KEYS |= zip(keys.split(), commands.split(", "), strict=True)
NAMED_KEYS = {
    pygame.K_SPACE: "Space",
    pygame.K_LEFT: "Left",
    pygame.K_RIGHT: "Right",
    pygame.K_UP: "Up",
    pygame.K_DOWN: "Down",
    pygame.K_HOME: "Home",
    pygame.K_END: "End",
    pygame.K_PAGEUP: "PageUp",
    pygame.K_PAGEDOWN: "PageDown",
    pygame.K_TAB: "Tab",
    pygame.K_RETURN: "Enter",
    pygame.K_KP_ENTER: "Enter",
    pygame.K_ESCAPE: "Esc",
    pygame.K_BACKSPACE: "Backspace",
}


def key_of(event):
    """The name of a pressed key, as in BINDINGS. Characters as the keyboard's layout has them."""
    if event.key in NAMED_KEYS:
        return NAMED_KEYS[event.key]
    alt_gr = event.mod & pygame.KMOD_RALT  # on Windows, with Ctrl: it types a character
    if event.mod & (pygame.KMOD_CTRL | pygame.KMOD_META) and not alt_gr:
        return "Ctrl" + pygame.key.name(event.key).upper().strip("[]")
    return event.unicode.upper()


def commands_of(event, state, items, scale=1.0):
    """The commands of one event of pygame's. `items`: what is on the screen."""
    if event.type == pygame.KEYDOWN:
        key = key_of(event)
        if state.draft is None:
            # the character of the key that opens the prompt follows as a text: not part of it
            own = f" {event.unicode}" if key == "P" else ""
            return [KEYS[key] + own] if key in KEYS else []
        typing = {"Enter": "accept", "Esc": "escape", "Backspace": "erase", "CtrlV": "paste"}
        return [typing[key]] if key in typing else []
    if event.type == pygame.TEXTINPUT:
        return [f"type {event.text}"] if state.draft is not None else []
    if event.type in (pygame.QUIT, pygame.WINDOWCLOSE):
        return ["quit"]
    if event.type == pygame.WINDOWLEAVE:
        return ["hover"]
    if event.type == pygame.MOUSEWHEEL and pygame.key.get_mods() & pygame.KMOD_CTRL:
        return [f"zoom {1.1**event.y:g}"]
    if event.type == pygame.MOUSEWHEEL:
        return [f"scroll {-event.y}"]
    if event.type not in (pygame.MOUSEMOTION, pygame.MOUSEBUTTONDOWN, pygame.MOUSEBUTTONUP):
        return []
    x, y = event.pos[0] * scale, event.pos[1] * scale
    if event.type == pygame.MOUSEMOTION:
        move = [f"hover {x:g} {y:g}"]
        return [*move, f"seek {along_timeline(items, x):g}"] if state.dragging else move
    if event.button != 1:
        return []
    if event.type == pygame.MOUSEBUTTONUP:
        return ["drop"]
    item = item_at(items, x, y)
    if item is None or not item.command:
        return []
    if item.command == "timeline":
        return ["drag", f"seek {along_timeline(items, x):g}"]
    return [item.command]


def handle(state, command, record):
    """The state after a command, which is a verb and perhaps an argument. Pure."""
    verb, _, argument = command.partition(" ")
    if verb not in ("hover", "drop", "quit"):
        state = replace(state, message="")
    if verb == "hover":
        return replace(state, mouse=tuple(map(float, argument.split())) or None)
    if verb in ("play", "step", "seek", "drag", "drop"):
        return handle_playback(state, verb, argument, record)
    if verb in ("prompt", "type", "erase", "accept", "escape"):
        return handle_prompt(state, verb, argument)
    if verb in ("pick", "less", "more"):
        return handle_setting(state, verb, argument)
    if verb in ("cursor", "fix", "release"):
        return handle_token(state, verb, argument, record)
    if verb == "view":
        views = list(VIEWS)
        following = views[(views.index(state.view) + 1) % len(views)]
        return replace(state, view=following if argument == "next" else argument)
    if verb == "theme":
        return replace(state, theme="light" if state.theme == "dark" else "dark")
    if verb == "help":
        return replace(state, help=not state.help)
    if verb == "scroll":
        return replace(state, scroll=max(0, state.scroll + int(argument)))
    if verb == "zoom":
        return replace(state, zoom=min(max(state.zoom * float(argument), 0.5), 3.0))
    if verb == "new":
        settings = replace(state.settings, seed=state.settings.seed + 1)
        return replace(state, settings=settings, request="run")
    return replace(state, request=verb)  # run, quit


def handle_playback(state, verb, argument, record):
    """Play, pause, step, and the timeline."""
    if verb == "play":
        again = not state.playing and state.at >= record.n_steps
        return replace(state, playing=not state.playing, at=0.0 if again else state.at)
    if verb == "step":
        at = min(max(math.floor(state.at) + int(argument), 0), record.n_steps)
        return replace(state, at=float(at), playing=False)
    if verb == "seek":
        return replace(state, at=float(argument) * record.n_steps, playing=False)
    return replace(state, dragging=verb == "drag")


def handle_prompt(state, verb, argument):
    """Typing a prompt."""
    if verb == "prompt":
        return replace(state, draft=state.settings.prompt, ignore=argument, help=False)
    if verb == "escape":
        return replace(state, draft=None, help=False, cursor=None)
    if state.draft is None:
        return state
    ignore, state = state.ignore, replace(state, ignore="")
    if verb == "type":
        return state if argument == ignore else replace(state, draft=state.draft + argument)
    if verb == "erase":
        return replace(state, draft=state.draft[:-1])
    settings = replace(state.settings, prompt=state.draft)
    return replace(state, settings=settings, draft=None, request="run")


def within(value, lowest, highest, now):
    """The value, kept between two bounds that do not exclude what the command line has set."""
    return min(max(value, min(lowest, now)), max(highest, now))


def handle_setting(state, verb, argument):
    """Choosing a setting of the next run, and changing it."""
    if verb == "pick" and argument in FIELDS:
        return replace(state, picked=FIELDS.index(argument))
    if verb == "pick":
        return replace(state, picked=(state.picked + int(argument)) % len(FIELDS))
    name, sign = argument or FIELDS[state.picked], 1 if verb == "more" else -1
    if name == "speed":
        return replace(state, speed=min(max(state.speed * 2.0**sign, 0.125), 16.0))
    value = getattr(state.settings, name)
    if name == "steps":  # the next power of two
        value = 2 ** (
            math.floor(math.log2(value)) + 1 if sign > 0 else math.ceil(math.log2(value)) - 1
        )
        value = within(round(value), 1, 4096, state.settings.steps)
    elif name == "temperature":
        value = within(round(value + 0.1 * sign, 1), 0.1, 3.0, value)
    elif name == "top_p":
        value = within(round(value + 0.05 * sign, 2), 0.05, 1.0, value)
    elif name == "sampler":
        names = list(SAMPLERS)
        value = names[(names.index(value) + sign) % len(names)]
    else:
        value = max(0, value + sign)
    return replace(state, settings=replace(state.settings, **{name: value}))


def handle_token(state, verb, argument, record):
    """Pointing at a token, and keeping it for the next runs."""
    L = sum(len(lane.pieces) for lane in record.lanes)
    if verb == "cursor":
        cursor = -1 if state.cursor is None and argument == "1" else state.cursor or 0
        return replace(state, cursor=(cursor + int(argument)) % L)
    kept = dict(state.settings.kept)
    if verb == "release":
        return replace(state, settings=replace(state.settings, kept=()))
    i = int(argument) if argument else state.cursor
    if i is None or i >= L:
        return replace(state, message="Point at a token first: [ and ] do that.")
    lane, i = lane_of(record, i)
    row = lane.row(record.lane_at(lane, state.at))
    if i in kept:
        del kept[i]
    elif record.live or lane.states[row, i] == MASKED:
        return replace(state, message="A token can be kept when it has appeared.")
    elif lane.since[row, i] == 0 and i not in dict(record.settings.kept):
        return replace(state, message="It is part of the prompt: P changes that.")
    else:
        kept[i] = int(lane.states[row, i])
    settings = replace(state.settings, kept=tuple(sorted(kept.items())))
    return replace(state, settings=settings)


def advance(state, record, seconds):
    """The state a moment later."""
    if not state.playing or record.live or state.dragging:
        return state
    at = state.at + seconds * state.speed * record.n_steps / SECONDS
    if at >= record.n_steps:
        return replace(state, at=float(record.n_steps), playing=False)
    return replace(state, at=at)
