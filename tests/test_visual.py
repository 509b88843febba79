"""The window: runs as records, layout and state as pure functions, files, the command line."""

import io
import os
import re
import shutil
import sys
import threading
import time
from dataclasses import replace
from itertools import combinations, pairwise, product
from types import SimpleNamespace

os.environ["SDL_VIDEODRIVER"] = "dummy"

import numpy as np
import pygame
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import mdlm.sampling
import sample_visual
import visual.record
from bpe_tokenizer import BPETokenizer
from conftest import make_model, noise, tiny
from files import UserError
from mdlm.blocks import BlockDenoiser, sample_blocks
from mdlm.model import DiffusionTransformer
from mdlm.sudoku import TOKENIZER as BYTES
from mdlm.sudoku import is_valid
from saving import save_checkpoint
from visual import window as program
from visual.colors import THEMES, mix, probability_color, readable_on, viridis
from visual.controls import ACTIONS, CHOICES, END, KEYS, VIEWS, State, advance, handle, on_event
from visual.drawing import Canvas, Fonts, font_paths
from visual.field import Field
from visual.files import pictures, save, show_inline
from visual.items import Layout, glide, visible
from visual.page import lay_out
from visual.record import MASKED, SAMPLERS, Record, Settings, facts, pieces, rivals
from visual.sampler import RIVALS, begin, parse_prompt, write
from visual.sudoku import CONTRADICTION, perfect, puzzle, solutions
from visual.terminal import frame, play_in_terminal
from visual.typesetting import FADE, appearance, break_lines, in_text
from visual.worker import Worker

DARK = THEMES["dark"]
TEXT = "In the beginning God created the heaven and the earth. And the earth was without form.\n"
TOKENIZER = BPETokenizer.train(TEXT * 9, 300)
MODEL, TWIN = make_model(context=40), make_model(context=40, causal=True)
BLOCKS = BlockDenoiser(tiny(context=16, block=8)).eval()
BLOCKS.load_state_dict(MODEL.state_dict())
ASKED = Settings(steps=24, length=40, prompt="In the __ God")


def sampled(model=MODEL, settings=ASKED, show=lambda record: None):
    return write(begin(model, TOKENIZER, settings, "a title"), show)


RECORD = sampled()
LANES, LAST = [RECORD], len(RECORD.rows) - 1


class Guess:
    """What no network said."""


def made_up(tokens, n_steps=8, seed=0, step=None):
    """A record of tokens, texts or bytes, that no model wrote; with predictions."""
    noise, L = np.random.default_rng(seed), len(tokens)
    step = noise.integers(0, n_steps + 1, L) if step is None else np.array(step)
    spelled = [t if isinstance(t, bytes) else t.encode() for t in tokens]
    spelling = SimpleNamespace(token_bytes=spelled, show=lambda i: spelled[i].decode())
    record = Record(spelling, Settings(steps=n_steps, length=L), "made up", seconds=1.0, done=True)
    look, best, chances = Guess(), noise.integers(0, L, L), noise.random(L)
    look.best, look.rivals = (best, chances), lambda m: [(int(best[m]), chances[m])]
    for n in np.unique([0, *step]):
        text = np.where(step <= n, np.arange(L), MASKED)
        record.add(text, n / n_steps, 1 - n / n_steps, n, noise.random(L))
        record.rows[-1].look = look
    return record


def texts(record):
    return [row.text.tolist() for row in record.rows]


def ids_of(row):
    """The text as the network sees it, (1, L)."""
    return torch.from_numpy(np.where(row.text == MASKED, TOKENIZER.mask_id, row.text))[None]


class Ruler:
    """Fonts without pygame: every character is six tenths as wide as it is high."""

    def width(self, text, size):
        return 0.6 * size * sum(2 if ord(c) > 0x3000 else 1 for c in text)

    def height(self, size):
        return round(1.2 * size)


RULER = Ruler()


def laid(lanes, state, size=(1000, 700)):
    return lay_out(lanes, state, size, RULER)


def anchors(page):
    """The boxes around the words."""
    return [word[0] for word in page.words]


def middle(item):
    return item.x + item.w / 2, item.y + item.h / 2


def shown(page):
    return {item.text for item in page.items}


def card(state, lanes=LANES):
    return [item.text for item in laid(lanes, state).overlay if item.text]


# -- records


@given(st.lists(st.binary(max_size=6), min_size=1, max_size=12))
def test_pieces_spell_the_bytes_wherever_tokens_cut_characters(tokens):
    parts = pieces(made_up(tokens), -1)
    assert len(parts) == len(tokens) and all(parts)
    spelled = b"".join(tokens).decode("utf-8", "replace").replace("\ufffd", "")
    assert "".join(parts).replace("·", "") == spelled.replace("·", "")


@pytest.mark.parametrize("step", [[1, 1, 5, 2], [1, 5, 1, 2]])
def test_a_character_is_shown_when_all_its_tokens_are_there(step):
    run = made_up([b"a", "🙂".encode()[:1], "🙂".encode()[1:], b" b"], step=step)
    assert pieces(run, -1) == ("a", "·", "🙂", " b")
    assert set(pieces(run, run.at(3 / 8))[1:3]) == {"·", None}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_sampler_asked_for_runs_with_the_settings_asked_for(name):
    asked = Settings(steps=30, length=40, sampler=name, seed=5, temperature=0.7, top_p=0.9)
    run, masks = sampled(settings=asked), torch.full((1, 40), TOKENIZER.mask_id)
    sampler = getattr(mdlm.sampling, SAMPLERS[name])
    made = sampler(MODEL, masks, 30, generator=noise(5), temperature=0.7, top_p=0.9)
    exact = visual.record.add_trajectory(Record(TOKENIZER, asked), made)
    assert texts(run) == texts(exact) and run.rows[-1].calls == made.calls.sum()
    for mine, other in zip(run.rows, exact.rows, strict=True):
        drawn = mine.text == made.tokens[0].numpy()  # a trajectory keeps the last draws only
        np.testing.assert_array_equal(mine.probability[drawn], other.probability[drawn])
        assert name == "plain" or mine.calls == other.calls
        # in continuous time the steps have no moments of their own
        assert name == "first-hitting" or mine.time == pytest.approx(other.time)
        assert mine.t == pytest.approx(1 - mine.time)


def test_predictions_are_those_of_the_samplers_own_network_calls(in_float32):
    calls = []
    hook = MODEL.norm.register_forward_hook(lambda *_: calls.append(1))
    run = sampled(settings=Settings(steps=24, length=40))
    hook.remove()
    assert len(calls) == run.rows[-1].calls == sum(row.look is not None for row in run.rows)
    for n, (row, later) in enumerate(pairwise(run.rows)):
        i = int(np.flatnonzero(later.since == n + 1)[0])  # what is drawn now
        p = MODEL(ids_of(row))[0].exp().detach()  # (L, V)
        found, best = rivals(run, n, i), p[i].topk(RIVALS)
        assert rivals(run, n + 1, i) == found
        assert [name for _, name, _ in found] == [TOKENIZER.show(k) for k in best.indices.tolist()]
        np.testing.assert_allclose([chance for *_, chance in found], best.values, rtol=1e-3)
        assert later.probability[i] == pytest.approx(p[i, later.text[i]].item(), rel=1e-3)
        bits = torch.special.entr(p[row.text == MASKED]).sum(dim=1) / np.log(2)
        np.testing.assert_allclose(row.look.best[2], bits, rtol=1e-3)
    assert rivals(RECORD, LAST, 0) == []  # what is given had none


def test_in_a_prompt_each_underscore_is_a_mask():
    assert parse_prompt("In the _") == ["In the ", 1]
    assert parse_prompt(r"a\_b __ c _") == ["a_b ", 2, " c ", 1]
    assert parse_prompt("") == []


def test_what_is_given_stays_and_each_network_call_is_shown():
    seen, began = [], time.perf_counter()

    def watch(record):
        seen.append((len(record.rows), record.edge))
        time.sleep(0.02)

    run = sampled(show=watch)
    taken = time.perf_counter() - began
    assert run.seconds < taken - 0.02 * len(seen)  # to show it is not the sampler's time
    assert seen == [(n, row.time) for n, row in enumerate(run.rows[:-1], 1)]
    start, end = run.rows[0].text, run.rows[-1]
    prompt = TOKENIZER.encode("In the") + [MASKED] * 2 + TOKENIZER.encode(" God")
    assert start.tolist() == prompt + [MASKED] * (40 - len(prompt))
    assert all((row.text == start)[start >= 0].all() for row in run.rows)
    assert run.masked(-1) == 0 and ((end.since == 0) == (start >= 0)).all()


@pytest.mark.parametrize("name", ["ancestral", "confident"])
def test_blocks_come_from_left_to_right(name):
    asked, seen = Settings(steps=16, length=28, prompt="In the", seed=3, sampler=name), []
    run = sampled(BLOCKS, asked, show=lambda record: seen.append(record.rows[-1].text))
    sampler = getattr(mdlm.sampling, SAMPLERS[name])
    made = sample_blocks(BLOCKS, ids_of(run.rows[0]), 5, noise(3), sampler=sampler)
    assert (run.rows[-1].text == made.tokens[0].numpy()).all()
    assert run.rows[-1].calls == made.calls.sum() == len(seen)
    np.testing.assert_array_equal(run.rows[-1].probability, made.probability[0])
    times = [row.time for row in run.rows]
    assert times == sorted(set(times))
    for n, row in enumerate(run.rows[:-1]):
        masks = np.flatnonzero(row.text == MASKED)
        block = masks[0] // 8  # those before it are finished, those behind it untouched
        assert set(range(8 * block + 8, 28)) <= set(masks)
        assert dict(facts(run, n))["block"] == f"{block + 1}/4"
        predicted = appearance(run, n, row.time, "prediction", DARK)
        for i in masks:  # later blocks are not predicted
            assert bool(rivals(run, n, i)) == bool(predicted[i][0]) == (i // 8 == block)


def test_a_text_in_blocks_ends_by_itself(monkeypatch):
    long = sampled(BLOCKS, Settings(steps=256, length=64)).rows[-1].text.tolist()
    end = next(k for k in range(20, 60) if long[k] not in long[:k])
    monkeypatch.setattr(TOKENIZER, "encode", lambda text: [long[end]] if text == "\n\n" else [])
    run = sampled(BLOCKS, Settings(steps=256, length=0))
    assert run.rows[-1].text.tolist() == long[: end + 1] and run.rows[-1].time == 1
    assert run.masked(0) == run.length == end + 1 and run.masked(-1) == 0
    monkeypatch.setattr(TOKENIZER, "encode", lambda text: [TOKENIZER.mask_id])  # it never comes
    assert sampled(BLOCKS, Settings(steps=256, length=0)).rows[-1].text.tolist() == long


def test_side_by_side_runs_share_the_clock_of_their_seconds():
    first, second = made_up("abcdefgh", step=[2, 3, 3, 5, 5, 6, 6, 6]), made_up("abcdefgh")
    first.seconds, second.seconds = 2.0, 0.5
    slow, fast = visual.record.on_one_clock([first, second])
    assert [row.time for row in slow.rows] == pytest.approx([0, 2 / 6, 3 / 6, 5 / 6, 1])
    assert fast.rows[-1].time == pytest.approx(0.25) and first.rows[1].time == 2 / 8
    ends = [dict(facts(lane, len(lane.rows) - 1, alone=False)) for lane in (slow, fast)]
    assert [end["seconds"] for end in ends] == ["2.00", "0.50"]


# -- layout

ODD_PIECES = st.one_of(
    st.sampled_from([" the", "ed", ",", "\n", "\n\n", " ", "   ", "·", "\ufffd", "\t", "\x00"]),
    st.sampled_from(["🙂", "👨\u200d👩\u200d👧", "e\u0301", "\u0301", "中文", " ק", "x" * 300]),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
)
TOKENS = st.lists(ODD_PIECES, min_size=1, max_size=40)
STATES = [  # what may be on the page besides the text
    *({}, dict(controls=False), dict(help=True), dict(touring=True)),
    *(dict(message="m" * 300), dict(busy="b" * 300)),
    dict(settings=Settings(prompt="long " * 100, seed=2**62, sampler="first-hitting")),
    dict(prompt=Field("a " * 999 + "end", 2001, 5)),
]


def check_layout(page, size):
    """Nothing is outside of the window, and nothing overlaps what it should not."""
    for item in page.items:
        assert item.x >= -0.01 and item.x + item.w <= size[0] + 0.01, item
        assert item.y >= -0.01 and item.y + item.h <= size[1] + 0.01, item
        assert "\n" not in item.text
    labels = [item for items in (*page.rows, *page.words) for item in items if item.kind == "text"]
    for a, b in (*combinations(anchors(page), 2), *combinations(labels, 2)):
        wide = min(a.x + a.w, b.x + b.w) - max(a.x, b.x)
        tall = min(a.y + a.h, b.y + b.h) - max(a.y, b.y)
        assert wide <= 0.01 or tall <= 0.01, (a, b)


@settings(max_examples=150)
@given(TOKENS, st.tuples(st.integers(200, 3840), st.integers(200, 2160)), st.data())
def test_nothing_overlaps_and_nothing_is_outside(tokens, size, data):
    lanes = [made_up(tokens)]
    if data.draw(st.booleans()):
        lanes = visual.record.on_one_clock([*lanes, made_up(tokens, n_steps=5, seed=1)])
    state = State(view=data.draw(st.sampled_from(list(VIEWS))), mouse=(size[0] / 3, size[1] / 3))
    state = replace(state, at=data.draw(st.floats(0, END)), **data.draw(st.sampled_from(STATES)))
    state = replace(state, selected=data.draw(st.sets(st.integers(0, len(tokens) - 1))))
    page = laid(lanes, state, size)
    check_layout(page, size)
    again = laid(lanes, replace(state, view="text", theme="light"), size)
    assert [a[1:5] for a in anchors(page)] == [a[1:5] for a in anchors(again)]  # in all views
    commands = {item.command.partition(" ")[0] for row in page.rows for item in row}
    assert state.controls or commands <= {"", "view", "timeline"}
    assert not state.prompt or any(text.endswith("end") for text in shown(page))
    if min(size) > 600:  # all the text is there
        wanted = [piece for lane in lanes for piece in pieces(lane, lane.at(state.at))]
        for token, piece in enumerate(wanted):
            words = [word for word in again.words if word[0].token == token]
            found = "".join(item.text for word in words for item in word)
            bare, found = (re.sub("[◌\u200d]", "", each) for each in (visible(piece or ""), found))
            assert words and ("…" in found or found in (bare, bare[1:]))
    if state.help:  # it does not hide what it explains
        hidden = max((item.y + item.h for item in page.overlay), default=0)
        assert all(item.y >= hidden for item in page.items if item.command == "play")


def places(record, at, size=(1000, 700)):
    return {a.token: a[1:5] for a in anchors(laid([record], State(at=at), size))}


def test_a_text_looks_the_same_while_it_is_sampled_and_afterwards():
    live = []
    run = sampled(show=lambda record: live.append(places(record, record.edge)))
    again = replace(run, layouts={})
    assert [places(again, row.time) for row in again.rows[:-1]] == live


def test_what_a_mask_becomes_moves_little():
    step = [1] * 30 + [8] * 3
    run = made_up(["a"] * 30 + ["x" * 50] * 3, step=step)
    assert places(run, 0.5) == places(made_up(["a"] * 33, step=step), 0.5)  # no mask tells
    sizes = np.random.default_rng(1).choice([1, 2, 3, 3, 3, 4, 4, 5, 6, 9], 100)
    run = made_up([" " + "x" * n for n in sizes], n_steps=90)
    lines = [[y for _, y, *_ in places(run, row.time, (700, 700)).values()] for row in run.rows]
    assert np.mean([np.equal(a, b).mean() for a, b in pairwise(lines)]) > 0.98  # few change lines


@pytest.mark.parametrize("seed", range(20))
def test_words_slide_to_their_places_and_never_cover_each_other(seed):
    sizes, size, page, moving = np.random.default_rng(seed).integers(1, 10, 40), (600, 500), None, 0
    run = made_up([" " + "x" * n for n in sizes], n_steps=12, seed=seed)
    for at in np.linspace(0, END, 20):
        wanted = laid([run], State(at=at, controls=False), size)
        page, moves = glide(page, wanted, 1 / 30)
        moving += moves
        check_layout(page, size)
        lines = {box.token: box.y for box in anchors(wanted)}
        assert all(box.y == lines[box.token] for box in anchors(page))
    while moves:
        page, moves = glide(page, wanted, 1 / 30)
    assert page is wanted and moving > 9


def test_hebrew_and_arabic_read_from_right_to_left():
    spots, _ = break_lines([" אב", " גד", " ab", " cd", " 12", None], 500, RULER, 10, rtl=True)
    x = [spot.x for spot in spots]
    assert x[0] > x[1] > x[3] > x[2] and x[0] + spots[0].w == 500  # the English in its own order
    assert x[5] < x[4]  # a mask is read after what comes before it
    spots, _ = break_lines(["ab", " אב", " גד", " cd"], 500, RULER, 10)
    assert [spot.token for spot in sorted(spots, key=lambda spot: spot.x)] == [0, 2, 1, 3]
    for tokens, leftwards in (([" שלום", "עולם", " a"], True), ([" ab", " cd", " שלום"], False)):
        assert visual.record.leftwards(made_up(tokens).tokenizer) == leftwards
    spots, _ = break_lines([" سل", "ام", " و"], 500, RULER, 10, rtl=True)
    assert [spot.text for spot in spots] == ["سل\u200d", "\u200dام", "و"]  # joined across tokens


def test_lines_break_between_words_and_at_line_breaks():
    spots, _ = break_lines(["a", "\n", " b", "c", " d"], 50, RULER, 10)
    assert [(s.line, s.text) for s in spots] == [(0, "a"), (0, "↵"), (1, "b"), (1, "c"), (1, "d")]
    spots, _ = break_lines([" aaaa", " bb", "bb"], 40, RULER, 10)
    assert [s.line for s in spots] == [0, 1, 1]  # a word of two tokens is not torn apart
    assert [s.x for s in spots] == [0, 0, 12]  # no space begins a line


# -- colours


def luminance(color):
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(*colors):  # of two, from 1 to 21; text wants 4.5 (WCAG 2)
    low, high = sorted(map(luminance, colors))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_colours_can_be_read(theme):
    assert contrast(theme.page, theme.wrong) >= 4.5
    for ink, paper in product((theme.ink, theme.faint, theme.accent), (theme.page, theme.card)):
        assert contrast(ink, paper) >= 4.5
    scale = np.linspace(0, 1, 50)
    assert min(contrast(probability_color(k, theme), theme.page) for k in scale) >= 4.5
    assert min(contrast(readable_on(viridis(k)), viridis(k)) for k in scale) >= 4.3
    colors = [probability_color(p, theme) for p in (0, 0.05, 0.2, 1)]  # most draws are below 0.2
    assert min(sum(map(abs, np.subtract(a, b))) for a, b in pairwise(colors)) > 30
    light = [luminance(viridis(k)) for k in scale]
    assert light == sorted(light)  # it also works for whoever sees no colour


def test_colours_show_probability_moment_and_prediction():
    rows, masks = RECORD.rows, np.flatnonzero(RECORD.rows[0].text == MASKED)
    predicted = appearance(RECORD, 0, 0, "prediction", DARK)
    best = [in_text(TOKENIZER.show(int(token))) for token in rows[0].look.best[0]]
    assert [predicted[i][0] for i in masks] == best
    assert appearance(RECORD, 0, 0, "text", DARK)[masks[0]][::2] == (None, DARK.mask)
    end = {view: appearance(RECORD, LAST, END, view, DARK) for view in VIEWS}
    for i, since in enumerate(rows[-1].since.tolist()):
        color = probability_color(rows[-1].probability[i], DARK) if since else DARK.ink
        assert end["text"][i] == (None, color, None)  # nothing glows at the end
        assert end["order"][i][2] == (viridis(rows[since].time) if since else None)
        for age, share in ((0, 1), (FADE / 2, 1 / 4)) if since else ():
            glow = appearance(RECORD, since, rows[since].time + age, "text", DARK)[i][2]
            assert glow == mix(DARK.page, DARK.accent, 0.55 * share)
    taken = made_up([" one", " two"], step=[1, 2])
    taken.add(np.array([MASKED, 1]), 0.5, 0.5)  # a mask again: that is seen, too
    glows = [appearance(taken, 3, at, "text", DARK)[0][2] for at in (0.5, 0.52, 0.6)]
    assert glows[2] == DARK.mask and glows[0] != glows[1] != glows[2]


# -- keys and the mouse


def press(keys):
    """A key, perhaps with others: "Ctrl+A". One that types a character comes as a text."""
    *held, key = keys.split("+") if len(keys) > 1 else [keys]
    mod = sum(getattr(pygame, f"KMOD_{name.upper()}") for name in held)
    if len(key) == 1 and not held:
        return pygame.event.Event(pygame.TEXTINPUT, text=key)
    return pygame.event.Event(pygame.KEYDOWN, key=pygame.key.key_code(key.lower()), mod=mod)


def mouse(place, kind=pygame.MOUSEBUTTONDOWN, button=1):
    return pygame.event.Event(kind, pos=place, button=button)


def after(state, *events, page=None, lanes=LANES):
    for event in events:
        state = on_event(event, state, page or Layout([], [], ()), lanes)
    return state


def over(token, state, lanes=LANES):
    """The state with the mouse over a word."""
    return replace(state, mouse=middle(laid(lanes, state).words[token][0]))


@pytest.fixture
def window():
    pygame.display.init()
    window = program.open_window((800, 600))
    pygame.event.clear()
    yield window
    window.destroy()
    pygame.display.quit()


def test_every_key(window):
    rows, n, twice = RECORD.rows, 5, replace(ASKED, steps=48)
    s = State(settings=ASKED, playing=False, at=rows[n].time)
    cases = {
        "Space": dict(playing=True), "Home": dict(at=0.0), "End": dict(at=END),
        "Right": dict(at=rows[n + 1].time), "Left": dict(at=rows[n - 1].time),
        "1": {}, "2": dict(view="order"), "3": dict(view="prediction"),
        "Up": dict(picked=5), "Down": dict(picked=1), "+": dict(settings=twice),
        "=": dict(settings=twice), "-": dict(settings=replace(ASKED, steps=12)),
        "Return": dict(request="run"), "Enter": dict(request="run"), "Ctrl+N": dict(request="new"),
        "Ctrl+T": dict(theme="light"), "F1": dict(help=True), "?": dict(help=True), "Escape": {},
        "Ctrl+Q": dict(request="quit"), "Tab": dict(prompt=Field(ASKED.prompt, 13, 13)),
        "Ctrl+A": dict(head=0), "Ctrl+B": dict(request="branch"), "Ctrl+Z": dict(request="undo"),
        "Ctrl+C": dict(request="copy"), "Ctrl+D": dict(request="compare"),
        "Ctrl+R": dict(request="corrupt"), "Ctrl+S": dict(request="picture"),
        "Ctrl+G": dict(request="animation"), "F11": dict(request="fullscreen"),
        "Delete": dict(request="erase"), "Backspace": dict(request="erase"),
    }  # fmt: skip
    assert set(KEYS) <= set(cases)
    for name, change in cases.items():
        assert replace(after(s, press(name)), message="") == replace(s, **change), name
    assert after(s, press("+")).message == "next run: steps 48"  # where there is no room for it
    assert after(s, press("Shift+2")) == s  # it counts when it comes as a text
    assert after(replace(s, help=True), press("Escape")) == s
    assert after(s, pygame.event.Event(pygame.QUIT)).request == "quit"
    end = after(s, *[press("Right")] * 99)
    assert end.at == END and after(end, press("Left")).at == rows[-2].time


def test_typing_a_prompt(window):
    s = State(settings=ASKED, help=True)
    s = after(s, *map(press, "péq "))  # whoever types begins another prompt, and commands nothing
    assert s == State(settings=ASKED, prompt=Field("péq ", 4, 4))
    assert after(s, press("Escape")) == after(s, press("Tab")) == State(settings=ASKED)
    assert after(State(), press("_")).prompt.text == "_" and after(State(), press(" ")) == State()
    pygame.scrap.put_text("a\nb\n")
    s = after(s, press("Ctrl+V"))
    assert s.prompt.text == "péq a b"
    composing = pygame.event.Event(pygame.TEXTEDITING, text="に", start=0, length=1)
    assert after(State(), composing).prompt == Field(composing="に")
    s = after(s, composing)  # an input method has not finished it yet
    assert s.prompt.composing == "に" and after(s, press("Return")) == s
    s = after(s, press("日"), press("Return"))
    assert s.prompt is None and s.settings.prompt == "péq a b日" and s.request == "run"


EDITS = """
    Left Left Delete Backspace         one ^o
    Left Shift+Left Shift+Left Delete  one ^o
    Shift+Home Left                    ^one two
    Shift+Home x                       x^
    Home Ctrl+Right x                  onex^ two
    Ctrl+Left x                        one x^two
    Ctrl+Backspace                     one ^
    Shift+Home Ctrl+C End Ctrl+V       one twoone two^
    Ctrl+A Ctrl+X Backspace Delete     ^
    Ctrl+A Ctrl+X Ctrl+V Left          one tw^o
"""


@pytest.mark.parametrize("line", EDITS.strip().splitlines())
def test_a_prompt_is_edited_like_other_texts(window, line):
    keys, expected = line.strip().split("  ", 1)
    field = after(State(prompt=Field("one two", 7, 7)), *map(press, keys.split())).prompt
    assert f"{field.text[: field.caret]}^{field.text[field.caret :]}" == expected.lstrip()


@pytest.mark.parametrize("size", [(1000, 700), (1500, 900)])
def test_the_mouse_reaches_everything(size):
    s = State(settings=ASKED, at=END)
    page = laid(LANES, s, size)
    items = {item.command: item for item in page.items if item.command}
    wanted = {*ACTIONS, "play", "step 1", "step -1", "timeline", "theme", "help", "prompt"}
    wanted |= {*(f"view {view}" for view in VIEWS), *(f"example {k}" for k in range(3))}
    wanted |= {f"{verb} {name}" for verb, name in product(("less", "more"), CHOICES)}
    assert set(items) == wanted
    for command in wanted - {"timeline"}:
        clicked = after(s, mouse(middle(items[command])), page=page)
        assert replace(clicked, mouse=None) == handle(s, command, LANES), command
        scrolled = after(s, mouse(middle(items[command]), button=4), page=page)
        assert replace(scrolled, mouse=None) == s


@pytest.mark.parametrize("verb", ["less", "more"])
@pytest.mark.parametrize("name", CHOICES)
def test_a_setting_changes_alone_and_stays_in_range_and_in_place(name, verb):
    s, places = State(settings=ASKED), set()
    for _ in range(40):
        before, s = s.settings, handle(s, f"{verb} {name}", LANES)
        assert replace(s.settings, **{name: getattr(before, name)}) == before
        places |= {item[1:3] for item in laid(LANES, s).items if item.command == "more seed"}
    begin(MODEL, TOKENIZER, s.settings)  # raises for what cannot be run
    assert len(places) == 1  # nothing moves under the pointer


def test_the_timeline_shows_and_sets_the_moment():
    page = laid(LANES, State(at=0.5))
    (line,) = (item for item in page.items if item.command == "timeline")
    bars = [item for item in page.items if item.kind == "box" and item.h < 5 and line.y < item.y]
    assert [(bar.x, bar.w) for bar in bars] == [(line.x, line.w * k) for k in (1, 1, 0.5)]
    s = after(State(at=END), mouse(middle(line)), page=page)
    assert s.dragging and s.at == pytest.approx(0.5, abs=0.01) and not s.playing
    s = after(s, mouse((9999, 0), pygame.MOUSEMOTION), page=page)
    assert s.at == END and s.mouse == (9999, 0)
    s = after(s, mouse((9999, 0), pygame.MOUSEBUTTONUP), mouse((0, 0), pygame.MOUSEMOTION))
    assert s.at == END  # it was let go
    assert after(s, pygame.event.Event(pygame.WINDOWLEAVE)).mouse is None


def test_pointing_at_a_word_shows_what_is_known_of_it():
    row = RECORD.rows[-1]
    i = int(row.since.argmax())  # drawn last
    mask, word = (card(over(i, State(at=at))) for at in (0.0, END))
    _, name, p = rivals(RECORD, 0, i)[0]
    assert len(mask) == 2 + RIVALS and mask[1] == f"{p:6.1%}  “{name}”"
    drawn = f"drawn at t 0.00 with {row.probability[i]:.1%}"
    assert word[:2] == [f"“{TOKENIZER.show(row.text[i])}”", drawn]
    assert mask[-1] == word[-1] == "click: change it"


def test_pointing_at_labels_explains_them():
    for item in laid(LANES, State()).items:
        state = State(mouse=(item.x + 1, item.y + 1))
        if item.text in ("t ", "network calls ", "steps ", " ancestral    ", " order "):
            assert card(state), item.text
        if item.command == "timeline":  # what follows the mouse can be seen below it
            tip = laid(LANES, state).overlay
            assert tip and all(part.y + part.h <= item.y for part in tip)
            assert not card(replace(state, dragging=item))  # nor is the text hidden


def test_a_run_plays_to_its_end_and_starts_again():
    s = State(touring=True)
    for _ in range(9 * 60):
        s = advance(s, LANES, 1 / 60)
    assert s.at == END and not s.playing and not s.touring
    again = handle(s, "play", LANES)
    assert again.playing and again.at == 0
    half = replace(RECORD, rows=RECORD.rows[:9], done=False)  # while it is sampled
    waits = advance(State(), [half], 99)
    assert waits.at == half.edge and waits.playing
    assert handle(State(), "seek 2", [half]).at == half.edge
    paused = handle(State(), "play", [half])
    assert advance(paused, [half], 1.0) == paused


# -- the window, and what works behind it


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)


def show_until(window, worker, state, condition):
    """Show the window and close it when the condition holds."""

    def watch():
        wait_for(condition)
        pygame.event.post(pygame.event.Event(pygame.QUIT))

    threading.Thread(target=watch).start()
    return program.show(window, worker, state)


def work(model=MODEL, asked=ASKED, rivals=()):
    """A worker that has its model and has not begun."""
    return Worker(lambda settings: (model, TOKENIZER, "title", rivals, settings), asked)


@pytest.mark.parametrize("rivals", [[], [TWIN]])
def test_the_window_samples_and_plays_and_draws_only_what_has_changed(window, rivals, monkeypatch):
    drawn, worker = [], work(rivals=rivals)
    assert worker.lanes[0].masked(0) == 40  # something to see at once
    state = State(view="prediction", playing=False, at=END)
    state = show_until(window, worker, state, lambda: worker.lanes[-1].done and not worker.busy)
    assert state.settings == ASKED and state.message == "" and state.playing and state.at < END
    assert [lane.causal for lane in worker.lanes] == [False, True][: 1 + len(rivals)]
    assert texts(worker.lanes[0]) == texts(RECORD)
    monkeypatch.setattr(program, "lay_out", lambda *a: drawn.append(a) or lay_out(*a))
    end = time.monotonic() + 1
    show_until(window, worker, State(playing=False), lambda: time.monotonic() > end)
    assert 1 <= len(drawn) <= 4


def test_a_new_run_and_a_failure_interrupt_sampling_but_an_impossible_run_does_not(window):
    asked, slow = Settings(steps=4000, length=40), make_model(context=40)
    slow.norm.register_forward_pre_hook(lambda *_: time.sleep(0.2))
    worker = work(slow, asked)
    started = lambda: len(worker.lanes[0].rows) > 2 and worker.lanes[0].settings  # noqa: E731
    state = show_until(window, worker, State(settings=asked, request="run"), started)
    assert state.message == ""  # the request has waited for the model
    (run,) = worker.lanes
    n = len(run.rows)
    with pytest.raises(UserError, match="only 40 fit"):
        worker.run(replace(asked, prompt="earth " * 99))
    wait_for(lambda: len(run.rows) > n + 2)
    assert worker.lanes == (run,) and len(run.rows) > n + 2  # it goes on
    worker.run(replace(asked, prompt="In the"))
    wait_for(started)
    assert worker.lanes[0].settings.prompt == "In the" and not worker.lanes[0].done
    worker.orders.put(lambda: [][0])  # something fails
    wait_for(lambda: worker.message)
    assert worker.message == "list index out of range"
    worker.run(asked)
    worker.close()
    worker.thread.join(timeout=20)  # 4000 steps would take longer
    assert not worker.thread.is_alive()


def test_what_cannot_be_loaded_closes_the_window(window):
    def fail(settings):
        raise UserError("no checkpoint")

    with pytest.raises(UserError, match="no checkpoint"):
        program.show(window, Worker(fail, ASKED), State())


# -- writing with it


class Session:
    """What the window does with requests, without its loop, and without a thread."""

    def __init__(self, model=MODEL, window=None):
        self.worker, self.window = work(model), window
        self.worker.open()
        self.worker.real_text = (TEXT + "And " + TEXT) * 9
        (self.first,) = self.do(State(settings=ASKED, request="run"))

    def do(self, state):
        """The lanes, once the worker has done what the state requests."""
        self.state = program.obey(state, self.worker, self.window, self.worker.lanes)
        while not self.worker.orders.empty():
            self.worker.orders.get()()
            self.worker.busy = ""
        return self.worker.lanes

    def ask(self, command, **changes):
        state = replace(self.state, message="", **changes)
        return self.do(handle(state, command, self.worker.lanes))


def test_a_run_goes_on_from_any_moment_with_another_word():
    session, n = Session(), 6
    before = session.first.rows[n]
    i = int(np.flatnonzero(before.since)[0])
    token, _, p = rivals(session.first, n, i)[-1]
    (other,) = session.ask(f"put {token}", at=before.time, selected=frozenset([i]))
    new, kept = other.rows[n + 1], np.flatnonzero((before.text != MASKED) & (np.arange(40) != i))
    assert (new.text[i], new.probability[i], new.time) == (token, p, before.time)
    assert texts(other)[: n + 1] == texts(RECORD)[: n + 1] and other.start == before.time
    assert all((row.text[kept] == before.text[kept]).all() for row in other.rows[n:])
    times = [row.time for row in other.rows]
    assert times == sorted(times) and other.masked(-1) == 0 and times[-1] <= 1


@pytest.mark.parametrize("model", [MODEL, BLOCKS], ids=["diffusion", "blocks"])
def test_words_are_erased_and_written_again(model):
    session = Session(model)
    first, n = session.first, len(session.first.rows)
    (again,) = session.ask("erase", at=END, selected=frozenset([2, 3]))
    kept = again.rows[-1].since < n
    assert np.flatnonzero(~kept).tolist() == [2, 3]
    for name in ("text", "since", "probability"):  # what is there is no more given than it was
        now, before = (getattr(record.rows[-1], name) for record in (again, first))
        assert (now[kept] == before[kept]).all()
    masked, times = again.rows[n], [row.time for row in again.rows]
    assert masked.t == 2 / 40 and again.start == masked.time < times[-1] <= 1
    assert times == sorted(times) and texts(again)[:n] == texts(first)  # its past can be seen again
    assert again.settings.seed == 2 and session.state.message == "with seed 2"
    (undone,) = session.ask("undo")
    assert undone.rows is first.rows and undone.start > 1  # it is shown as finished
    (branch,) = session.ask("branch", at=0.4, selected=frozenset())
    n = first.at(0.4)
    assert texts(branch)[:n] == texts(first)[:n] and texts(branch)[-1] != texts(first)[-1]


def test_a_gpt_writes_from_left_to_right_and_nobody_can_change_its_words():
    session = Session(TWIN)
    run, start = session.first, session.first.rows[0].text
    steps = [0 if token >= 0 else i for i, token in enumerate(start, 1)]
    assert [run.rows[n].calls for n in run.rows[-1].since] == steps  # a call for each token
    told = card(over(9, State(at=END), [run]), [run])
    assert "drawn" in told[1] and "click" not in " ".join(told)
    session.ask("erase", at=END, selected=frozenset([9]))
    assert session.state.message.startswith("a GPT cannot fill gaps")


REFUSALS = "branch: nothing is masked, erase: choose words, undo: nothing, example 1: no lines"


@pytest.mark.parametrize("line", REFUSALS.split(", "))
def test_what_cannot_be_done_is_said_and_changes_nothing(line):
    command, answer = line.split(": ")
    session = Session()
    session.worker.real_text = "short"
    session.ask(command, at=END)
    assert answer in session.state.message and session.state.settings == ASKED


def test_a_run_is_compared_with_the_next_ones():
    session = Session()
    kept, other = session.ask("compare")
    assert kept.settings == ASKED and other.settings == replace(ASKED, seed=2)
    kept, other = session.ask("run", settings=replace(ASKED, steps=4))
    assert texts(kept) == texts(RECORD)
    assert {"steps 24", "steps 4"} <= shown(laid((kept, other), session.state))
    assert len(session.ask("compare")) == 1


def test_a_real_text_is_masked_as_t_rises_and_written_again():
    session, n = Session(), 64
    (run,) = session.ask("corrupt")
    ids, masks = run.original, [run.masked(k) for k in range(n)]
    assert (run.rows[0].text == ids).all() and masks == sorted(masks) and 20 < masks[-1] < 40
    assert run.masked(-1) == 0 and run.rows[n].t < run.rows[n - 1].t > run.rows[0].t == 0
    stays = run.rows[n - 1].text != MASKED
    assert (run.rows[-1].text[stays] == ids[stays]).all()
    assert any("a text of the validation set" in text for text in shown(laid([run], State())))
    i = int(np.flatnonzero(~stays)[0])
    run.rows[-1].text[i] = ids[i] - 1
    original = f"the original: “{visible(TOKENIZER.show(ids[i]))}”"
    cards = [card(State(at=at, selected=frozenset([i])), [run]) for at in (0.0, END)]
    assert [original in lines for lines in cards] == [False, True]
    assert texts(session.ask("corrupt")[0]) != texts(run)  # another one


def test_examples_are_real_lines_with_masks():
    session = Session()
    session.worker.real_text = "".join(TEXT.replace("God", f"God_{i}") for i in range(9))
    (run,) = session.ask("example 0")
    (beginning,) = parse_prompt(run.settings.prompt)
    assert beginning.startswith("In the beginning God_") and session.state.settings == run.settings
    prompts = [session.worker.example(k, ASKED).prompt for k in (1, 2, 1, 2, 1, 2)]
    for prompt in prompts:
        before, n_masks, after = parse_prompt(prompt)
        assert before.startswith("In the") and n_masks > 1 and after.endswith("form.")
    assert len(set(prompts)) > 2


def test_tokens_are_chosen_by_click_and_drag(window):
    s = State(at=END)
    page, places = laid(LANES, s), [over(i, s).mouse for i in (3, 6, 1)]
    first = after(s, mouse(places[0]), page=page)
    assert first.selected == {3} and not first.playing and card(first)  # the card stays
    more = after(first, mouse(places[1], pygame.MOUSEMOTION), page=page)
    assert more.selected == {3, 4, 5, 6}
    less = mouse(places[2], pygame.MOUSEMOTION)
    assert after(more, less, page=page).selected == {1, 2, 3}
    let_go = after(more, mouse(places[1], pygame.MOUSEBUTTONUP), page=page)
    assert after(let_go, less, page=page).selected == {3, 4, 5, 6}
    assert after(let_go, press("Escape")).selected == set()
    assert after(let_go, mouse((1, 1)), page=page).selected == set()
    assert after(replace(first, dragging=None), mouse(places[0]), page=page).selected == set()


def test_the_card_of_a_chosen_word_offers_what_can_be_done_with_it():
    chosen = State(at=END, selected=frozenset([9]))
    page = laid(LANES, chosen)
    areas = {item.command: item for item in page.overlay if item.kind == "area"}
    assert set(areas) == {"erase", "attend", *(f"put {t}" for t, *_ in rivals(RECORD, LAST, 9))}
    for command in set(areas) - {"attend"}:
        place = areas[command].x + 1, areas[command].y + 1
        assert after(chosen, mouse(place), page=page).request == command
        overlay = laid(LANES, replace(chosen, mouse=place)).overlay  # it can be seen, too
        lit = [item.command for item in overlay if (item.kind, item.color) == ("box", DARK.line)]
        assert lit == [command]
    mask = " ".join(card(State(at=0.0, selected=frozenset([9]))))
    assert "erase" not in mask and "other words" in mask


@pytest.mark.parametrize("head", [-1, 1], ids=["what was drawn with it", "what it attended to"])
def test_lines_lead_from_a_chosen_word_to(head, monkeypatch):
    found, layer = [], type(MODEL.blocks[0].attention)
    weights, since = layer.weights, RECORD.rows[-1].since
    monkeypatch.setattr(layer, "weights", lambda *a: found.append(weights(*a)) or found[-1])
    MODEL(ids_of(RECORD.rows[since[9] - 1]))  # the text from which it was predicted
    ends = found[0][0, head - 1, 9].argsort()[-12:].tolist() if head > 0 else since == since[9]
    page = laid(LANES, State(at=END, selected=frozenset([9]), head=head))
    boxes = {box.token: box for box in anchors(page)}
    ends = set(np.arange(40)[ends]) - {9}
    lines = [item for item in page.items if item.kind == "line"]
    reached = [(line.x + x, line.y + y) for line in lines for x, y in line.points]
    for end in ends:
        assert np.abs(np.subtract(reached, middle(boxes[end]))).sum(axis=1).min() < 1
    assert len(lines) == len(ends) > 0


def test_what_is_typed_replaces_the_words_chosen(window):
    parts, ids = pieces(RECORD, LAST), TOKENIZER.encode(" earthy")
    i = next(i for i in range(9, 40) if parts[i][0] == " " and parts[i].isascii())
    s = State(settings=ASKED, at=END, selected=frozenset([i]))
    typed = after(s, *map(press, "earthy"))
    assert "instead " in shown(laid(LANES, typed)) and after(typed, press("Escape")) == s
    refused = after(typed, press("Return"))
    assert f"“earthy”: {len(ids)} tokens, but 1 selected" in refused.message
    places = range(i, i + len(ids))
    more = replace(refused, selected=frozenset(places))  # what was typed is still there
    (new,) = Session().do(after(more, press("Return")))
    expected = RECORD.rows[-1].text.copy()
    expected[places] = ids
    assert (new.rows[-1].text == expected).all() and new.done and new.start >= 1
    assert rivals(new, -1, i) == [] and "given" in card(s, [new])
    first = after(replace(s, selected=frozenset([0])), press("T"), press("Return"))
    assert first.request == f"type {TOKENIZER.encode('T')[0]}"  # no space stands before it
    assert after(s, press("Tab")).selected == frozenset()  # that is the prompt


def test_what_is_shown_is_copied_and_saved(window, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = Session(window=window)
    for name in ("picture", "picture", "animation"):
        session.ask(name)
    made = [Image.open(tmp_path / name) for name in ("text-1.png", "text-2.png", "text-1.gif")]
    assert made[0].size == made[2].size == (800, 600) and made[2].n_frames > 9
    session.ask("copy", at=END)
    assert pygame.scrap.get_text() == "".join(pieces(RECORD, LAST)).replace("\0", "")


# -- Sudoku

SOLUTIONS = 28_200_960 // (6 * 5 * 4)  # all grids, by the choices for three cells of a row


@pytest.fixture(scope="module")
def grid():
    """A grid that the perfect network has completed."""
    asked = Settings(prompt="1_3_5_" + "_" * 30, grid=6, length=36)
    return write(begin(perfect(), BYTES, asked))


def test_a_grid_shows_how_probable_each_digit_is(grid):
    assert is_valid(torch.from_numpy(grid.rows[-1].text)[None])
    assert [solutions(grid, n) for n in (0, -1)] == [SOLUTIONS, 1]
    page = laid([grid], State(at=0.0))
    cells = [[item.text for item in word if item.text] for word in page.words]
    assert cells[:6:2] == [["1"] * 2, ["3"] * 2, ["5"] * 2]  # twice, so bold: they are given
    assert cells[1] == ["2", "4", "6"]  # the row has the others
    assert f"{SOLUTIONS:,}" in shown(page) and not shown(page) & {"corrupt a text", "length "}
    n = next(n for n, row in enumerate(grid.rows) if len(set(row.look.chances(0, 6))) > 3)
    row = grid.rows[n]
    cell = laid([grid], State(at=row.time)).words[np.flatnonzero(row.text == MASKED)[0]]
    marks = [item for item in cell if item.text]
    squares = [item.h**2 / row.look.chances(0, 6)[int(item.text) - 1] for item in marks]
    assert len(marks) > 1 and max(squares) < 1.4 * min(squares)  # their area is the probability
    ends = [word[0].x + word[0].w for word in page.words[:6]]
    thick = [i.x for row in page.rows for i in row if i.kind == "box" and i.w == 2 and i.h > 100]
    assert [sum(x > line for x in ends) for line in thick] == [6, 3, 0]  # boxes are 3 wide


def test_givens_are_typed_into_cells(grid, window):
    def use(cells, *keys):
        s = State(settings=grid.settings, selected=frozenset(cells))
        return after(s, *map(press, keys), lanes=[grid])

    typed = use([3], "2")
    assert typed.settings.prompt == "1_325_" + "_" * 30 and typed.request == "run"
    assert handle(use([3]), f"put {ord('4')}", [grid]).settings.prompt[:6] == "1_345_"
    assert handle(use([0, 2]), "erase", [grid]).settings.prompt == "____5_" + "_" * 30
    for cells in ([3], []):  # no prompt begins with what no cell can hold
        assert use(cells, "7").message == "a cell takes a digit from 1 to 6"
    for at, *keys, to in ((0, "Right", 1), (0, "Left", "Up", 0), (8, "Down", "Left", 13)):
        assert use([at], *keys).selected == {to}
    page, s = laid([grid], State()), State(prompt=Field("12"))
    s = after(s, mouse(middle(anchors(page)[7])), page=page, lanes=[grid])
    assert s.selected == {7} and s.prompt is None  # what is typed now is its digit
    for size in ((1000, 700), (640, 480)):
        page = laid([grid], replace(s, at=END), size)
        right = max(cell.x + cell.w for cell in anchors(page))
        assert all(item.x > right for item in page.overlay)  # the grid can be seen


def test_puzzles_are_open_and_contradictions_are_said(grid):
    prompts = puzzle(3), "11"
    made, wrong = (begin(perfect(), BYTES, replace(grid.settings, prompt=p)) for p in prompts)
    assert 4 < made.masked(0) < 36 and 1 <= solutions(made, 0) <= 30
    page = laid([wrong], State(touring=True))
    assert CONTRADICTION in shown(page)
    assert [cell.token for cell in anchors(page) if cell.color == DARK.wrong] == [0, 1]


# -- drawing, files, terminal


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("size", [(640, 480), (1600, 1000)])
def test_what_is_laid_out_is_drawn(size, view, theme):
    state = State(view=view, theme=theme, controls=False, at=0.5)
    image = np.asarray(next(pictures(LANES, state, size, [0.5])), int)
    page = lay_out(LANES, state, size, Fonts())
    check_layout(page, size)
    canvas = Canvas(pygame.Surface(size), Fonts())
    for at in (0.3, 0.34, 0.5):  # what is on the page already is not drawn again
        canvas.draw(lay_out(LANES, replace(state, at=at), size, canvas.fonts), THEMES[theme].page)
    assert pygame.image.tobytes(canvas.surface, "RGB") == image.astype("uint8").tobytes()
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
    for text in ["e\u0301", "中文", "🙂", "\ufffd", "✓ и ש", "\ufe0f\u200b", "❤\ufe0f"]:
        width = fonts.image(visible(text), 20, (9, 9, 9)).get_width()
        assert width == max(1, fonts.width(visible(text), 20))
    assert all(len(fonts.parts(text, 20)) == 1 for text in ("e\u0301", "👨\u200d👩", "❤\ufe0f"))


def test_a_script_without_a_font_is_named(monkeypatch):
    first = next(font_paths())
    monkeypatch.setattr("visual.drawing.font_paths", lambda: iter([first]))
    fonts = Fonts()
    fonts.image("a word: शब्द", 20, (9, 9, 9))
    assert fonts.lacking() == "no font here has Devanagari: install one, such as Noto Sans"


def test_a_picture_is_one_moment_or_six_and_an_animation_begins_in_the_middle(tmp_path):
    state, size = State(view="order"), (401, 301)
    touched = replace(state, help=True, mouse=(99, 99), touring=True)  # a file has no controls
    for name, moment in (("six.png", None), ("one.png", 0.5), ("some.gif", None)):
        save(tmp_path / name, LANES, touched, size, moment, n_frames=5)
    six, one, gif = (Image.open(tmp_path / name) for name in ("six.png", "one.png", "some.gif"))
    assert one.tobytes() == next(pictures(LANES, state, size, [0.5])).tobytes()
    for i, moment in enumerate(pictures(LANES, state, size, np.linspace(0, END, 6))):
        x, y = i % 2 * 401, i // 2 * 301
        assert six.crop((x, y, x + 401, y + 301)).tobytes() == moment.tobytes()
    durations = [gif.seek(i) or gif.info["duration"] for i in range(gif.n_frames)]
    assert sum(durations) == pytest.approx(4000 + 4 * 1000 / 12, abs=50)  # milliseconds
    moments = list(pictures(LANES, state, size, np.linspace(0, END, 5), 1 / 12))
    for k, moment in ((durations.index(max(durations)), moments[4]), (0, moments[2])):
        gif.seek(k)  # the end is held
        assert np.abs(np.asarray(gif.convert("RGB"), int) - np.asarray(moment, int)).mean() < 4


def test_inline_in_a_notebook():
    masks = torch.full((2, 40), TOKENIZER.mask_id)
    masks[0, 3:] = 7
    made = mdlm.sampling.sample(MODEL, masks, 8, generator=noise(0))
    first, second = (show_inline(made, TOKENIZER, row=i, size=(300, 200)) for i in (0, 1))
    assert Image.open(io.BytesIO(first.data)).size == (300, 200) and first.data != second.data
    assert second.alt == TOKENIZER.decode(made.tokens[1].tolist())


def test_the_terminal(monkeypatch):
    def played(lanes, animated=True):
        out = io.StringIO()
        out.isatty = lambda: animated
        play_in_terminal(lanes, State(theme="light"), out, seconds=0.2)
        return out.getvalue()

    plain, end = played(LANES, animated=False), frame(LANES, END, State(), 78, colors=False)
    assert plain.startswith("step  0/24  t 1.00  masked ") and plain.endswith("\n".join(end) + "\n")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "7")
    colored = played([made_up([f" word{i}" for i in range(60)])])
    page = ";".join(map(str, THEMES["light"].page))
    assert f";48;2;{page}m" in colored and "\x1b" not in plain
    plain = re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", colored)
    assert max(map(len, re.split(r"[\r\n]+", plain))) < 40  # a longer line would take two
    assert "word59" in plain.rsplit("masked", 1)[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[38" not in played(LANES)


# -- the command line


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder with a model of each kind; some that do not fit in `other`."""
    folder, network = tmp_path_factory.mktemp("models"), DiffusionTransformer.head
    animals = BPETokenizer.train(TEXT * 9 + "zebra crossing " * 9, 300)
    finished = {"steps": MODEL.config.steps}
    for name, model in {"tiny-twin": TWIN, "tiny-blocks": BLOCKS, "tiny": MODEL}.items():
        save_checkpoint(folder / f"{name}.safetensors", model, TOKENIZER, finished)
    for name in ("other", "included"):
        (folder / name).mkdir()
    shutil.copy(folder / "tiny.safetensors", folder / "included/kjv.safetensors")
    save_checkpoint(folder / "other/animals.safetensors", TWIN, animals, finished)
    save_checkpoint(folder / "other/stopped.safetensors", MODEL, TOKENIZER, {"steps": 3})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionTransformer, "head", lambda self, h: 1.5 * network(self, h))
        save_checkpoint(folder / "other/edited.safetensors", MODEL, TOKENIZER, finished)
    return folder


NEWEST = r"your newest model, tiny.safetensors: 0.0 million parameters\n"
TEXTS = rf"""
    --steps 6                           | 1 | {NEWEST}step 0/6 .* masked 32 .* masked  0
    --compare steps=3 --compare seed=2  | 2 | {NEWEST}seconds 0.00
    --race                              | 2 | {NEWEST}seconds 0.00
    --race tiny-blocks.safetensors tiny-twin.safetensors | 3 | {NEWEST}seconds 0.00
    --block                             | 1 | your .* tiny-blocks.*\nblock 2/2 .* network calls   8
    --block 8 --length auto             | 1 | your .* tiny-blocks.*\nblock 2/8
    --save out.gif --size 300x200       | 1 | {NEWEST}out.gif: .* kB\nstep
    tiny-twin.safetensors               | 1 | tiny-twin.safetensors: 0.0 million
    other/stopped.safetensors           | 1 | .*\nafter 3 of 12 steps; trained to the end: .*\nstep
    --folder included                   | 1 | the included model, included/kjv.safetensors: 0.0 mi
"""


@pytest.mark.parametrize("line", TEXTS.strip().splitlines())
def test_texts_in_the_terminal(checkpoints, monkeypatch, capsys, line):
    monkeypatch.chdir(checkpoints)
    options, n_lanes, told = line.split("|")
    assert sample_visual.main(["--folder", ".", "--text", *options.split()]) == 0
    out, error = capsys.readouterr()
    assert re.match(told.strip(), out, re.DOTALL) and error == ""
    assert out.count("network calls") == 5 * int(n_lanes)  # five moments


def test_the_plain_command_opens_a_window(checkpoints, monkeypatch):
    def watched(window, worker, state):
        state = show_until(window, worker, state, lambda: worker.lanes[-1].done)
        ends.append((state, worker.lanes))

    ends, racers = [], ["tiny-blocks.safetensors", "tiny-twin.safetensors"]
    monkeypatch.chdir(checkpoints)
    monkeypatch.setattr(sample_visual, "find_display", lambda: None)
    monkeypatch.setattr(sample_visual, "show", watched)
    options = ["--steps", "6", "--view", "order", "--folder", "."]
    assert sample_visual.main([*options, "--race", *racers]) == 0
    ((state, lanes),) = ends
    assert (state.settings.steps, state.view, state.message) == (6, "order", "")
    named = {"your newest model, tiny, against tiny-blocks, against tiny-twin"}
    named |= {"diffusion, 0.0M", "blocks of 8, 0.0M", "GPT, 0.0M"}
    assert named <= shown(laid(lanes, State()))


MISTAKES = """
    --text --steps 0                        | the number of steps must be from 1 to
    --text --length 41                      | the length must be from 1 to 40, the model's context
    --text --seed -1                        | the seed must be
    --text --top-p 1.5                      | top_p must be above 0
    --text --prompt ____________________________________x____ | shorten it
    --text --compare steps=many             | --compare steps=many: not like steps=8; there are
    --text --compare colour=8               | not like steps=8
    --text --compare sampler=best           | the sampler must be one of ancestral,
    --text --sudoku                         | a grid needs the window, or --save
    --save x.png --sudoku --prompt 17       | digits from 1 to 6
    --save x.png --sudoku tiny.safetensors  | not trained on grids
    --text other/edited.safetensors         | made by another network
    --text --race other/animals.safetensors | other/animals.safetensors: it has another token
    --text --folder other/none              | no checkpoint in other/none
    --text --folder included --block        | no model of blocks in included
    --text --block 4                        | trained for blocks of 8: name another
    --text --block 8 tiny.safetensors       | trained without blocks: name another
    --save tiny.safetensors/out.png         | tiny.safetensors
    --save out.bmp                          | the name must end with
    --save out.png --at 2                   | --at must be
    --save out.gif --frames 0               | --frames must be
    --size big                              | --size must be
    --size 100x900                          | --size must be
"""


@pytest.mark.parametrize("line", MISTAKES.strip().splitlines())
def test_mistakes_get_one_line(checkpoints, monkeypatch, capsys, line):
    monkeypatch.chdir(checkpoints)
    options, message = line.split("|")
    assert sample_visual.main(["--folder", ".", *options.split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message.strip() in error


@pytest.mark.parametrize("driver", ["", "dummy", "offscreen"])
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a display")
def test_without_a_display_one_line_names_the_other_ways(monkeypatch, capsys, driver):
    for name, value in (("SDL_VIDEODRIVER", driver), ("DISPLAY", driver), ("WAYLAND_DISPLAY", "")):
        monkeypatch.setenv(name, value)
    assert sample_visual.main([]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(way in error for way in ("--save", "--text", "display"))
