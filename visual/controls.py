"""What the window shows, as a `State`, and how it changes.

Keys and clicks become commands, a command makes a new state (`handle`). What a state cannot do by
itself, such as running the model, it requests (`window` does it).
"""

from dataclasses import dataclass, field, replace

import pygame

from visual.field import Field
from visual.record import MOST_STEPS, SAMPLERS, Settings, pieces
from visual.sudoku import with_given
from visual.typesetting import FADE

VIEWS = {  # name: what it shows, in one line
    "text": "Colour: how probable a word was when it was drawn. Underlined: it was given.",
    "order": "Colour: the moment in which a word appeared.",
    "prediction": "In each mask: what the model would write there now, the clearer the surer.",
}
TOUR = (
    "The grey boxes are masks: words that are not there yet.",
    "In each step the model predicts all of them at once, and some are drawn.",
    "Point at a word to see what else it could have been. Click on it to change it.",
)
BLOCK_TOUR = (
    "The grey boxes are masks. They are written in blocks, from left to right.",
    "In each step the model predicts the masks of one block, given all that stands before it.",
    TOUR[2],
)


@dataclass(frozen=True)
class State:
    """All that the window shows besides the records."""

    settings: Settings = field(default_factory=Settings)  # of the next run
    at: float = 0.0  # where we are on the clock, 0 to END
    playing: bool = True
    view: str = "text"
    theme: str = "dark"
    help: bool = False
    touring: bool = False
    mouse: tuple | None = None  # where it is, in pixels
    dragging: tuple | None = None  # what the mouse moves: ("timeline", x, width), ("tokens", first)
    selected: frozenset = frozenset()  # tokens, counted over all lanes
    head: int = -1  # whose attention is shown: 0 the mean of all heads, 1... each, -1 none
    kept: bool = False  # whether the next run is shown beside this one
    picked: int = 0  # the setting that the keyboard changes, one of CHOICES
    prompt: Field | None = None  # what is being typed: a prompt, or words for those selected
    busy: str = ""  # what the worker is doing
    message: str = ""
    request: str = ""  # what the program shall do
    controls: bool = True  # whether there is somebody to control it


SECONDS = 8  # a whole run
END = 1 + FADE  # of the clock: what came last has time to fade
CHOICES = ("steps", "temperature", "top_p", "sampler", "length", "seed")  # with two arrows
BINDINGS = (  # keys, their commands, what they do. All other characters are text.
    ("Space", "play", "play, pause"),
    ("Left Right", "step -1, step 1", "one step back, forward"),
    ("Home End", "seek 0, seek 2", "to the start, the end"),
    ("1 2 3", "view text, view order, view prediction", "text, order, prediction"),
    ("Tab", "prompt", "change the prompt; each _ in it is a mask to fill"),
    ("Up Down", "pick -1, pick 1", "choose a setting"),
    ("- +", "less, more", "change the setting"),
    ("Return Ctrl+N", "run, new", "run; run with a new seed"),
    ("Delete Ctrl+B", "erase, branch", "erase and refill the words chosen; go on from here"),
    ("Ctrl+A", "attend", "what a word attended to: the mean, one head after the other"),
    ("Ctrl+D", "compare", "the next runs beside this one; no more"),
    ("Ctrl+R", "corrupt", "a real text loses its words, and is written again"),
    ("Ctrl+Z Ctrl+C", "undo, copy", "undo; copy the text"),
    ("Ctrl+S Ctrl+G", "picture, animation", "save a picture, an animation"),
    ("F11 Ctrl+T", "fullscreen, theme", "full screen; dark or light"),
    ("F1 Ctrl+Q", "help, quit", "this help; quit"),
)
KEYS = {"=": "more", "?": "help", "Enter": "run", "Escape": "escape", "Backspace": "erase"}
for keys, commands, _ in BINDINGS:
    KEYS |= zip(keys.split(), commands.split(", "), strict=True)
ARROWS = {"Left": (-1, 0), "Right": (1, 0), "Up": (0, -1), "Down": (0, 1)}  # in a grid
REQUESTS = {  # what the program has to do: what the mouse says about it
    "run": "write a text with these settings",
    "new": "write another text with these settings",
    "branch": "go on from this moment with another seed",
    "undo": "show what was shown before",
    "compare": "keep this text, and show the next ones beside it, on one clock",
    "corrupt": "a text of the validation set loses its words as t rises; the model writes it again",
    "copy": "copy the text as it is now (Ctrl+C)",
    "picture": "save what is shown as a PNG file",
    "animation": "save the run as a GIF file",
    "example 0": "the beginning of a line that the model has not seen",
    "example 1": "a line that the model has not seen, with a gap",
    "example 2": "two such lines, with the middle missing",
}
OTHERS = ("quit", "fullscreen", "erase", "put")


def on_event(event, state, layout, lanes, scale=1.0):
    """The state after one of pygame's events. `layout`: what is on the screen."""
    if event.type in (pygame.QUIT, pygame.WINDOWCLOSE):
        return replace(state, request="quit")
    if event.type in (pygame.KEYDOWN, pygame.TEXTINPUT, pygame.TEXTEDITING):
        return on_key(event, state, lanes)
    if event.type == pygame.WINDOWLEAVE:
        return replace(state, mouse=None)
    if event.type not in (pygame.MOUSEMOTION, pygame.MOUSEBUTTONDOWN, pygame.MOUSEBUTTONUP):
        return state
    state = replace(state, mouse=(event.pos[0] * scale, event.pos[1] * scale))
    if event.type == pygame.MOUSEBUTTONUP:
        return replace(state, dragging=None)
    item = layout.at(*state.mouse)
    if event.type == pygame.MOUSEBUTTONDOWN and event.button == 1:
        return on_press(state, item, lanes)
    match state.dragging:
        case ("timeline", x, width):
            return seek(state, (state.mouse[0] - x) / width, lanes)
        case ("tokens", first) if item is not None and item.token is not None:
            chosen = range(min(first, item.token), max(first, item.token) + 1)
            if lane_of(lanes, first)[0] is lane_of(lanes, item.token)[0]:
                return replace(state, selected=frozenset(chosen))
    return state


def on_press(state, item, lanes):
    """The state after a press of the left button on an item, or on nothing (None)."""
    if item is not None and item.command == "timeline":
        state = replace(state, dragging=("timeline", item.x, item.w), touring=False)
        return seek(state, (state.mouse[0] - item.x) / item.w, lanes)
    if item is not None and item.command:
        return handle(state, item.command, lanes)
    if item is None or item.token is None:
        return replace(state, selected=frozenset())
    chosen = frozenset() if state.selected == {item.token} else frozenset([item.token])
    prompt = None if lanes[0].grid else state.prompt  # what is typed now goes into the cell
    state = replace(state, selected=chosen, playing=False, touring=False, prompt=prompt)
    return replace(state, dragging=("tokens", item.token))


def on_key(event, state, lanes):
    """The state after a key, or after a text, which is what keys have typed on their layout."""
    line = state.prompt
    if event.type != pygame.KEYDOWN and line is None:
        size, digits = lanes[0].grid, "_123456789"[: lanes[0].grid + 1]
        if size and state.selected and event.text and event.text in digits:
            return handle(state, f"given {event.text}", lanes)
        if event.text in KEYS or not event.text.strip():
            return handle(state, KEYS.get(event.text, ""), lanes)
        if size and event.text not in digits:
            return replace(state, message=f"a cell takes a digit from 1 to {size}")
        line = Field()  # whoever types begins a prompt, or other words for those selected
    if event.type == pygame.TEXTINPUT:
        return replace(state, prompt=line.type(event.text), help=False)
    if event.type == pygame.TEXTEDITING:
        return replace(state, prompt=replace(line, composing=event.text))
    control = event.mod & (pygame.KMOD_CTRL | pygame.KMOD_META)
    key = pygame.key.name(event.key).title().replace(" ", "")
    key = "Ctrl+" + key if control and len(key) == 1 else key
    if line is None and lanes[0].grid and state.selected and key in ARROWS:
        return replace(state, selected=frozenset([next_cell(state, lanes, *ARROWS[key])]))
    if line is None:  # what types a character comes as a text, too
        return handle(state, KEYS.get(key, "") if len(key) > 1 else "", lanes)
    if line.composing:  # the input method's keys
        return state
    if key in ("Return", "Enter") and state.selected and lanes[0].tokenizer:
        return put_typed(state, lanes)
    if key in ("Return", "Enter"):
        settings = replace(state.settings, prompt=line.text)
        return replace(state, settings=settings, prompt=None, request="run", message="")
    if key in ("Escape", "Tab"):
        return replace(state, prompt=None)
    match key:
        case "Ctrl+A":
            line = replace(line, anchor=0, caret=len(line.text))
        case "Ctrl+C" | "Ctrl+X" if line.selected:
            pygame.scrap.put_text(line.selected)
            line = line.type("") if key == "Ctrl+X" else line
        case "Ctrl+V":
            line = line.type(pygame.scrap.get_text().strip())
        case _:
            by_word = bool(control or event.mod & pygame.KMOD_ALT)
            line = line.press(key, bool(event.mod & pygame.KMOD_SHIFT), by_word)
    return replace(state, prompt=line)


def next_cell(state, lanes, across, down):
    """The cell beside the one that is selected, if there is one."""
    record, i = lane_of(lanes, token := max(state.selected))
    y, x = divmod(i, record.grid)
    x, y = (min(max(0, k), record.grid - 1) for k in (x + across, y + down))
    return token - i + y * record.grid + x


def put_typed(state, lanes):
    """The state that requests the tokens of what was typed, if as many are selected."""
    (record, i), wanted = lane_of(lanes, min(state.selected)), len(state.selected)
    old = pieces(record, record.at(state.at))[i]  # with the space before it, if it has one
    space = " " if (i > 0 if old is None else old[0] == " ") else ""
    ids = record.tokenizer.encode(space + state.prompt.text.strip())
    if len(ids) == wanted:
        return replace(state, prompt=None, message="", request=" ".join(map(str, ["type", *ids])))
    said = f"“{state.prompt.text}”: {len(ids)} token{'s' * (len(ids) != 1)}, but {wanted} selected"
    return replace(state, message=said + ": select as many")


def handle(state, command, lanes):
    """The state after a command, which is a verb and perhaps an argument. Pure."""
    state = replace(state, message="", touring=False) if command else state
    match command.split():
        case ["play"]:
            again = not state.playing and state.at >= END
            return replace(state, playing=not state.playing, at=0.0 if again else state.at)
        case ["step", n]:
            return seek(state, neighbour(lanes, state.at, int(n)), lanes)
        case ["seek", at]:
            return seek(state, float(at), lanes)
        case ["view", name]:
            return replace(state, view=name)
        case ["theme"]:
            return replace(state, theme="light" if state.theme == "dark" else "dark")
        case ["help"]:
            return replace(state, help=not state.help)
        case ["escape"]:
            return replace(state, help=False, selected=frozenset())
        case ["prompt"]:
            text, n = state.settings.prompt, len(state.settings.prompt)
            return replace(state, prompt=Field(text, n, n), help=False, selected=frozenset())
        case ["erase"] if lanes[0].grid and state.selected:
            return handle(state, "given _", lanes)
        case ["put", token] if lanes[0].grid:
            return handle(state, f"given {chr(int(token))}", lanes)
        case ["given", digit]:
            prompt = with_given(state.settings.prompt, state.selected, digit, lanes[0].grid)
            return replace(state, settings=replace(state.settings, prompt=prompt), request="run")
        case ["attend"] if lanes[0].heads[0]:
            layers, heads = lanes[0].heads
            return replace(state, head=(state.head + 2) % (layers * heads + 2) - 1)
        case ["pick", n]:
            return replace(state, picked=(state.picked + int(n)) % len(CHOICES))
        case [("less" | "more") as verb, *name]:
            name = name[0] if name else CHOICES[state.picked]
            new = changed(state.settings, name, verb == "more", lanes)
            said = f"next run: {name.replace('_', '-')} {getattr(new, name)}"
            return replace(state, settings=new, message=said)
        case [verb, *_] if command in REQUESTS or verb in OTHERS:
            return replace(state, request=command)
    return state


def lane_of(lanes, token):
    """(record, place in it) of a token that was counted over all lanes."""
    for record in lanes:
        if token < record.length:
            break
        token -= record.length
    return record, min(token, record.length - 1)


def edge(lanes):
    """The last moment that can be shown: where sampling is, or the end."""
    known = min(lane.edge for lane in lanes)
    return END if known >= 1 else known


def seek(state, at, lanes):
    """Go to a moment of the run, and stay there; beyond the clock nothing glows any more."""
    at = END if at >= 1 else at
    return replace(state, at=float(min(max(at, 0), edge(lanes))), playing=False)


def neighbour(lanes, at, sign):
    """The moment at which the next text (1) begins, or the one before what is shown now (-1)."""
    times = {row.time for lane in lanes for row in lane.rows}
    if sign > 0:
        return min((time for time in times if time > at), default=END)
    now = max(lane.rows[lane.at(at)].time for lane in lanes)
    return max((time for time in times if time < now), default=0.0)


def changed(settings, name, up, lanes):
    """The settings with one of CHOICES a little higher or lower."""
    s, sign = settings, 1 if up else -1
    most = min((lane.longest for lane in lanes if lane.longest), default=s.length + 8)
    samplers = list(SAMPLERS)
    value = {
        "steps": min(s.steps * 2, MOST_STEPS) if up else max(1, s.steps // 2),
        "temperature": max(0.1, round(s.temperature + 0.1 * sign, 1)),
        "top_p": min(max(0.05, round(s.top_p + 0.05 * sign, 2)), 1.0),
        "sampler": samplers[(samplers.index(s.sampler) + sign) % len(samplers)],
        "length": max(8, min(s.length + 8 * sign, most)),
        "seed": max(0, s.seed + sign),
    }[name]
    return replace(settings, **{name: value})


def advance(state, lanes, seconds):
    """The state a moment later. A run that is being sampled is shown as far as it is."""
    end = edge(lanes)
    if not state.playing or state.dragging:
        return state
    length = SECONDS * max(0.2, max(row.t for row in lanes[0].rows))  # a gap takes less
    at = min(state.at + seconds / length, max(end, state.at))
    return replace(state, at=float(at), playing=at < END, touring=state.touring and at < END)
