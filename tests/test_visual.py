"""The window: layout and state as pure functions, frames, files, the terminal, the command line."""

import io
import os
import re
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

os.environ["SDL_VIDEODRIVER"] = "dummy"

import imageio_ffmpeg
import numpy as np
import pygame
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import mdlm.sampling
import sample_visual
from bpe_tokenizer import BPETokenizer
from conftest import make_model
from files import UserError
from mdlm.model import DiffusionTransformer
from saving import save_checkpoint
from visual.colors import THEMES, mix, probability_color, readable_on, viridis
from visual.controls import CHOICES, KEYS, VIEWS, State, advance, handle, on_event
from visual.drawing import Fonts
from visual.files import pictures, save, show_inline
from visual.items import Layout, visible
from visual.page import lay_out
from visual.record import (
    MASKED,
    SAMPLERS,
    Record,
    Settings,
    candidates,
    facts,
    pieces,
    race,
    record_trajectory,
)
from visual.terminal import play_in_terminal, text_frame
from visual.typesetting import appearance, break_lines, in_text
from visual.window import find_display, open_window, show
from visual.worker import CANDIDATES, Worker, parse_prompt, record_run, waiting_record

DARK = THEMES["dark"]
TEXT = "In the beginning God created the heaven and the earth. And the earth was without form.\n"
TOKENIZER = BPETokenizer.train(TEXT * 9, 300)
MODEL, TWIN = make_model(context=40), make_model(context=40, causal=True)
HEAD = DiffusionTransformer.head
ASKED = Settings(steps=24, length=40, prompt="In the __ God")
RECORD = record_run(MODEL, TOKENIZER, ASKED, "a title")


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint; beside it one whose network was edited later."""
    save_checkpoint(tmp_path / "tiny.safetensors", MODEL, TOKENIZER, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionTransformer, "head", lambda self, h: 1.5 * HEAD(self, h))
        save_checkpoint(tmp_path / "tiny.safetensors.edited", MODEL, TOKENIZER, {})
    return str(tmp_path / "tiny.safetensors")


class Ruler:
    """Fonts without pygame: every character is six tenths as wide as it is high."""

    def width(self, text, size):
        return 0.6 * size * sum(2 if ord(c) > 0x3000 else 1 for c in text)

    def height(self, size):
        return round(1.2 * size)


RULER = Ruler()


def made_up(tokens, n_steps=8, seed=0, step=None):
    """A record of tokens, texts or bytes, that no model wrote; with predictions."""
    noise, L = np.random.default_rng(seed), len(tokens)
    step = noise.integers(0, n_steps + 1, L) if step is None else np.array(step)
    change = np.unique([0, *step])
    texts = np.where(step <= change[:, None], np.arange(L), MASKED)
    best = noise.integers(0, L, (L, 3)).tolist(), noise.random((L, 3)).tolist()
    predictions = {text.tobytes(): lambda: best for text in texts}
    spelled = [t if isinstance(t, bytes) else t.encode() for t in tokens]
    spelling = SimpleNamespace(token_bytes=spelled, show=lambda i: spelled[i].decode())
    rest = dict(probability=noise.random(L), predictions=predictions, title="made up", seconds=1.0)
    asked = Settings(steps=n_steps, length=L)
    return Record(spelling, asked, change, texts, np.arange(n_steps + 1), **rest)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)


# -- records


@given(st.lists(st.binary(max_size=6), min_size=1, max_size=12))
def test_pieces_spell_the_bytes_wherever_tokens_cut_characters(tokens):
    shown = pieces(made_up(tokens), -1)
    assert len(shown) == len(tokens) and all(shown)
    spelled = b"".join(tokens).decode("utf-8", "replace")
    assert "".join(shown).replace("·", "") == spelled.replace("·", "")


@pytest.mark.parametrize("step", [[1, 1, 5, 2], [1, 5, 1, 2]])
def test_a_character_is_shown_when_all_its_tokens_are_there(step):
    run = made_up([b"a", "🙂".encode()[:1], "🙂".encode()[1:], b" b"], step=step)
    assert pieces(run, -1) == ("a", "·", "🙂", " b")
    assert appearance(run, 2, 3, "text", DARK)[0] not in ("🙂", None)
    assert appearance(run, 2, 5, "text", DARK)[0] is None


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_sampler_asked_for_runs_with_the_settings_asked_for(name):
    asked = Settings(steps=30, length=40, sampler=name, seed=5, temperature=0.7, top_p=0.9)
    run = record_run(MODEL, TOKENIZER, asked)
    options = dict(generator=torch.Generator().manual_seed(5), temperature=0.7, top_p=0.9)
    masks = torch.full((1, 40), TOKENIZER.mask_id)
    made = getattr(mdlm.sampling, SAMPLERS[name])(MODEL, masks, 30, **options)
    assert run.calls.tolist() == [0, *made.calls[0].cumsum(0).tolist()] and run.masked(0) == 40
    for at in range(31):
        text = made.state(at)[0]
        text = torch.where(text == TOKENIZER.mask_id, MASKED, text)
        assert run.texts[run.row(at)].tolist() == text.tolist()
    assert run.probability.tolist() == made.probability[0].tolist()


def test_predictions_are_those_of_the_samplers_own_network_calls():
    calls = []
    hook = MODEL.norm.register_forward_hook(lambda *_: calls.append(1))
    run = record_run(MODEL, TOKENIZER, Settings(steps=24, length=40))
    hook.remove()
    assert len(calls) == run.calls[-1] == len(run.predictions)
    for text, at in zip(run.texts[:-1], run.change, strict=False):
        i = int(np.flatnonzero(text == MASKED)[-1])
        z = torch.from_numpy(np.where(text == MASKED, TOKENIZER.mask_id, text))[None]
        best, found = MODEL(z)[0, i].exp().topk(CANDIDATES), candidates(run, i, at + 0.5)
        assert found[0][0] == TOKENIZER.show(int(best.indices[0]))
        np.testing.assert_allclose([p for _, p in found], best.values.detach(), rtol=0.1)
    assert candidates(run, 0, 24) == []  # what is written needs no prediction
    assert "features" not in vars(MODEL)  # the model is left as it was


def test_a_prompt_is_texts_and_masks_without_spaces_before_them():
    for prompt, parts in [
        ("In the _", ["In the ", 1]), ("a __ b _", ["a ", 2, " b ", 1]), (r"\_", ["_"]),
        (r"a\_b _", ["a_b ", 1]), ("a\n", ["a\n"]), ("", []),
    ]:  # fmt: skip
        assert parse_prompt(prompt) == parts
    for prompt in ("In the ", "In the _", "In the __"):
        text = waiting_record(MODEL, TOKENIZER, replace(ASKED, prompt=prompt)).texts[0].tolist()
        assert text == TOKENIZER.encode("In the") + [MASKED] * (
            40 - len(TOKENIZER.encode("In the"))
        )


def test_what_is_given_stays_and_gaps_are_filled_call_by_call():
    seen, start = [], waiting_record(MODEL, TOKENIZER, ASKED).texts
    began = time.perf_counter()
    run = record_run(
        MODEL, TOKENIZER, ASKED, "", lambda live: seen.append(live) or time.sleep(0.02)
    )
    taken = time.perf_counter() - began
    assert run.seconds < taken - 0.02 * len(seen)  # to show it is not the sampler's time
    given = TOKENIZER.encode("In the") + [MASKED] * 2 + TOKENIZER.encode(" God")
    assert start[0].tolist() == given + [MASKED] * (40 - len(given))
    for text in run.texts:
        assert (text == start)[start >= 0].all()
    assert run.masked(24) == 0 and ((run.since[-1] == 0) == (start[0] >= 0)).all()
    assert [live.n_steps for live in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].change.tolist() == list(range(len(seen)))
    assert (seen[-1].texts == run.texts[:-1]).all() and all(live.live for live in seen)
    twin = record_run(TWIN, TOKENIZER, ASKED)  # from left to right, a call for each token
    steps = [0 if token >= 0 else i for i, token in enumerate(start[0], 1)]
    assert twin.since[-1].tolist() == steps and twin.calls.tolist() == list(range(41))


def test_a_race_runs_on_the_clock_of_its_seconds():
    calls = np.array([0, 0, 1, 2, 2, 3, 4, 4, 4])  # four network calls of half a second each
    first = replace(made_up("abcdefgh", step=[2, 3, 3, 5, 5, 6, 6, 6]), seconds=2.0, calls=calls)
    second = made_up("abcdefgh", step=[1, 2, 3, 4, 5, 6, 7, 8])  # eight, 0.09375 seconds each
    both = race(first, replace(second, seconds=0.75))
    for now, masks, done in [
        (0.0, [8, 8], ["0", "0"]), (0.0925, [8, 8], ["0", "0"]), (0.3, [8, 5], ["0", "3"]),
        (0.6, [7, 2], ["1", "6"]), (1.1, [5, 0], ["2", "8"]), (2.0, [0, 0], ["4", "8"]),
    ]:  # fmt: skip
        at = now / 2.0 * both.n_steps
        assert [lane.masked(at) for lane in both.lanes] == masks
        assert [dict(facts(both, lane, at))["network calls"] for lane in both.lanes] == done
    assert [dict(facts(both, lane, at))["seconds"] for lane in both.lanes] == ["2.00", "0.75"]
    quick = race(first, replace(second, seconds=0.01)).twin  # all of it in a few ticks
    assert quick.masked(0) == 8 and quick.masked(quick.n_steps) == 0


# -- layout

ODD_PIECES = st.one_of(
    st.sampled_from([" the", "ed", ",", "\n", "\n\n", " ", "   ", "·", "\ufffd", "\t", "\x00"]),
    st.sampled_from(["🙂", "👨\u200d👩\u200d👧", "e\u0301", "\u0301", "中文", " ק", "x" * 300]),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
)
TOKENS = st.lists(ODD_PIECES, min_size=1, max_size=40)


def check_layout(page, size):
    """Nothing is outside of the window, and nothing overlaps what it should not."""
    for item in page.items + page.overlay:
        assert item.x >= -0.01 and item.x + item.w <= size[0] + 0.01, item
        assert item.y >= -0.01 and item.y + item.h <= size[1] + 0.01, item
        assert "\n" not in item.text
    tokens = [item for item in page.items if item.token is not None]
    for items in (tokens, [item for item in page.items if item.kind == "text"]):
        for n, a in enumerate(items):
            for b in items[n + 1 :]:
                wide = min(a.x + a.w, b.x + b.w) - max(a.x, b.x)
                tall = min(a.y + a.h, b.y + b.h) - max(a.y, b.y)
                assert wide <= 0.01 or tall <= 0.01, (a, b)


@settings(max_examples=150)
@given(TOKENS, st.integers(200, 1700), st.integers(200, 1100), st.data())
def test_nothing_overlaps_and_nothing_is_outside(tokens, width, height, data):
    run, size = made_up(tokens), (width, height)
    if data.draw(st.booleans()):
        run = race(run, replace(made_up(tokens, n_steps=5, seed=1), seconds=0.4))
    state = State(view=data.draw(st.sampled_from(list(VIEWS))), controls=data.draw(st.booleans()))
    state = replace(state, at=data.draw(st.floats(0, run.n_steps)), mouse=(width / 3, height / 3))
    page = lay_out(run, state, size, RULER)
    check_layout(page, size)
    places = [item[1:5] for item in page.items if item.token is not None]
    start = lay_out(run, replace(state, at=0, view="text"), size, RULER)
    assert places == [item[1:5] for item in start.items if item.token is not None]  # none moves
    commands = {item.command.partition(" ")[0] for item in page.items}
    assert state.controls or commands <= {"", "view", "timeline"}
    if min(size) > 600:  # all the text is there
        shown = {item.token for item in page.items} - {None}
        assert shown == set(range(len(tokens) * len(run.lanes)))


@settings(max_examples=60)
@given(TOKENS, st.integers(1, 400), st.integers(9, 30))
def test_lines_hold_the_whole_text_in_order(tokens, width, size):
    spots, n_lines = break_lines(tokens, width, RULER, size)
    order = [(spot.line, spot.x) for spot in spots]
    assert order == sorted(order) and n_lines == 1 + spots[-1].line
    assert all(spot.x + spot.w <= width + 1e-6 for spot in spots)
    for i, piece in enumerate(tokens):
        text = "".join(spot.text for spot in spots if spot.token == i).replace("◌", "")
        cut = RULER.width(visible(piece) + "◌", size) > width
        assert cut or text in (visible(piece), visible(piece)[1:])


def test_lines_break_between_words_and_at_line_breaks():
    spots, _ = break_lines(["a", "\n", " b", "c", " d"], 50, RULER, 10)
    assert [(s.line, s.text) for s in spots] == [(0, "a"), (0, "↵"), (1, "b"), (1, "c"), (1, "d")]
    assert [s.gap for s in spots] == [True, False, True, False, True]
    spots, _ = break_lines([" aaaa", " bb", "bb"], 40, RULER, 10)
    assert [s.line for s in spots] == [0, 1, 1]  # a word of two tokens is not torn apart
    assert [s.x for s in spots] == [0, 0, 12]  # no space begins a line


@pytest.mark.parametrize("size", [(200, 200), (361, 259), (640, 480), (1601, 999)])
def test_help_live_runs_prompts_and_messages_fit(size):
    live = []
    record_run(MODEL, TOKENIZER, ASKED, "t" * 200, live.append)
    far = Settings(prompt="long " * 100, seed=2**62, sampler="first-hitting")
    states = [State(help=True), State(draft="a " * 2**17 + "end"), State(settings=far)]
    states += [State(message="m" * 300, speed=0.125), State(busy="b" * 300, view="prediction")]
    for state in states:
        for shown in (RECORD, live[0], live[-1], waiting_record(MODEL, TOKENIZER, ASKED)):
            page = lay_out(shown, state, size, RULER)
            check_layout(page, size)
            if state.draft:  # the end of what is typed is seen
                assert any(item.text.endswith("end▏") for item in page.items)


# -- colours


def luminance(color):
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(*colors):  # of two, from 1 to 21; text wants 4.5 (WCAG 2)
    low, high = sorted(map(luminance, colors))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_colours_can_be_read(theme):
    for ink in (theme.ink, theme.faint, theme.accent):
        assert contrast(ink, theme.page) >= 4.5 and contrast(ink, theme.card) >= 4.5
    scale = np.linspace(0, 1, 50)
    for k in scale:
        assert contrast(probability_color(k, theme), theme.page) >= 4.5
        assert contrast(readable_on(viridis(k)), viridis(k)) >= 4.3
    colors = [probability_color(p, theme) for p in (0, 0.05, 0.2, 1)]  # most draws are below 0.2
    assert min(sum(map(abs, np.subtract(a, b))) for a, b in pairwise(colors)) > 30
    light = [luminance(viridis(k)) for k in scale]
    assert light == sorted(light)  # it also works for whoever sees no colour


def test_tokens_show_what_happened():
    i, T = int(RECORD.since[-1].argmax()), RECORD.n_steps
    name, _ = candidates(RECORD, i, 0)[0]
    assert appearance(RECORD, i, 0, "prediction", DARK)[0] == in_text(name)
    assert appearance(RECORD, i, 0, "text", DARK)[::2] == ("", DARK.mask)
    for i, since in enumerate(RECORD.since[-1]):
        _, ink, paper = appearance(RECORD, i, T, "text", DARK)
        assert paper is None  # nothing glows at the end
        assert ink == (probability_color(RECORD.probability[i], DARK) if since else DARK.ink)
        if 0 < since < T:
            assert appearance(RECORD, i, since, "text", DARK)[2] not in (None, DARK.mask)
            assert appearance(RECORD, i, T, "order", DARK)[2] == viridis(since / T)
            glow = appearance(RECORD, i, since + T / 32, "text", DARK)[2]  # half of its time
            assert glow == mix(DARK.page, DARK.accent, 0.55 / 4) or since + T / 32 >= T
    texts = np.array([[0, MASKED], [1, MASKED], [0, 1]])  # " two" stands where " one" will be
    run = replace(made_up([" one", " two"], 40), texts=texts, change=np.array([0, 1, 40]))
    assert appearance(run, 0, 30, "text", DARK) == ("two", DARK.faint, None)
    assert appearance(run, 0, 40, "text", DARK)[0] is None


# -- controls


def press(name, mod=0):
    """A key; one that types a character comes as a text."""
    if len(name) == 1 and not mod:
        return pygame.event.Event(pygame.TEXTINPUT, text=name)
    return pygame.event.Event(pygame.KEYDOWN, key=pygame.key.key_code(name.lower()), mod=mod)


def mouse(x, y, kind=pygame.MOUSEMOTION, button=1):
    return pygame.event.Event(kind, pos=(x, y), button=button)


def after(state, *events, page=None):
    for event in events:
        state = on_event(event, state, page or Layout([], []), RECORD)
    return state


@pytest.fixture
def window():
    pygame.display.init()
    window = open_window((800, 600))
    pygame.event.clear()
    yield window
    window.destroy()
    pygame.display.quit()


def test_every_key(window):
    s = State(settings=ASKED, playing=False, at=5.0)
    cases = {
        "Space": dict(playing=True), "Right": dict(at=6.0), "Left": dict(at=4.0),
        "Home": dict(at=0.0), "End": dict(at=24.0), ",": dict(speed=0.5), ".": dict(speed=2.0),
        "1": {}, "2": dict(view="order"), "3": dict(view="prediction"), "Up": dict(picked=4),
        "Down": dict(picked=1), "+": dict(settings=replace(ASKED, steps=48)),
        "=": dict(settings=replace(ASKED, steps=48)), "Return": dict(request="run"),
        "-": dict(settings=replace(ASKED, steps=12)), "Enter": dict(request="run"),
        "n": dict(request="run", settings=replace(ASKED, seed=2)), "t": dict(theme="light"),
        "h": dict(help=True), "?": dict(help=True), "Escape": {}, "q": dict(request="quit"),
        "p": dict(draft=ASKED.prompt), "z": {},
    }  # fmt: skip
    for name, change in cases.items():
        assert after(s, press(name)) == replace(s, **change), name
    assert set(KEYS) <= {name.upper() if len(name) == 1 else name for name in cases}
    assert after(s, press("n", mod=pygame.KMOD_SHIFT)) == s  # it counts when it comes as a text
    assert after(replace(s, help=True), press("Escape")) == s
    assert after(s, pygame.event.Event(pygame.QUIT)).request == "quit"


def test_typing_a_prompt(window):
    s = State(settings=replace(ASKED, prompt=""))
    s = after(s, *map(press, "ppéq "))
    assert s.draft == "péq " and s.request == ""
    assert after(s, press("Escape")).draft is None
    pygame.scrap.put_text("a b\n")
    paste = press("v", mod=pygame.KMOD_SHIFT), press("v", mod=pygame.KMOD_CTRL)
    s = after(s, press("Backspace"), *paste, press("_"))
    assert s.draft == "péqa b_"
    s = after(s, press("Return"))
    assert s.draft is None and s.settings.prompt == "péqa b_" and s.request == "run"


@pytest.mark.parametrize("size", [(1000, 700), (1500, 900)])
def test_the_mouse_reaches_everything(size):
    s = State(settings=ASKED, at=24.0)
    page = lay_out(RECORD, s, size, RULER)
    items = {item.command: item for item in page.items if item.command}
    line = items.pop("timeline")
    wanted = {"play", "step 1", "step -1", "theme", "help", "run", "new", "prompt", "speed 2"}
    wanted |= {"speed 0.5"} | {f"view {view}" for view in VIEWS} | {f"pick {i}" for i in range(5)}
    wanted |= {f"{verb} {name}" for verb in ("less", "more") for name in CHOICES}
    assert set(items) == wanted

    def click(item, button=1, s=s, page=page):
        middle = item.x + item.w / 2, item.y + item.h / 2
        return after(s, mouse(*middle, pygame.MOUSEBUTTONDOWN, button), page=page)

    for command, item in items.items():
        assert replace(click(item), mouse=None) == handle(s, command, RECORD), command
        assert replace(click(item, button=3), mouse=None) == s
    helped = replace(s, help=True)  # which covers everything
    closed = click(items["theme"], s=helped, page=lay_out(RECORD, helped, size, RULER))
    assert replace(closed, mouse=None) == s
    full, done = (t for t in page.items if t.kind == "box" and t.h < 5 and line.y < t.y)
    assert done.x == full.x == line.x and done.w == full.w == line.w  # all is done
    s = click(line)
    assert s.dragging and s.at == pytest.approx(12, abs=0.1) and not s.playing
    s = after(s, mouse(9999, 0), page=page)
    assert s.at == 24 and s.mouse == (9999, 0)
    s = after(s, mouse(9999, 0, pygame.MOUSEBUTTONUP), mouse(0, 0))
    assert s.at == 24  # it was let go
    assert after(s, pygame.event.Event(pygame.WINDOWLEAVE)).mouse is None


def test_pointing_at_a_token_shows_what_is_known_of_it():
    i = int(RECORD.since[-1].argmax())

    def card(at):
        state, size = State(at=at), (1000, 700)
        token = next(t for t in lay_out(RECORD, state, size, RULER).items if t.token == i)
        state = after(state, mouse(token.x + 1, token.y + 1))
        return [item.text for item in lay_out(RECORD, state, size, RULER).overlay if item.text]

    name, p = candidates(RECORD, i, 0)[0]
    assert len(card(0.0)) == 1 + CANDIDATES and card(0.0)[1] == f"{p:6.1%}  “{name}”"
    drawn = f"step {RECORD.since[-1, i]}, drawn with {RECORD.probability[i]:.1%}"
    assert card(24.0) == [f"“{TOKENIZER.show(RECORD.texts[-1, i])}”", drawn]


def test_settings_change_one_at_a_time_and_stay_in_range():
    for name in CHOICES:
        for verb, sign in (("less", -1), ("more", 1)):
            s = State(settings=ASKED)
            for _ in range(40):
                before, s = s.settings, handle(s, f"{verb} {name}", RECORD)
                value, old = getattr(s.settings, name), getattr(before, name)
                assert replace(s.settings, **{name: old}) == before
                assert name == "sampler" or sign * value >= sign * old
            waiting_record(MODEL, TOKENIZER, s.settings)  # raises for what cannot be run


def test_a_run_plays_to_its_end_and_starts_again():
    s = State()
    for _ in range(9 * 60):
        s = advance(s, RECORD, 1 / 60)
    assert s.at == RECORD.n_steps and not s.playing
    fast = advance(State(speed=2.0), RECORD, 1.0)
    assert fast.at == 2 * advance(State(), RECORD, 1.0).at > 0
    again = handle(s, "play", RECORD)
    assert again.playing and again.at == 0


# -- worker and window


def show_until(window, worker, state, condition):
    """Show the window and close it when the condition holds."""

    def watch():
        wait_for(condition)
        pygame.event.post(pygame.event.Event(pygame.QUIT))

    threading.Thread(target=watch).start()
    return show(window, worker, state)


def work(asked, model=MODEL, twin=None):
    """A worker that has just begun a run."""
    worker = Worker(model, TOKENIZER, "title", twin)
    worker.run(asked)
    return worker


@pytest.mark.parametrize("twin", [None, TWIN])
def test_the_window_samples_and_plays_and_draws_only_what_has_changed(window, twin, monkeypatch):
    drawn, worker = [], work(ASKED, twin=twin)
    assert worker.record.live  # something to see at once
    state = State(settings=ASKED, view="prediction", playing=False, at=24.0)
    state = show_until(window, worker, state, lambda: not (worker.record.live or worker.busy))
    assert worker.record.settings == ASKED and worker.record.title == "title"
    assert state.message == state.busy == "" and state.playing and state.at < 24
    monkeypatch.setattr("visual.window.lay_out", lambda *a: drawn.append(a) or lay_out(*a))
    end = time.monotonic() + 1
    show_until(window, worker, State(playing=False), lambda: time.monotonic() > end)
    assert 1 <= len(drawn) <= 4


class Slow(DiffusionTransformer):
    """Each network call takes a fifth of a second, and the twelfth fails."""

    calls = 0

    def features(self, z_t, t=None):
        time.sleep(0.2)
        self.calls += 1
        if self.calls == 12:
            raise TypeError("this device has no float64")
        return super().features(z_t, t)


def test_a_new_run_and_a_failure_interrupt_sampling_but_an_impossible_run_does_not(window):
    asked = Settings(steps=4000, length=40)
    worker = work(asked, Slow(MODEL.config).eval())
    impossible = State(settings=replace(asked, prompt="earth " * 99), request="run")
    state = show_until(window, worker, impossible, lambda: worker.record.n_steps > 2)
    assert "only 40 fit" in state.message and worker.record.settings == asked  # which goes on
    assert worker.record.live and state.busy.startswith("Sampling")
    worker.run(replace(asked, prompt="In the"))
    wait_for(lambda: worker.record.n_steps > 2)
    assert worker.record.settings.prompt == "In the" and worker.record.live
    wait_for(lambda: worker.message)
    assert worker.message == "this device has no float64" and worker.thread.is_alive()
    worker.model.calls = 100
    worker.run(asked)
    worker.close()
    worker.thread.join(timeout=20)  # 4000 steps would take longer
    assert not worker.thread.is_alive()


# -- drawing, files, terminal


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("size", [(640, 480), (1000, 700), (1600, 1000)])
def test_what_is_laid_out_is_drawn(size, view, theme):
    state = State(view=view, theme=theme, controls=False, at=12.0)
    image = np.asarray(next(pictures(RECORD, state, size, [0.5])), int)
    page = lay_out(RECORD, state, size, Fonts())
    check_layout(page, size)
    assert tuple(image[0, 0]) == THEMES[theme].page
    for item in page.items:
        part = image[round(item.y) : int(item.y + item.h), round(item.x) : int(item.x + item.w)]
        if item.token is not None and item.kind == "box":  # the rest may be letters
            assert (np.abs(part - item.color).max(axis=2) <= 2).mean() > 0.05, item
        if item.kind == "text" and item.text.strip():
            assert np.abs(part - part[0, 0]).max() > 20, item  # there are letters in it


def test_fonts_measure_what_they_draw():
    fonts = Fonts()
    assert fonts.width("ab", 20) == 2 * fonts.width("a", 20) < fonts.width("ab", 40)
    for text in ["e\u0301", "中文", "🙂", "\ufffd", "✓ и ש", "\ufe0f\u200b", "❤\ufe0f", "\udce9"]:
        for size in (20, 9, 40):
            width = fonts.image(visible(text), size, (9, 9, 9)).get_width()
            assert width == max(1, fonts.width(visible(text), size))
    assert all(len(fonts.parts(text)) == 1 for text in ("e\u0301", "👨\u200d👩", "❤\ufe0f"))


def test_files(tmp_path, monkeypatch):
    state, size = State(view="order"), (401, 301)
    for name, options in [("a.gif", {}), ("a.mp4", {}), ("a.png", {}), ("b.png", {"at": 0.5})]:
        save(tmp_path / name, RECORD, state, size, n_frames=5, **options)
    gif, sheet, half = (Image.open(tmp_path / name) for name in ("a.gif", "a.png", "b.png"))
    assert half.tobytes() == next(pictures(RECORD, state, size, [0.5])).tobytes()
    moments = list(pictures(RECORD, state, size, np.linspace(0, 1, 6)))
    other = list(pictures(RECORD, replace(state, speed=4.0, picked=2), size, np.linspace(0, 1, 6)))
    assert [a.tobytes() for a in moments] == [b.tobytes() for b in other]  # a file has no controls
    for i, moment in enumerate(moments):
        x, y = i % 2 * 401, i // 2 * 301
        assert sheet.crop((x, y, x + 401, y + 301)).tobytes() == moment.tobytes()
    assert gif.size == size and 2 <= gif.n_frames <= 5
    for frame, moment in ((0, moments[0]), (gif.n_frames - 1, moments[-1])):
        gif.seek(frame)
        assert np.abs(np.asarray(gif.convert("RGB"), int) - np.asarray(moment, int)).mean() < 3
    assert gif.info["duration"] >= 2000  # the end is held
    durations = [gif.seek(i) or gif.info["duration"] for i in range(gif.n_frames)]
    assert sum(durations) == pytest.approx(2000 + 4 * 1000 / 12, abs=50)  # milliseconds
    assert imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "a.mp4"))[0] >= 5
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "missing")
    with pytest.raises(UserError, match="ffmpeg could not"):
        save(tmp_path / "a.mp4", RECORD, state, size, n_frames=2)


def test_inline_in_a_notebook():
    masks = torch.full((2, 40), TOKENIZER.mask_id)
    masks[0, 3:] = 7
    made = mdlm.sampling.sample(MODEL, masks, 8, generator=torch.Generator().manual_seed(0))
    first, second = (show_inline(made, TOKENIZER, row=i, size=(300, 200)) for i in (0, 1))
    assert Image.open(io.BytesIO(first.data)).size == (300, 200) and first.data != second.data
    assert second.alt == TOKENIZER.decode(made.tokens[1].tolist())
    assert record_trajectory(made, TOKENIZER, row=1).calls[-1] == made.calls[1].sum()


def test_the_terminal(monkeypatch):
    out = io.StringIO()
    play_in_terminal(RECORD, State(), out)
    finished = text_frame(RECORD, 24, "text", DARK, 78, colors=False)
    assert "\x1b" not in out.getvalue() and out.getvalue().endswith("\n".join(finished) + "\n\n")
    assert out.getvalue().startswith("step  0/24  t 1.00  masked ")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "7")
    words = made_up([f" word{i}" for i in range(60)])
    for shown, end in ((RECORD, finished[-1].split()[-1]), (words, "word59")):
        out = io.StringIO()
        out.isatty = lambda: True
        play_in_terminal(shown, State(), out, seconds=0.2)
        plain = re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", out.getvalue())
        assert "\x1b[38;2;" in out.getvalue() and end in plain.rsplit("masked", 1)[1]
        assert max(map(len, re.split(r"[\r\n]+", plain))) < 40  # a longer line would take two
    monkeypatch.setenv("NO_COLOR", "1")
    start = out.tell()
    play_in_terminal(RECORD, State(), out, seconds=0.2)
    assert "\x1b[38" not in out.getvalue()[start:]


# -- the command line


def test_text_files_and_races_from_the_command_line(checkpoint, tmp_path, capsys):
    path, gif = str(tmp_path / "tiny-twin.safetensors"), str(tmp_path / "out.gif")
    save_checkpoint(path, TWIN, TOKENIZER, {})
    asked = ["--folder", str(tmp_path), "--steps", "6", "--prompt", "In the _ "]
    assert sample_visual.main([*asked, "--text"]) == 0
    out = capsys.readouterr()
    assert out.out.startswith(f"{checkpoint}: 0.0 million parameters\nstep 0/6") and out.err == ""
    masks = 40 - len(TOKENIZER.encode("In the"))  # the text is as long as the context
    assert f"masked {masks}  network calls 0" in out.out and out.out.count("masked") == 5
    assert sample_visual.main([*asked, "--race", "--save", gif, "--size", "300x200"]) == 0
    assert Image.open(gif).size == (300, 200)
    other = str(tmp_path / "other-twin.safetensors")
    save_checkpoint(other, TWIN, BPETokenizer.train(TEXT * 9 + "zebra crossing " * 9, 300), {})
    for model, twin in ([checkpoint, checkpoint], [path, path], [checkpoint, other]):
        assert sample_visual.main([model, "--race", twin, "--text"]) == 2
        assert "not the twin of this model" in capsys.readouterr().err
    assert sample_visual.main([path, "--text"]) == 0  # the twin alone


def test_the_plain_command_opens_a_window(checkpoint, monkeypatch):
    shown = []

    def watched(*arguments):
        shown.append(show_until(*arguments, lambda: not arguments[1].record.live))

    monkeypatch.setattr(sample_visual, "find_display", lambda: None)
    monkeypatch.setattr(sample_visual, "show", watched)
    assert sample_visual.main([checkpoint, "--steps", "6", "--view", "order"]) == 0
    assert shown[0].settings.steps == 6 and shown[0].view == "order" and shown[0].message == ""


MISTAKES = """
    CHECKPOINT --steps 0 --text           | the number of steps must be from 1 to
    CHECKPOINT --steps 100000 --text      | the number of steps must be from 1 to
    CHECKPOINT --temperature 0 --text     | temperature must be above 0, not 0.0$
    CHECKPOINT --temperature nan --text   | temperature must be above 0
    CHECKPOINT --top-p 1.5 --text         | top_p must be above 0
    CHECKPOINT --text --prompt ____________________________________x____ | shorten it
    CHECKPOINT --length 41 --text         | the length must be from 1 to 40, the model's context
    CHECKPOINT --length 0 --text          | the length must be
    CHECKPOINT --seed -1 --text           | the seed must be
    CHECKPOINT --save CHECKPOINT/out.png  | CHECKPOINT
    CHECKPOINT.edited --text              | made by another network
    --size big                            | --size must be
    --size 100x900                        | --size must be
    --save out.bmp                        | the name must end with
    --save out.png --at 2                 | --at must be
    --save out.gif --frames 0             | --frames must be
    --save .                              | the name must end with
    --folder missing --text               | no checkpoint in missing
    missing.safetensors --text            | no such checkpoint
"""


@pytest.mark.parametrize("line", MISTAKES.strip().splitlines())
def test_mistakes_get_one_line(checkpoint, capsys, line):
    arguments, message = line.replace("CHECKPOINT", checkpoint).split("|")
    assert sample_visual.main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message.strip(), error.strip())


@pytest.mark.parametrize("driver", ["", "dummy", "offscreen"])
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a display")
def test_without_a_display_one_line_names_the_other_ways(monkeypatch, capsys, driver):
    for name, value in (("SDL_VIDEODRIVER", driver), ("DISPLAY", driver), ("WAYLAND_DISPLAY", "")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="no display"):
        find_display()
    assert sample_visual.main([]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--save" in error and "--text" in error
