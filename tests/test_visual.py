"""The visualiser: layout as pure functions, controls by posted events, frames, files, errors."""

import io
import os
import queue
import re
import shutil
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise

os.environ["SDL_VIDEODRIVER"] = "dummy"

import imageio_ffmpeg
import numpy as np
import psutil
import pygame
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import sample_visual
from bpe_tokenizer import BPETokenizer, UserError
from mdlm.config import Config
from mdlm.model import DiffusionTransformer
from mdlm.sampling import (
    sample,
    sample_confident,
    sample_first_hitting,
    sample_plain,
    sample_remask,
)
from saving import save_checkpoint
from visual.controls import FIELDS, KEYS, VIEWS, State, advance, commands_of, handle, key_of
from visual.drawing import Fonts
from visual.files import picture, save, show_inline
from visual.items import THEMES, contrast, luminance, probability_color, readable_on, viridis
from visual.page import hidden_lines, lay_out, quote
from visual.recording import (
    ARRAYS,
    CANDIDATES,
    MASKED,
    SAMPLERS,
    Race,
    Record,
    Settings,
    candidates,
    lane_of,
    live_record,
    load_record,
    record_bytes,
    record_run,
    starting_text,
    text_pieces,
    waiting_record,
    with_beliefs,
)
from visual.terminal import play_in_terminal, text_frame
from visual.typesetting import break_lines, shown_name, token_look, visible
from visual.window import find_display, open_window, show
from visual.worker import Worker, receive

TEXT = (
    "In the beginning God created the heaven and the earth. And the earth was without form.\n" * 9
)


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train(TEXT, 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    size = dict(n_layers=1, d_model=32, n_heads=2, context=40, compile=False)
    return DiffusionTransformer(Config(vocab_size=tokenizer.vocab_size, **size)).eval()


@pytest.fixture(scope="module")
def twin(model):
    torch.manual_seed(1)
    return DiffusionTransformer(replace(model.config, causal=True)).eval()


@pytest.fixture(scope="module")
def record(model, tokenizer):
    asked = Settings(steps=24, length=40, prompt="In the __ God")
    return with_beliefs(model, record_run(model, tokenizer, asked, "a title"))


@pytest.fixture(scope="module")
def fonts():
    return Fonts()


@pytest.fixture
def checkpoint(model, tokenizer, tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(path, model, tokenizer, {})
    return str(path)


class Ruler:
    """Fonts without pygame: every character is six tenths as wide as it is high."""

    def width(self, text, size):
        return 0.6 * size * sum(2 if ord(c) > 0x3000 else 1 for c in text)

    def height(self, size):
        return round(1.2 * size)


RULER = Ruler()


def made_up(pieces, n_steps=8, seed=0):
    """A record of these pieces that no model made, with beliefs."""
    noise, L = np.random.default_rng(seed), len(pieces)
    step = noise.integers(0, n_steps + 1, L)
    change = np.unique([0, *step])
    return Record(
        title="made up",
        settings=Settings(steps=n_steps, length=L),
        pieces=tuple(pieces),
        last=np.minimum(np.arange(L) + noise.integers(0, 2, L), L - 1),
        probability=noise.random(L),
        n_steps=n_steps,
        change=change,
        states=np.where(step <= change[:, None], np.arange(L), MASKED),
        calls=np.arange(n_steps + 1.0),
        seconds=1.0,
        names=tuple(pieces) or ("",),
        belief_step=np.arange(n_steps + 1),
        belief_token=noise.integers(0, L, (n_steps + 1, L, 3)),
        belief_probability=noise.random((n_steps + 1, L, 3)),
    )


# -- recording


@given(st.text(), st.lists(st.integers(0, 50)))
def test_pieces_spell_the_text_wherever_it_is_cut(text, cuts):
    data = text.encode("utf-8", errors="surrogatepass").decode("utf-8", errors="ignore").encode()
    cuts = [0, *sorted(c for c in cuts if c <= len(data)), len(data)]
    parts = [data[a:b] for a, b in pairwise(cuts)]
    pieces, last = text_pieces(parts)
    own = ["" if part[:1] and all(0x80 <= b < 0xC0 for b in part) else None for part in parts]
    spelled = [
        p if o is None and part else "" for p, o, part in zip(pieces, own, parts, strict=True)
    ]
    assert "".join(spelled).encode() == data
    assert all(pieces) and all(i <= j < len(parts) for i, j in enumerate(last))


@given(st.lists(st.binary(max_size=6), max_size=12))
def test_any_bytes_have_pieces(parts):
    pieces, last = text_pieces(parts)
    assert len(pieces) == len(last) == len(parts) and all(pieces)


def test_a_character_of_four_tokens_waits_for_all_of_them():
    emoji = "🙂".encode()
    pieces, last = text_pieces([b"a", emoji[:1], emoji[1:2], emoji[2:4], b" b"])
    assert pieces == ("a", "🙂", "·", "·", " b")
    assert last == [0, 3, 2, 3, 4]
    change, step = np.array([0, 1, 2, 5]), np.array([1, 1, 2, 5, 1])
    states = np.where(step <= change[:, None], np.arange(5), MASKED)
    shown = replace(made_up(pieces), last=np.array(last), change=change, states=states)
    looks = [token_look(shown, 1, at, "text", THEMES["dark"]).text for at in (0, 3, 5)]
    assert looks == ["", "\ufffd", None]


def test_a_recording_survives_the_disk(record, tmp_path):
    path = tmp_path / "run.safetensors"
    save(path, record, State(), (400, 300))
    again = load_record(path)
    for name, _, _ in ARRAYS:
        np.testing.assert_array_equal(getattr(again, name), getattr(record, name))
    for name in ("pieces", "names", "settings", "title", "n_steps", "seconds"):
        assert getattr(again, name) == getattr(record, name)


@pytest.mark.parametrize(
    "field", ["pieces", "change", "states", "belief_token", "calls", "settings"]
)
def test_damaged_recordings_are_refused(record, tmp_path, field):
    broken = {
        "pieces": record.pieces[:-1],
        "change": record.change + 1,
        "states": record.states + 10**6,
        "belief_token": record.belief_token + 10**6,
        "calls": record.calls[:-1],
        "settings": replace(record.settings, steps="many"),
    }
    path = tmp_path / "run.safetensors"
    path.write_bytes(record_bytes(replace(record, **{field: broken[field]})))
    with pytest.raises(UserError, match="damaged"):
        load_record(path)


def test_beliefs_are_the_models_own(model, record):
    s = record.row(3.9)
    i = int((record.states[s] == MASKED).nonzero()[0][0])
    z = torch.from_numpy(np.where(record.states[s] < 0, model.mask_id, record.states[s]))[None]
    best = model(z)[0, i].exp().topk(CANDIDATES)
    found = candidates(record, i, 3.9)
    assert [name for name, _ in found] == [record.names[j] for j in best.indices.tolist()]
    np.testing.assert_allclose([p for _, p in found], best.values.detach(), rtol=0.05)


def test_beliefs_of_a_long_run_are_thinned_out(model, tokenizer):
    run = record_run(model, tokenizer, Settings(steps=500, length=40))
    thin = with_beliefs(model, run, most=5)
    assert len(thin.belief_step) == 5 and thin.belief_step[0] == 0
    assert len(candidates(thin, 0, 1)) == CANDIDATES


def test_no_belief_is_told_of_a_place_that_was_visible_when_the_model_was_asked(model, tokenizer):
    run = record_run(model, tokenizer, Settings(steps=300, length=40, sampler="remask"))
    thin = with_beliefs(model, run, most=9)
    none = 0
    for step in range(300):
        for i in np.flatnonzero(run.states[run.row(step)] == MASKED):
            found = candidates(thin, i, step)
            none += not found
            assert all(p < 0.99 for _, p in found)  # of an untrained model
    assert none > 0


def test_given_tokens_stay(model, tokenizer):
    word = tokenizer.encode(" earth")[0]
    asked = Settings(steps=5, length=40, prompt="In the __ God", kept=((30, word), (99, word)))
    z = starting_text(asked, tokenizer)[0].tolist()
    prompt = [*tokenizer.encode("In the"), tokenizer.mask_id, tokenizer.mask_id]
    assert z[: len(prompt)] == prompt and z[30] == word and len(z) == 40
    run = record_run(model, tokenizer, asked)
    assert run.states[-1, 30] == word and run.since[-1, 30] == 0
    assert run.since[-1, len(prompt) - 1] > 0  # the masks within the prompt are filled
    n_given = 3 + len(tokenizer.encode(" God"))
    assert run.masked(0) == run.n_drawn() == 40 - n_given


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_network_calls_add_up(model, tokenizer, sampler):
    run = record_run(model, tokenizer, Settings(steps=100, length=40, sampler=sampler))
    assert run.calls[0] == 0 and (np.diff(run.calls) >= 0).all() and len(run.calls) == 101
    busy = len(set(run.since[-1].tolist()))
    every_step = sampler in {"plain", "remask"}
    assert run.calls[-1] == (100 if every_step else busy)


def test_tokens_that_are_taken_back(model, tokenizer):
    def remask(model, z, steps, generator, **knobs):
        return sample_remask(model, z, steps, generator, eta=0.5, **knobs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SAMPLERS, "remask", remask)
        run = record_run(model, tokenizer, Settings(steps=30, length=40, sampler="remask"))
    back = (run.states[:-1] >= 0) & (run.states[1:] == MASKED)
    assert back.any() and run.masked(30) == 0
    other = (run.states >= 0) & (run.states != run.states[-1])
    s, i = (int(n[0]) for n in other.nonzero())
    look = token_look(run, i, int(run.change[s]), "text", THEMES["dark"])
    assert look.text == shown_name(run.names[run.states[s, i]])
    assert token_look(run, i, 30, "text", THEMES["dark"]).text in (None, "\ufffd")


# -- typesetting, items, page

ODD_PIECES = st.one_of(
    st.sampled_from(
        [" the", "ed", ",", "\n", "\n\n", " ", "   ", "·", "\ufffd", "\t", "\x00", " \n"]
    ),
    st.sampled_from(
        ["🙂", "👨\u200d👩\u200d👧", "e\u0301", "\u0301", "中文", " ק", "x" * 300, " " + "é" * 70]
    ),
    st.text(min_size=1, max_size=8),
)


def inside(items, size):
    return all(
        i.x >= -0.01
        and i.y >= -0.01
        and i.x + i.w <= size[0] + 0.01
        and i.y + i.h <= size[1] + 0.01
        for i in items
    )


def overlapping(items):
    """The first two items that share more than a hundredth of a pixel, or None."""
    for n, a in enumerate(items):
        for b in items[n + 1 :]:
            wide = min(a.x + a.w, b.x + b.w) - max(a.x, b.x)
            tall = min(a.y + a.h, b.y + b.h) - max(a.y, b.y)
            if wide > 0.01 and tall > 0.01:
                return a, b
    return None


@settings(max_examples=150, deadline=None)
@given(
    st.lists(ODD_PIECES, min_size=1, max_size=40),
    st.tuples(st.integers(200, 1700), st.integers(200, 1100)),
    st.sampled_from(list(VIEWS)),
    st.floats(0, 8),
    st.booleans(),
    st.integers(0, 60),
)
def test_nothing_overlaps_and_nothing_is_outside(pieces, size, view, at, controls, scroll):
    shown = made_up(pieces)
    state = State(view=view, at=at, controls=controls, scroll=scroll, cursor=0)
    items = lay_out(shown, state, size, RULER)
    assert inside(items, size) and not any("\n" in item.text for item in items)
    below = [item for item in items if item.part != "card"]
    assert overlapping([item for item in below if item.part == "token"]) is None
    assert overlapping([item for item in below if item.kind == "text"]) is None
    parts = {item.command for item in items if item.part == "token"}
    hidden = sum(item.part == "scroll" for item in items) or not controls or size[1] < 300
    assert hidden or len(parts) == len(pieces)


@settings(max_examples=40, deadline=None)
@given(st.lists(ODD_PIECES, min_size=1, max_size=40), st.sampled_from([(640, 480), (901, 333)]))
def test_text_never_jumps(pieces, size):
    shown = made_up(pieces)
    places = []
    for view in VIEWS:
        for at in (0, 3.5, 8):
            items = lay_out(shown, State(view=view, at=at), size, RULER)
            places.append([i[1:5] for i in items if i.part == "token"])
    assert all(place == places[0] for place in places)


@settings(max_examples=60, deadline=None)
@given(st.lists(ODD_PIECES, max_size=30), st.integers(1, 400), st.integers(9, 30))
def test_lines_hold_the_whole_text_in_order(pieces, width, size):
    spots, n_lines = break_lines(pieces, width, RULER, size)
    assert [s.token for s in spots] == sorted(s.token for s in spots)
    assert {s.token for s in spots} == set(range(len(pieces)))
    lines = [s.line for s in spots]
    assert lines == sorted(lines) and n_lines == 1 + max(lines, default=0)
    assert all(s.x >= 0 and s.x + s.w <= width + 1e-6 for s in spots)
    for i, piece in enumerate(pieces):
        text = "".join(s.text for s in spots if s.token == i)
        drawn = "".join(map(visible, piece))
        assert text.removeprefix("◌") in (drawn, drawn.removeprefix(" "))


def test_line_breaks_and_words():
    spots, _ = break_lines(["a", "\n", " b", "c", " d"], 50, RULER, 10)
    assert [(s.line, s.text) for s in spots] == [(0, "a"), (0, "↵"), (1, "b"), (1, "c"), (1, "d")]
    assert (spots[2].ends, spots[3].starts, spots[3].ends, spots[4].starts) == (
        False,
        False,
        True,
        True,
    )
    spots, _ = break_lines([" aaaa", " bb", "bb"], 40, RULER, 10)
    assert [s.line for s in spots] == [0, 1, 1]  # a word of two tokens is not torn apart


@settings(max_examples=60, deadline=None)
@given(
    st.lists(ODD_PIECES, min_size=1, max_size=30),
    st.tuples(st.integers(200, 1700), st.integers(200, 1100)),
    st.sampled_from(list(VIEWS)),
    st.floats(0, 1),
    st.booleans(),
)
def test_a_race_is_laid_out_like_a_run(pieces, size, view, part, controls):
    race = Race((made_up(pieces), replace(made_up(pieces, n_steps=5, seed=1), seconds=0.4)))
    at = part * race.n_steps
    for cursor in (0, len(pieces)):  # the first token of each lane
        state = State(view=view, at=at, controls=controls, cursor=cursor)
        items = lay_out(race, state, size, RULER)
        assert inside(items, size)
        below = [item for item in items if item.part != "card"]
        assert overlapping([item for item in below if item.part == "token"]) is None
        assert overlapping([item for item in below if item.kind == "text"]) is None
    if size[0] > 700 and size[1] > 600:
        commands = {item.command for item in items if item.part == "token"}
        assert commands == {f"fix {i}" for i in range(2 * len(pieces))}


def test_a_race_runs_on_the_clock_of_its_seconds():
    first = replace(made_up("abcdefgh", n_steps=8), seconds=2.0)
    calls = np.array([0, 0, 1, 2, 2, 3, 4, 4, 4])  # four passes, half a second each
    first = replace(first, calls=calls)
    second = replace(made_up("abcd", n_steps=4), seconds=1.0)  # four, a quarter of a second each
    race = Race((first, second))
    for now, steps in [(0.0, (1, 0)), (0.3, (1, 1)), (0.6, (2, 2)), (1.0, (4, 4)), (2.0, (8, 4))]:
        at = now / 2.0 * race.n_steps
        assert tuple(race.lane_at(lane, at) for lane in race.lanes) == steps
    assert lane_of(race, 7) == (first, 7) and lane_of(race, 9) == (second, 1)


@pytest.mark.parametrize("size", [(200, 200), (361, 259), (640, 480), (1601, 999)])
def test_help_live_prompt_and_cards_fit(record, size):
    states = [
        State(help=True),
        State(draft="word " * 100),
        State(message="m" * 300, busy="b" * 300),
        *(State(cursor=i, at=9, view="belief") for i in range(40)),
    ]
    half = record.states[: len(record.states) // 2]
    change = np.arange(len(half))
    live = live_record("t" * 200, record.settings, record.names, change, half, len(half))
    for shown in (record, live):
        for state in states:
            assert inside(lay_out(shown, state, size, RULER), size)
    assert any(i.part == "draft" for i in lay_out(record, states[1], size, RULER))


@pytest.mark.parametrize("theme", list(THEMES.values()), ids=list(THEMES))
def test_colours_can_be_read(theme):
    for ink in (theme.ink, theme.faint, theme.accent):
        assert contrast(ink, theme.page) >= 4.5
        assert contrast(ink, theme.card) >= 4.5
    for k in np.linspace(0, 1, 50):
        assert contrast(probability_color(k, theme), theme.page) >= 4.5
        paper = viridis(k)
        assert contrast(readable_on(paper), paper) >= 4.3
    # the scale must also work for whoever sees no colour: brightness only rises
    light = [luminance(viridis(k)) for k in np.linspace(0, 1, 50)]
    assert light == sorted(light)


def test_tokens_show_what_happened(record):
    theme, i = THEMES["dark"], int(record.since[-1].argmax())
    at = int(record.since[-1, i])
    assert token_look(record, i, at - 1, "text", theme).paper == theme.mask
    fresh, old = (token_look(record, i, t, "text", theme).paper for t in (at, at + 9))
    assert fresh != theme.mask and old is None
    assert token_look(record, i, 99, "order", theme).paper == viridis(at / record.n_steps)
    first_choice = candidates(record, i, at - 1)[0][0]
    assert token_look(record, i, at - 1, "belief", theme).text == shown_name(first_choice)


# -- controls


def press(state, items, record, *events):
    """Post events to pygame's queue, take them out again, and handle them."""
    for event in events:
        pygame.event.post(event)
    for event in pygame.event.get():
        for command in commands_of(event, state, items):
            state = handle(state, command, record)
    return state


def key(code, text="", mod=0):
    return pygame.event.Event(pygame.KEYDOWN, key=code, unicode=text, mod=mod)


@pytest.fixture
def window():
    find_display()
    window = open_window((800, 600))
    pygame.event.clear()
    yield window
    window.destroy()
    pygame.display.quit()


def test_every_key(window, record):
    s = replace(State(settings=record.settings, playing=False), at=5.0)
    cases = [
        (key(pygame.K_SPACE, " "), dict(playing=True)),
        (key(pygame.K_RIGHT), dict(at=6.0)),
        (key(pygame.K_LEFT), dict(at=4.0)),
        (key(pygame.K_HOME), dict(at=0.0)),
        (key(pygame.K_END), dict(at=24.0)),
        (key(pygame.K_COMMA, ","), dict(speed=0.5)),
        (key(pygame.K_PERIOD, "."), dict(speed=2.0)),
        (key(pygame.K_1, "1"), dict(view="text")),
        (key(pygame.K_2, "2"), dict(view="order")),
        (key(pygame.K_3, "3"), dict(view="belief")),
        (key(pygame.K_TAB, "\t"), dict(view="order")),
        (key(pygame.K_UP), dict(picked=5)),
        (key(pygame.K_DOWN), dict(picked=1)),
        (key(pygame.K_PLUS, "+"), dict(settings=replace(s.settings, steps=32))),
        (key(pygame.K_EQUALS, "="), dict(settings=replace(s.settings, steps=32))),
        (key(pygame.K_MINUS, "-"), dict(settings=replace(s.settings, steps=16))),
        (key(pygame.K_RETURN, "\r"), dict(request="run")),
        (key(pygame.K_n, "n"), dict(request="run", settings=replace(s.settings, seed=2))),
        (key(pygame.K_LEFTBRACKET, "["), dict(cursor=39)),
        (key(pygame.K_RIGHTBRACKET, "]"), dict(cursor=0)),
        (key(pygame.K_PAGEDOWN), dict(scroll=5)),
        (key(pygame.K_PAGEUP), dict(scroll=0)),
        (key(pygame.K_EQUALS, "", pygame.KMOD_CTRL), dict(zoom=1.1)),
        (key(pygame.K_MINUS, "", pygame.KMOD_CTRL), dict(zoom=0.909)),
        (key(pygame.K_t, "t"), dict(theme="light")),
        (key(pygame.K_h, "h"), dict(help=True)),
        (key(pygame.K_SLASH, "?"), dict(help=True)),
        (key(pygame.K_ESCAPE), {}),
        (key(pygame.K_q, "q"), dict(request="quit")),
        (key(pygame.K_p, "p"), dict(draft=record.settings.prompt, ignore="p")),
        (key(pygame.K_x, "x"), {}),
        (key(pygame.K_z, "z"), {}),
        (key(pygame.K_LSHIFT), {}),
        (pygame.event.Event(pygame.QUIT), dict(request="quit")),
    ]
    for event, change in cases:
        assert press(s, [], record, event) == replace(s, **change), event
    tried = {key_of(event) for event, _ in cases if event.type == pygame.KEYDOWN}
    assert set(KEYS) - tried == {"F", "Ctrl+"}  # F: below; Ctrl+ is Ctrl= with another layout


def test_keeping_tokens(window, record):
    s = State(at=24.0, settings=record.settings)
    i = int(record.since[-1].argmax())
    f = [key(pygame.K_f, "f"), pygame.event.Event(pygame.TEXTINPUT, text="f")]  # as SDL sends it
    assert "Point" in press(s, [], record, *f).message
    kept = press(replace(s, cursor=i), [], record, *f)
    assert kept.settings.kept == ((i, record.states[-1, i]),)
    assert press(kept, [], record, *f).settings.kept == ()
    assert press(kept, [], record, key(pygame.K_x, "x")).settings.kept == ()
    assert "appeared" in press(replace(s, cursor=i, at=0.0), [], record, *f).message
    assert "prompt" in press(replace(s, cursor=0), [], record, *f).message


def test_a_kept_token_can_be_let_go_and_kept_again(window, model, tokenizer):
    word = tokenizer.encode(" earth")[0]
    asked = Settings(steps=8, length=40, kept=((30, word),))
    run = record_run(model, tokenizer, asked)
    s = State(at=8.0, settings=asked, cursor=30)
    f = key(pygame.K_f, "f")
    let_go = press(s, [], run, f)
    assert let_go.settings.kept == () and press(let_go, [], run, f).settings.kept == asked.kept


def test_alt_gr_types_brackets(window):
    alt_gr = pygame.KMOD_LCTRL | pygame.KMOD_RALT  # as SDL names it on Windows
    assert key_of(key(pygame.K_8, "[", alt_gr)) == "["
    assert key_of(key(pygame.K_v, "\x16", pygame.KMOD_LCTRL)) == "CtrlV"


def test_more_steps_are_not_fewer(record):
    for name, value in (("temperature", 5.0), ("temperature", 0.05), ("top_p", 0.01)):
        s = State(settings=replace(record.settings, **{name: value}))
        less, more = (
            getattr(handle(s, f"{verb} {name}", record).settings, name) for verb in ("less", "more")
        )
        assert less <= value <= more and less < more
    s = State(settings=replace(record.settings, steps=5000))
    assert handle(s, "more steps", record).settings.steps == 5000
    assert handle(s, "less steps", record).settings.steps == 4096


def test_keeping_tokens_of_both_racers(window, model, twin, tokenizer):
    asked = Settings(steps=8, length=40)
    race = Race(tuple(record_run(m, tokenizer, asked) for m in (model, twin)))
    s = State(at=float(race.n_steps), settings=asked)
    f = key(pygame.K_f, "f")
    kept = press(press(replace(s, cursor=3), [], race, f), [], race, f)
    assert kept.settings.kept == ()
    both = press(replace(press(replace(s, cursor=3), [], race, f), cursor=44), [], race, f)
    first, second = (int(lane.states[-1, i]) for lane, i in zip(race.lanes, (3, 4), strict=True))
    assert both.settings.kept == ((3, first), (4, second))
    again = [record_run(m, tokenizer, both.settings) for m in (model, twin)]
    assert all(tuple(run.states[0, 3:5]) == (first, second) for run in again)


def test_typing_a_prompt(window, record):
    def typed(text):
        return pygame.event.Event(pygame.TEXTINPUT, text=text)

    s = State(settings=replace(record.settings, prompt=""))
    s = press(s, [], record, key(pygame.K_p, "p"), typed("p"), typed("p"), typed("é"), typed("q"))
    assert s.draft == "péq" and s.request == ""
    items = lay_out(record, press(s, [], record, typed("a\nb")), (640, 480), RULER)
    assert "péqa↵b▏" in [item.text for item in items]
    s = press(s, [], record, key(pygame.K_q, "q"), key(pygame.K_BACKSPACE, "\b"), typed(" _"))
    assert s.draft == "pé _"
    assert press(s, [], record, key(pygame.K_ESCAPE)).draft is None
    s = press(s, [], record, key(pygame.K_RETURN, "\r"))
    assert s.draft is None and s.settings.prompt == "pé _" and s.request == "run"


def click(item, kind=pygame.MOUSEBUTTONDOWN):
    place = (item.x + item.w / 2, item.y + item.h / 2)
    return pygame.event.Event(kind, pos=place, button=1)


def test_the_mouse_reaches_everything(window, record):
    s = State(settings=replace(record.settings, kept=((30, 1),)), at=24.0)
    items = lay_out(record, s, (1000, 700), RULER)
    clickable = {item.command: item for item in items if item.command}
    wanted = {"play", "step 1", "step -1", "timeline", "theme", "help", "run", "new", "prompt"}
    wanted |= {f"view {view}" for view in VIEWS} | {"release"} | {f"fix {i}" for i in range(40)}
    wanted |= {f"{verb} {name}" for verb in ("less", "more", "pick") for name in FIELDS}
    assert wanted <= set(clickable)
    for command in wanted - {"timeline"}:
        after = press(s, items, record, click(clickable[command]))
        assert after == handle(s, command, record), command
    line = clickable["timeline"]
    s = press(s, items, record, click(line))
    assert s.dragging and s.at == pytest.approx(12, abs=0.1) and not s.playing
    far = pygame.event.Event(pygame.MOUSEMOTION, pos=(9999, 0), rel=(0, 0), buttons=(1, 0, 0))
    s = press(s, items, record, far)
    assert s.at == 24 and s.mouse == (9999, 0)
    s = press(s, items, record, click(line, pygame.MOUSEBUTTONUP))
    assert not s.dragging
    s = press(s, items, record, pygame.event.Event(pygame.MOUSEWHEEL, y=-2, x=0))
    assert s.scroll == 2
    pygame.key.set_mods(pygame.KMOD_LCTRL)
    larger = press(s, items, record, pygame.event.Event(pygame.MOUSEWHEEL, y=1, x=0))
    pygame.key.set_mods(0)
    assert larger.zoom == pytest.approx(1.1)
    assert press(s, items, record, pygame.event.Event(pygame.WINDOWLEAVE)).mouse is None


def test_hovering_shows_the_candidates(window, record):
    s = State(at=0.0, view="belief")
    items = lay_out(record, s, (1000, 700), RULER)
    i = int(record.since[-1].argmax())
    token = next(item for item in items if item.command == f"fix {i}")
    move = pygame.event.Event(pygame.MOUSEMOTION, pos=(token.x + 1, token.y + 1), rel=(0, 0))
    items = lay_out(record, press(s, items, record, move), (1000, 700), RULER)
    texts = [item.text for item in items if item.part == "card" and item.kind == "text"]
    assert len(texts) == 1 + CANDIDATES
    name, p = candidates(record, i, 0)[0]
    assert f"{p:.1%}" in texts[1] and quote(name) in texts[1]


def test_a_long_text_scrolls(record):
    size = (300, 260)
    s = State(at=24.0, scroll=1000, zoom=2.0)
    items = lay_out(record, s, size, RULER)
    assert hidden_lines(items) > 0
    seen = {item.command for item in items if item.part == "token"}
    assert "fix 39" in seen and "fix 0" not in seen
    items = lay_out(record, replace(s, zoom=1.0), (1000, 700), RULER)
    assert hidden_lines(items) == 0


def test_settings_stay_in_range(record):
    for name in FIELDS:
        for verb in ("less", "more"):
            s = State(settings=replace(record.settings, steps=100))
            for _ in range(50):
                s = handle(s, f"{verb} {name}", record)
            ours = s.settings
            assert 1 <= ours.steps <= 4096 and 0.1 <= ours.temperature <= 3 and ours.seed >= 0
            assert 0.05 <= ours.top_p <= 1 and ours.sampler in SAMPLERS and 0 < s.speed <= 16


def test_playing_comes_to_an_end_and_starts_again(record):
    s = State()
    for _ in range(9 * 60):
        s = advance(s, record, 1 / 60)
    assert s.at == record.n_steps and not s.playing
    again = handle(s, "play", record)
    assert again.playing and again.at == 0


# -- worker, window


def quit_after(seconds):
    quit_event = pygame.event.Event(pygame.QUIT)
    threading.Timer(seconds, pygame.event.post, [quit_event]).start()


class News(queue.SimpleQueue):
    """Closes the window half a second after it has heard that all is done."""

    def get(self, *arguments, **options):
        news = super().get(*arguments, **options)
        if news == ("busy", ""):
            quit_after(0.5)
        return news


class Watched(Worker):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.news = News()


def test_the_window_samples_and_plays(window, model, tokenizer):
    asked = Settings(steps=24, length=40)
    worker = Watched(model, tokenizer, "title")
    worker.run(asked)
    start = State(settings=asked, view="belief")
    record, state = show(window, waiting_record("", asked, tokenizer), start, worker)
    worker.close()
    assert not record.live and record.settings == asked and len(record.belief_step)
    assert 0 < state.at <= 24 and state.busy == "" and state.message == ""


def test_the_window_races(window, model, twin, tokenizer):
    asked = Settings(steps=24, length=40, prompt="In the _")
    worker = Watched(model, tokenizer, "title", twin)
    worker.run(asked)
    lane = waiting_record("", asked, tokenizer)
    race, state = show(window, Race((lane, lane)), State(settings=asked), worker)
    worker.close()
    first, second = race.lanes
    assert not race.live and state.message == "" and 0 < state.at <= race.n_steps
    assert len(first.belief_step) and not len(second.belief_step)
    drawn = second.since[-1][second.since[-1] > 0]
    assert (np.diff(drawn) == 1).all()  # the twin writes from left to right


class Slow(DiffusionTransformer):
    """Each pass takes a fifth of a second."""

    def features(self, z_t, t=None):
        time.sleep(0.2)
        return super().features(z_t, t)


def test_closing_and_a_new_run_interrupt_sampling(window, model, tokenizer):
    slow = Slow(model.config).eval()
    asked = Settings(steps=4000, length=40)
    worker = Worker(slow, tokenizer, "title")
    worker.run(asked)
    quit_after(0.7)
    record, state = show(window, waiting_record("", asked, tokenizer), State(), worker)
    assert record.live and state.busy.startswith("Sampling")
    worker.run(replace(asked, prompt="In the"))
    end = time.monotonic() + 20
    while record.settings.prompt != "In the" and time.monotonic() < end:
        time.sleep(0.02)
        record, _ = receive(worker, record, state)
    assert record.live and record.settings.prompt == "In the"
    worker.close()
    worker.thread.join(timeout=20)  # 4000 steps would take longer
    assert not worker.thread.is_alive()


def test_what_cannot_be_run_leaves_the_run_under_way_alone(window, model, tokenizer):
    asked = Settings(steps=24, length=40)
    worker = Watched(model, tokenizer, "title")
    too_long = State(settings=replace(asked, prompt="earth " * 99), request="run")
    worker.run(asked)
    record, state = show(window, waiting_record("", asked, tokenizer), too_long, worker)
    worker.close()
    assert not record.live and record.settings == asked and "only 40 fit" in state.message


def test_what_is_set_reaches_the_sampler(model, tokenizer):
    def text(**settings):
        asked = Settings(**{"steps": 1, "length": 40, **settings})
        return record_run(model, tokenizer, asked).states[-1].tolist()

    assert text(seed=1) == text(seed=1) != text(seed=2)
    assert text(seed=1, top_p=1e-9) == text(seed=2, top_p=1e-9)
    assert text(seed=1, temperature=0.001) != text(seed=1)
    with pytest.raises(UserError, match="context of 40"):
        text(length=10**15)


def test_letters_of_many_sizes_keep_no_file_open():
    process, fonts = psutil.Process(), Fonts()
    before = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
    for size in range(8, 108):
        fonts.width("word", size)
    after = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
    assert after < before + 10


def test_any_title_can_be_drawn(record, fonts):
    odd = replace(record, title="caf\udce9 \x07")
    picture(odd, State(), (640, 480), fonts)


def test_the_worker_reports_mistakes(model, tokenizer):
    worker = Worker(model, tokenizer, "title")
    worker.run(Settings(length=40, prompt="word " * 100))
    kind, line = worker.news.get(timeout=5)
    assert kind == "error" and line.endswith("only 40 fit: shorten it")
    worker.close()


def test_the_worker_outlives_what_nobody_foresaw(model, tokenizer):
    class Broken(DiffusionTransformer):
        def features(self, *_):
            raise TypeError("this device has no float64")

    worker = Worker(Broken(model.config).eval(), tokenizer, "title")
    worker.run(Settings(length=40))
    news = [worker.news.get(timeout=5)]
    while news[-1] != ("busy", ""):
        news.append(worker.news.get(timeout=5))
    assert ("error", "TypeError: this device has no float64") in news and worker.thread.is_alive()
    worker.close()


def test_the_twin_with_nothing_to_write(twin, tokenizer):
    prompt = "In the beginning"
    asked = Settings(length=len(tokenizer.encode(prompt)), prompt=prompt)
    run = record_run(twin, tokenizer, asked)
    assert run.calls.tolist() == list(range(asked.length + 1))
    assert lay_out(run, State(), (1000, 700), RULER)


def test_the_twin_reads_the_prompt_token_by_token(twin, tokenizer):
    run = record_run(twin, tokenizer, Settings(length=40, prompt="In the beginning"))
    first = int((run.states[-1] != run.states[0]).argmax())
    before = [step for step in range(41) if (run.states[run.row(step)] == run.states[0]).all()]
    assert before == list(range(first + 1)) and run.calls[first + 1] == first + 1


def test_a_recording_plays_without_a_model(window, record):
    pygame.event.post(key(pygame.K_RETURN, "\r"))
    quit_after(0.3)
    _, state = show(window, record, State())
    assert "recording" in state.message


# -- drawing, files, terminal


@pytest.mark.parametrize("theme", list(THEMES))
@pytest.mark.parametrize("view", list(VIEWS))
@pytest.mark.parametrize("size", [(640, 480), (1000, 700), (1600, 1000)])
def test_frames(record, fonts, size, view, theme):
    state = State(view=view, theme=theme, at=12.0)
    surface, colors = picture(record, state, size, fonts), THEMES[theme]
    items = lay_out(record, state, size, fonts)
    assert surface.get_at((0, 0))[:3] == colors.page and inside(items, size)
    for item in items:
        x, y = round(item.x), round(item.y)
        if item.part == "token" and item.kind == "box":
            box = pygame.Rect(x, y, int(item.w), int(item.h))
            pixels = pygame.surfarray.array3d(surface.subsurface(box)).reshape(-1, 3)
            near = np.abs(pixels.astype(int) - item.color).max(axis=1) <= 2
            assert near.mean() > 0.05, item  # the rest may be letters
        if item.kind == "text" and item.text.strip():
            box = pygame.Rect(x, y, int(item.w), int(item.h)).clip(surface.get_rect())
            part = pygame.surfarray.array3d(surface.subsurface(box)).astype(int)
            assert np.abs(part - part[0, 0]).max() > 20, item  # there are letters in it


def test_fonts_know_what_they_lack(fonts):
    assert fonts.width("ab", 20) == 2 * fonts.width("a", 20)
    for text in (
        "e\u0301",
        "中文",
        "🙂",
        "\ufffd",
        "✓ и ש",
        "\ufe0f",
        "\u200b",
        "\u200d",
        "❤\ufe0f",
    ):
        image = fonts.image(text, 20, (9, 9, 9))
        assert image.get_width() == max(1, fonts.width(text, 20))


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_files(record, tmp_path, kind):
    path = tmp_path / f"out.{kind}"
    save(path, record, State(), (400, 300), n_frames=7)
    image = Image.open(path)
    if kind == "png":
        assert image.size == (800, 900)
        save(path, record, State(), (400, 300), at=0.5)
        assert Image.open(path).size == (400, 300)
    else:
        assert image.size == (400, 300) and 2 <= image.n_frames <= 7


def test_mp4_needs_its_library(record, tmp_path, monkeypatch):
    save(tmp_path / "out.mp4", record, State(), (401, 301), n_frames=5)
    assert (tmp_path / "out.mp4").read_bytes()[4:8] == b"ftyp"
    n_frames, _ = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "out.mp4"))
    assert n_frames >= 5
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install imageio-ffmpeg"):
        save(tmp_path / "out.mp4", record, State(), (401, 301))


def test_inline_in_a_notebook(model, tokenizer):
    masks = torch.full((2, 40), tokenizer.mask_id)
    trajectory = sample(model, masks, 8, generator=torch.Generator().manual_seed(0))
    for view, helper in (("text", None), ("belief", model)):
        shown = show_inline(trajectory, tokenizer, helper, view, row=1, size=(300, 200), n_frames=4)
        assert Image.open(io.BytesIO(shown.data)).size == (300, 200)
        assert shown.alt == tokenizer.decode(trajectory.tokens[1].tolist())
        other = show_inline(trajectory, tokenizer, helper, view, size=(300, 200), n_frames=4)
        assert other.data != shown.data


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_terminal(record, monkeypatch):
    out = io.StringIO()
    play_in_terminal(record, State(), out)
    finished = text_frame(record, 99, "text", THEMES["dark"], 78, colors=False)
    assert "\x1b" not in out.getvalue() and out.getvalue().endswith("\n".join(finished) + "\n\n")
    monkeypatch.setattr(shutil, "get_terminal_size", lambda _: os.terminal_size((60, 9)))
    out = Terminal()
    play_in_terminal(record, State(), out, seconds=0.2)
    assert "\x1b[38;2;" in out.getvalue() and "masked 0" in out.getvalue()
    monkeypatch.setattr(shutil, "get_terminal_size", lambda _: os.terminal_size((40, 9)))
    out = Terminal()
    play_in_terminal(record, State(), out, seconds=0.2)
    shown = re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", out.getvalue())
    assert max(map(len, re.split(r"[\r\n]+", shown))) < 40  # a longer one would take two lines
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    play_in_terminal(record, State(), out, seconds=0.2)
    assert "\x1b[38" not in out.getvalue()


# -- the command line


def test_save_and_replay(checkpoint, tmp_path, capsys):
    run, gif = str(tmp_path / "run.safetensors"), str(tmp_path / "out.gif")
    assert (
        sample_visual.main([checkpoint, "--save", run, "--steps", "6", "--prompt", "In the _"]) == 0
    )
    assert (
        sample_visual.main(["--replay", run, "--save", gif, "--size", "300x200", "--frames", "4"])
        == 0
    )
    assert Image.open(gif).size == (300, 200)
    capsys.readouterr()
    assert sample_visual.main(["--replay", run, "--text"]) == 0
    out = capsys.readouterr()
    assert out.out.startswith("step 0/6  t 1.00") and out.err == ""


def test_race_from_the_command_line(checkpoint, model, twin, tokenizer, tmp_path, capsys):
    path, gif = str(tmp_path / "tiny-twin.safetensors"), str(tmp_path / "race.gif")
    save_checkpoint(path, twin, tokenizer, {})
    asked = [checkpoint, "--race", path, "--steps", "6"]
    assert sample_visual.main([*asked, "--save", gif, "--size", "700x300", "--frames", "5"]) == 0
    assert Image.open(gif).n_frames > 1
    assert sample_visual.main([*asked, "--text"]) == 0
    out = capsys.readouterr().out
    assert out.count("masked 40") == 2 and out.count("masked 0") >= 2
    other = BPETokenizer.train(TEXT + "zebra crossing " * 9, 300)
    save_checkpoint(tmp_path / "other-twin.safetensors", twin, other, {})
    for arguments in (
        [checkpoint, "--race", checkpoint, "--text"],  # no twin
        [path, "--race", path, "--text"],
        [checkpoint, "--race", str(tmp_path / "other-twin.safetensors"), "--text"],
        [checkpoint, "--race", str(tmp_path / "missing-twin.safetensors"), "--text"],
        [*asked, "--save", str(tmp_path / "race.safetensors")],
        ["--race", path, "--replay", gif, "--text"],
    ):
        assert sample_visual.main(arguments) == 2, arguments
        assert capsys.readouterr().err.count("\n") == 1, arguments
    assert sample_visual.main([path, "--text"]) == 0  # the twin alone


def test_the_plain_command_opens_a_window(checkpoint, monkeypatch):
    shown = []

    monkeypatch.setattr(sample_visual, "show", lambda *arguments: shown.append(show(*arguments)))
    monkeypatch.setattr(sample_visual, "Worker", Watched)
    assert (
        sample_visual.main([checkpoint, "--steps", "6", "--prompt", "In the _", "--view", "order"])
        == 0
    )
    record, state = shown[0]
    assert not record.live and record.n_steps == 6 and state.view == "order" and state.at > 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--steps", "0"], "steps must be at least 1"),
        (["--steps", "1000000000"], "steps must be at most"),
        (["--temperature", "0"], "temperature must be"),
        (["--top-p", "1.5"], "top_p"),
        (["--prompt", "word " * 50], "shorten it"),
        (["--length", "41"], "more than the model's context"),
        (["--length", "0"], "length"),
        (["--seed", "-1"], "seed"),
        (["--size", "big"], "size"),
        (["--save", "out.bmp"], ".gif"),
        (["--save", "out.png", "--at", "2"], "--at"),
        (["--save", "out.gif", "--frames", "0"], "--frames"),
        (["--save", "out.gif", "--size", "4000x3000"], "GB of memory"),
    ],
)
def test_mistakes_get_one_line(checkpoint, capsys, arguments, message):
    headless = [] if "--save" in arguments else ["--text"]
    assert sample_visual.main([checkpoint, *headless, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_bad_files_get_one_line(checkpoint, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    for arguments in (
        [str(tmp_path / "missing.safetensors"), "--text"],
        [str(tmp_path / "file"), "--text"],
        ["--replay", str(tmp_path / "missing"), "--text"],
        ["--replay", checkpoint, "--text"],
        [checkpoint, "--steps", "2", "--save", str(tmp_path / "file" / "out.png")],
        [checkpoint, "--save", str(tmp_path)],
    ):
        assert sample_visual.main(arguments) == 2, arguments
        assert capsys.readouterr().err.count("\n") == 1, arguments


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a display")
def test_without_a_display(checkpoint, monkeypatch, capsys):
    for name in ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert sample_visual.main([checkpoint]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--save" in error and "--text" in error


def test_the_colour_is_the_probability(record):
    theme, T = THEMES["dark"], record.n_steps
    settled = [i for i in np.flatnonzero(record.since[-1]) if T - record.since[-1, i] > T / 16 + 1]
    assert settled
    for i in settled:  # not the last ones, which still glow
        look = token_look(record, i, T, "text", theme)
        assert look.ink == probability_color(record.probability[i], theme)


def test_a_pasted_book_does_not_stop_the_window():
    began = time.perf_counter()
    for text in ("a" * 100_000, "a" * 100_001):
        items = lay_out(made_up("abc"), State(draft=text), (1000, 700), Fonts())
        shown = [item.text for item in items if item.part == "draft"]
        assert shown[0].endswith("a▏") and 20 < len(shown[0]) < 1000
        state = State(settings=Settings(prompt=text))
        lay_out(made_up("abc"), state, (1000, 700), Fonts())
    assert time.perf_counter() - began < 20  # measuring each of its ends would take minutes


def test_a_terminal_shows_the_end_of_a_long_text(monkeypatch):
    size = os.terminal_size((40, 10))
    monkeypatch.setattr("visual.terminal.shutil.get_terminal_size", lambda *_: size)
    out = io.StringIO()
    out.isatty = lambda: True
    run = made_up([f"word{i} " for i in range(60)])
    play_in_terminal(run, State(), out, seconds=0.1)
    assert "word59" in out.getvalue().rsplit("\x1b[K", 1)[1]


def test_a_video_that_cannot_be_made_is_one_line(tmp_path, monkeypatch):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")

    def fails(*_, **__):
        raise RuntimeError("No ffmpeg exe could be found")
        yield

    monkeypatch.setattr(imageio_ffmpeg, "write_frames", fails)
    with pytest.raises(UserError, match="No ffmpeg exe"):
        save(tmp_path / "x.mp4", made_up("abc"), State(), (200, 100), n_frames=2)


EXPECTED = {
    "ancestral": sample,
    "plain": sample_plain,
    "first-hitting": sample_first_hitting,
    "confident": sample_confident,
    "remask": sample_remask,
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_sampler_asked_for_is_the_one_that_runs(name, checkpoint, model, tokenizer, tmp_path):
    path = str(tmp_path / "run.safetensors")
    assert sample_visual.main([checkpoint, "--save", path, "--steps", "6", "--sampler", name]) == 0
    run, z = load_record(path), torch.full((1, 40), tokenizer.mask_id)
    drawn = EXPECTED[name](model, z, 6, generator=torch.Generator().manual_seed(1))
    assert run.settings.sampler == name and run.states[-1].tolist() == drawn.tokens[0].tolist()
    assert len(run.belief_step)  # a recording keeps what the model believed


def test_an_animation_goes_from_the_first_step_to_the_last(record, tmp_path, monkeypatch):
    shown = []

    def watched(record, state, *more):
        shown.append(state.at)
        return picture(record, state, *more)

    monkeypatch.setattr("visual.files.picture", watched)
    save(tmp_path / "out.gif", record, State(), (300, 200), n_frames=4)
    save(tmp_path / "out.png", record, State(), (300, 200), at=0.5)
    assert shown == pytest.approx([0, 8, 16, 24, 12])
