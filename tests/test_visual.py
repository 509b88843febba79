"""The window: layout and state as pure functions, frames, files, the terminal, the command line."""

import io
import os
import re
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
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
from bpe_tokenizer import BPETokenizer
from conftest import make_model, tiny
from files import UserError
from mdlm.blocks import BlockDenoiser, sample_blocks
from mdlm.model import DiffusionTransformer
from mdlm.sampling import sample, sample_confident
from mdlm.sudoku import TOKENIZER as BYTES
from mdlm.sudoku import is_valid
from saving import save_checkpoint
from visual.colors import THEMES, mix, probability_color, readable_on, viridis
from visual.controls import ACTIONS, CHOICES, END, KEYS, VIEWS, State, advance, handle, on_event
from visual.drawing import Canvas, Fonts, font_paths
from visual.field import Field
from visual.files import pictures, save, show_inline
from visual.items import Layout, glide, visible
from visual.page import lay_out
from visual.record import (
    MASKED,
    SAMPLERS,
    Record,
    Settings,
    add_trajectory,
    companions,
    facts,
    leftwards,
    on_one_clock,
    pieces,
    rivals,
)
from visual.sampler import RIVALS, begin, continued, corrupted, examples, parse_prompt, write
from visual.sudoku import CONTRADICTION, perfect, puzzle, solutions
from visual.terminal import frame, play_in_terminal
from visual.typesetting import FADE, appearance, break_lines, in_text
from visual.window import find_display, obey, open_window, show
from visual.worker import Worker, waiting

DARK = THEMES["dark"]
TEXT = "In the beginning God created the heaven and the earth. And the earth was without form.\n"
TOKENIZER = BPETokenizer.train(TEXT * 9, 300)
MODEL, TWIN = make_model(context=40), make_model(context=40, causal=True)
BLOCKS = BlockDenoiser(tiny(context=16, block=8)).eval()
BLOCKS.load_state_dict(MODEL.state_dict())
HEAD = DiffusionTransformer.head
ASKED = Settings(steps=24, length=40, prompt="In the __ God")


def sampled(model=MODEL, settings=ASKED, title="a title", show=lambda record: None):
    return write(begin(model, TOKENIZER, settings, title), show)


RECORD = sampled()
LAST = len(RECORD.rows) - 1


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


def laid(lanes, state, size=(1000, 700)):
    return lay_out(lanes, state, size, RULER)


class MadeUp:
    """What no network said."""


def made_up(tokens, n_steps=8, seed=0, step=None):
    """A record of tokens, texts or bytes, that no model wrote; with predictions."""
    noise, L = np.random.default_rng(seed), len(tokens)
    step = noise.integers(0, n_steps + 1, L) if step is None else np.array(step)
    spelled = [t if isinstance(t, bytes) else t.encode() for t in tokens]
    spelling = SimpleNamespace(token_bytes=spelled, show=lambda i: spelled[i].decode())
    record = Record(spelling, Settings(steps=n_steps, length=L), "made up", seconds=1.0, done=True)
    best, chances = noise.integers(0, L, L), noise.random(L)
    for n in np.unique([0, *step]):
        text = np.where(step <= n, np.arange(L), MASKED)
        record.add(text, n / n_steps, 1 - n / n_steps, n, noise.random(L))
        record.rows[-1].look = MadeUp()
        record.rows[-1].look.best = best, chances
        record.rows[-1].look.rivals = lambda m: [(int(best[m]), chances[m])]
    return record


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)


# -- records


@given(st.lists(st.binary(max_size=6), min_size=1, max_size=12))
def test_pieces_spell_the_bytes_wherever_tokens_cut_characters(tokens):
    shown = pieces(made_up(tokens), -1)
    assert len(shown) == len(tokens) and all(shown)
    spelled = b"".join(tokens).decode("utf-8", "replace").replace("\ufffd", "")
    assert "".join(shown).replace("·", "") == spelled.replace("·", "")


@pytest.mark.parametrize("step", [[1, 1, 5, 2], [1, 5, 1, 2]])
def test_a_character_is_shown_when_all_its_tokens_are_there(step):
    run = made_up([b"a", "🙂".encode()[:1], "🙂".encode()[1:], b" b"], step=step)
    assert pieces(run, -1) == ("a", "·", "🙂", " b")
    assert set(pieces(run, run.at(3 / 8))[1:3]) == {"·", None}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_sampler_asked_for_runs_with_the_settings_asked_for(name):
    asked = Settings(steps=30, length=40, sampler=name, seed=5, temperature=0.7, top_p=0.9)
    run = sampled(settings=asked)
    options = dict(generator=torch.Generator().manual_seed(5), temperature=0.7, top_p=0.9)
    masks = torch.full((1, 40), TOKENIZER.mask_id)
    made = getattr(mdlm.sampling, SAMPLERS[name])(MODEL, masks, 30, **options)
    exact = add_trajectory(Record(TOKENIZER, asked), made)  # without watching the network
    assert run.done and run.masked(0) == 40 and run.rows[-1].calls == made.calls.sum()
    assert texts(run) == texts(exact)
    for mine, other in zip(run.rows, exact.rows, strict=True):
        drawn = mine.text == made.tokens[0].numpy()  # a trajectory keeps the last draws only
        np.testing.assert_array_equal(mine.probability[drawn], other.probability[drawn])
        assert name == "plain" or mine.calls == other.calls
        # in continuous time the steps have no moments of their own
        assert name == "first-hitting" or mine.time == pytest.approx(other.time)
        assert mine.t == pytest.approx(1 - mine.time)


def test_predictions_are_those_of_the_samplers_own_network_calls():
    calls = []
    hook = MODEL.norm.register_forward_hook(lambda *_: calls.append(1))
    run = sampled(settings=Settings(steps=24, length=40))
    hook.remove()
    assert len(calls) == run.rows[-1].calls == sum(row.look is not None for row in run.rows)
    for n, row in enumerate(run.rows[:-1]):
        i = int(np.flatnonzero(row.text == MASKED)[-1])
        z = torch.from_numpy(np.where(row.text == MASKED, TOKENIZER.mask_id, row.text))[None]
        p = MODEL(z)[0, i].exp().detach()
        best, found = p.topk(RIVALS), rivals(run, n, i)
        assert found[0][:2] == (int(best.indices[0]), TOKENIZER.show(int(best.indices[0])))
        np.testing.assert_allclose([p for *_, p in found], best.values, rtol=0.1)
        token, chance, bits = (column[-1] for column in row.look.best)
        assert token == best.indices[0] and chance == pytest.approx(best.values[0].item(), rel=0.1)
        assert bits == pytest.approx(float(torch.special.entr(p).sum() / np.log(2)), rel=0.1)
        for j in np.flatnonzero(run.rows[n + 1].since == n + 1):  # what was drawn had rivals
            assert rivals(run, n + 1, j) == rivals(run, n, j)
            chances = {token: p for token, _, p in rivals(run, n, j)}
            assert row.text[j] == MASKED and run.rows[n + 1].probability[j] == pytest.approx(
                chances.get(run.rows[n + 1].text[j], run.rows[n + 1].probability[j]), rel=0.01
            )
    assert rivals(RECORD, LAST, 0) == []  # what is given had none


def texts(record):
    return [row.text.tolist() for row in record.rows]


def test_a_prompt_is_texts_and_masks_without_spaces_before_them():
    for prompt, parts in [
        ("In the _", ["In the ", 1]), ("a __ b _", ["a ", 2, " b ", 1]), (r"\_", ["_"]),
        (r"a\_b _", ["a_b ", 1]), ("a\n", ["a\n"]), ("", []),
    ]:  # fmt: skip
        assert parse_prompt(prompt) == parts
    for prompt in ("In the ", "In the _", "In the __"):
        text = begin(MODEL, TOKENIZER, replace(ASKED, prompt=prompt)).rows[0].text.tolist()
        assert text == TOKENIZER.encode("In the") + [MASKED] * (
            40 - len(TOKENIZER.encode("In the"))
        )


def test_what_is_given_stays_and_gaps_are_filled_call_by_call():
    seen, start = [], begin(MODEL, TOKENIZER, ASKED).rows[0].text
    began = time.perf_counter()

    def watch(record):
        assert not record.done and record.edge == record.rows[-1].time
        seen.append(len(record.rows))
        time.sleep(0.02)

    run = sampled(show=watch)
    taken = time.perf_counter() - began
    assert run.seconds < taken - 0.02 * len(seen)  # to show it is not the sampler's time
    given = TOKENIZER.encode("In the") + [MASKED] * 2 + TOKENIZER.encode(" God")
    assert start.tolist() == given + [MASKED] * (40 - len(given))
    for row in run.rows:
        assert (row.text == start)[start >= 0].all()
    assert run.masked(-1) == 0 and ((run.rows[-1].since == 0) == (start >= 0)).all()
    assert seen == list(range(1, len(run.rows))) and run.edge == 1
    for i in range(40):
        together = run.rows[-1].since == run.rows[-1].since[i]
        expected = set(np.flatnonzero(together)) - {i} if run.rows[-1].since[i] else set()
        assert set(companions(run, LAST, i)) == expected
    twin = sampled(TWIN)  # from left to right, a call for each token
    steps = [0 if token >= 0 else i for i, token in enumerate(start, 1)]
    assert [twin.rows[n].calls for n in twin.rows[-1].since] == steps and twin.causal


def test_blocks_come_from_left_to_right_and_are_shown_word_by_word():
    asked = Settings(steps=16, length=28, prompt="In the", seed=3)  # half as many steps as tokens
    seen = []
    run = sampled(BLOCKS, asked, show=lambda record: seen.append(record.rows[-1].text))
    noise = torch.Generator().manual_seed(3)
    z = torch.from_numpy(np.where(run.rows[0].text == MASKED, TOKENIZER.mask_id, run.rows[0].text))
    made = sample_blocks(BLOCKS, z[None], 5, noise, sampler=sample)
    assert (run.rows[-1].text == made.tokens[0].numpy()).all() and run.block == 8
    assert run.rows[-1].calls == made.calls.sum() == len(seen)
    np.testing.assert_array_equal(run.rows[-1].probability, made.probability[0])
    times = [row.time for row in run.rows]
    assert times == sorted(set(times)) and run.masked(-1) == 0
    for n, row in enumerate(run.rows[:-1]):
        masks = np.flatnonzero(row.text == MASKED)
        block = masks[0] // 8  # those before it are finished, those behind it untouched
        assert set(range(8 * block + 8, 28)) <= set(masks)
        assert dict(facts(run, n))["block"] == f"{block + 1}/4"
        assert len(rivals(run, n, masks[0])) == RIVALS
        assert bool(rivals(run, n, 27)) == (block == 3)  # later blocks are not predicted
        assert appearance(run, n, row.time, "prediction", DARK)[27][0] is None or block == 3
    sure = sampled(BLOCKS, replace(asked, sampler="confident"))
    noise = torch.Generator().manual_seed(3)
    made = sample_blocks(BLOCKS, z[None], 5, noise, sampler=sample_confident)
    assert (sure.rows[-1].text == made.tokens[0].numpy()).all()


def test_a_text_in_blocks_ends_by_itself(monkeypatch):
    long = sampled(BLOCKS, Settings(steps=256, length=64)).rows[-1].text.tolist()
    end = next(k for k in range(20, 60) if long[k] not in long[:k])
    monkeypatch.setattr(TOKENIZER, "encode", lambda text: [long[end]] if text == "\n\n" else [])
    run = sampled(BLOCKS, Settings(steps=256, length=0))
    assert run.rows[-1].text.tolist() == long[: end + 1] and run.rows[-1].time == 1
    assert run.masked(0) == run.length == end + 1 and run.masked(-1) == 0
    monkeypatch.setattr(TOKENIZER, "encode", lambda text: [TOKENIZER.mask_id])
    assert sampled(BLOCKS, Settings(steps=256, length=0)).rows[-1].text.tolist() == long


def test_side_by_side_runs_share_the_clock_of_their_seconds():
    first, second = made_up("abcdefgh", step=[2, 3, 3, 5, 5, 6, 6, 6]), made_up("abcdefgh")
    first.seconds, second.seconds = 2.0, 0.5
    slow, fast = on_one_clock([first, second])
    calls = first.rows[-1].calls
    assert [row.time for row in slow.rows] == pytest.approx([r.calls / calls for r in first.rows])
    assert fast.rows[-1].time == pytest.approx(0.25) and first.rows[1].time == 2 / 8
    told = [dict(facts(lane, len(lane.rows) - 1, alone=False)) for lane in (slow, fast)]
    assert [each["seconds"] for each in told] == ["2.00", "0.50"]


# -- layout

ODD_PIECES = st.one_of(
    st.sampled_from([" the", "ed", ",", "\n", "\n\n", " ", "   ", "·", "\ufffd", "\t", "\x00"]),
    st.sampled_from(["🙂", "👨\u200d👩\u200d👧", "e\u0301", "\u0301", "中文", " ק", "x" * 300]),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
)
TOKENS = st.lists(ODD_PIECES, min_size=1, max_size=40)


def check_layout(page, size):
    """Nothing is outside of the window, and nothing overlaps what it should not."""
    for item in page.items:
        assert item.x >= -0.01 and item.x + item.w <= size[0] + 0.01, item
        assert item.y >= -0.01 and item.y + item.h <= size[1] + 0.01, item
        assert "\n" not in item.text
    under = [item for items in (*page.rows, *page.words) for item in items]
    for items in (anchors(page), [item for item in under if item.kind == "text"]):
        for n, a in enumerate(items):
            for b in items[n + 1 :]:
                wide = min(a.x + a.w, b.x + b.w) - max(a.x, b.x)
                tall = min(a.y + a.h, b.y + b.h) - max(a.y, b.y)
                assert wide <= 0.01 or tall <= 0.01, (a, b)


def anchors(page):
    return [word[0] for word in page.words]


@settings(max_examples=150)
@given(TOKENS, st.integers(200, 1700), st.integers(200, 1100), st.data())
def test_nothing_overlaps_and_nothing_is_outside(tokens, width, height, data):
    lanes, size = [made_up(tokens)], (width, height)
    if data.draw(st.booleans()):
        lanes = on_one_clock([*lanes, made_up(tokens, n_steps=5, seed=1)])
    state = State(view=data.draw(st.sampled_from(list(VIEWS))), controls=data.draw(st.booleans()))
    state = replace(state, at=data.draw(st.floats(0, END)), mouse=(width / 3, height / 3))
    state = replace(state, selected=data.draw(st.sets(st.integers(0, len(tokens) - 1))))
    page = laid(lanes, state, size)
    check_layout(page, size)
    again = laid(lanes, replace(state, view="text", theme="light"), size)
    assert [a[1:5] for a in anchors(page)] == [a[1:5] for a in anchors(again)]  # in all views
    commands = {item.command.partition(" ")[0] for row in page.rows for item in row}
    assert state.controls or commands <= {"", "view", "timeline"}
    if min(size) > 600:  # all the text is there
        shown = {item.token for item in page.items} - {None}
        assert shown == set(range(len(tokens) * len(lanes)))


def places(record, at, size=(1000, 700)):
    return {a.token: a[1:5] for a in anchors(laid([record], State(at=at), size))}


def test_a_text_looks_the_same_while_it_is_sampled_and_afterwards():
    live = []

    def watch(record):
        live.append(places(record, record.edge))
        lay_out([record], State(at=record.edge / 2), (500, 400), RULER)

    run = sampled(show=watch)
    again = replace(run, layouts={})
    assert [places(again, row.time) for row in again.rows[:-1]] == live
    # the future does not matter: an end of long words changes nothing before it
    other = made_up(["a"] * 30 + ["x" * 50] * 3, step=[1] * 30 + [8] * 3)
    assert places(other, 0.5) == places(made_up(["a"] * 33, step=[1] * 30 + [8] * 3), 0.5)
    widths = {w for token, (_, _, w, _) in places(other, 0).items()}
    assert max(widths) - min(widths) < 1e-6  # all masks are equally wide
    sizes = np.random.default_rng(1).choice([1, 2, 3, 3, 3, 4, 4, 5, 6, 9], 100)
    run = made_up([" " + "x" * n for n in sizes], n_steps=90)
    lines = [[y for _, y, *_ in places(run, row.time, (700, 700)).values()] for row in run.rows]
    assert np.mean([np.equal(a, b).mean() for a, b in pairwise(lines)]) > 0.98  # few change lines


def test_words_slide_to_their_places():
    a, b = (
        lay_out([made_up(["a", " b", " c"], step=[1, 2, 3])], State(at=k / 8), (900, 600), RULER)
        for k in (1, 2)
    )
    (x,), (y,) = ([item.x for item in anchors(page) if item.token == 2] for page in (a, b))
    assert x > y  # " b" is shorter than a mask
    shown, seen = a, []
    for _ in range(60):
        shown, moves = glide(shown, b, 1 / 60)
        seen.append(next(item.x for item in anchors(shown) if item.token == 2))
        assert moves or shown == b
    assert x > seen[0] > seen[5] > y and shown == b and seen == sorted(seen, reverse=True)
    assert glide(None, b, 1 / 60) == (b, False)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=20, max_size=40), st.integers(0, 99))
def test_words_that_slide_never_cover_each_other(sizes, seed):
    size, shown = (600, 500), None
    run = made_up([" " + "x" * n for n in sizes], n_steps=12, seed=seed)
    for at in np.linspace(0, END, 20):
        page = laid([run], State(at=at, controls=False), size)
        shown, _ = glide(shown, page, 1 / 30)
        check_layout(shown, size)
        places = {box.token: box for box in anchors(page)}
        assert all(box.y == places[box.token].y for box in anchors(shown))  # in their lines
    while (then := glide(shown, page, 1 / 30))[1]:
        shown = then[0]
    assert then[0] is page


def test_hebrew_and_arabic_read_from_right_to_left():
    spots, _ = break_lines([" אב", " גד", " ab", " cd", " 12", None], 500, RULER, 10, rtl=True)
    x = [spot.x for spot in spots]
    assert x[0] > x[1] > x[3] > x[2] and x[0] + spots[0].w == 500  # the English in its own order
    assert x[5] < x[4]  # a mask is read after what comes before it
    spots, _ = break_lines(["ab", " אב", " גד", " cd"], 500, RULER, 10)
    assert [spot.token for spot in sorted(spots, key=lambda spot: spot.x)] == [0, 2, 1, 3]
    hebrew, english = (
        made_up(tokens).tokenizer for tokens in ([" שלום", "עולם", " a"], [" ab", " cd", " שלום"])
    )
    assert leftwards(hebrew) and not leftwards(english)
    joined = [spot.text for spot in break_lines([" سل", "ام", " و"], 500, RULER, 10, rtl=True)[0]]
    assert joined == ["سل\u200d", "\u200dام", "و"]  # the letters are joined across tokens


@settings(max_examples=60)
@given(TOKENS, st.integers(1, 400), st.integers(9, 30))
def test_lines_hold_the_whole_text_in_order(tokens, width, size):
    spots, n_lines = break_lines(tokens, width, RULER, size)
    order = [(spot.line, spot.token) for spot in spots]
    assert order == sorted(order) and n_lines == 1 + spots[-1].line
    assert all(spot.x + spot.w <= width + 1e-6 for spot in spots)
    for i, piece in enumerate(tokens):
        text = "".join(spot.text for spot in spots if spot.token == i)
        text, piece = (re.sub("[◌\u200d]", "", part) for part in (text, visible(piece)))
        cut = RULER.width(piece + "◌\u200d\u200d", size) > width
        assert cut or text in (piece, piece[1:])


def test_lines_break_between_words_and_at_line_breaks():
    spots, _ = break_lines(["a", "\n", " b", "c", " d"], 50, RULER, 10)
    assert [(s.line, s.text) for s in spots] == [(0, "a"), (0, "↵"), (1, "b"), (1, "c"), (1, "d")]
    spots, _ = break_lines([" aaaa", " bb", "bb"], 40, RULER, 10)
    assert [s.line for s in spots] == [0, 1, 1]  # a word of two tokens is not torn apart
    assert [s.x for s in spots] == [0, 0, 12]  # no space begins a line


@pytest.mark.parametrize("size", [(200, 200), (361, 259), (640, 480), (1601, 999), (3840, 2160)])
def test_help_live_runs_prompts_and_messages_fit(size):
    far = Settings(prompt="long " * 100, seed=2**62, sampler="first-hitting")
    states = [State(help=True), State(settings=far), State(touring=True, at=0.5)]
    states += [
        State(prompt=Field("a " * 2**17 + "end", 2**18 + 3, 5)),
        State(prompt=Field("ab", 1)),
    ]
    states += [State(message="m" * 300), State(busy="b" * 300, view="prediction")]
    fresh = begin(MODEL, TOKENIZER, ASKED, "t" * 200)
    for state in states:
        for shown in (RECORD, fresh, waiting(40)):
            page = laid([shown], state, size)
            check_layout(page, size)
            if state.prompt and len(state.prompt.text) > 9:  # the end of what is typed is seen
                assert any(item.text.endswith("end") for item in page.items)
            if state.help and size[0] > 400:  # it does not hide what it explains
                hidden = max(item.y + item.h for item in page.overlay)
                assert all(item.y >= hidden for item in page.items if item.command == "play")


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
    i = int(RECORD.rows[-1].since.argmax())
    token = RECORD.rows[0].look.best[0][-1]
    last = int(np.flatnonzero(RECORD.rows[0].text == MASKED)[-1])
    shown = appearance(RECORD, 0, 0, "prediction", DARK)[last]
    assert shown[0] == in_text(TOKENIZER.show(int(token)))
    assert appearance(RECORD, 0, 0, "text", DARK)[i][::2] == (None, DARK.mask)
    end = {view: appearance(RECORD, LAST, END, view, DARK) for view in VIEWS}
    for i, since in enumerate(RECORD.rows[-1].since):
        _, ink, paper = end["text"][i]
        assert paper is None  # nothing glows at the end
        probability = RECORD.rows[-1].probability[i]
        assert ink == (probability_color(probability, DARK) if since else DARK.ink)
        if since:
            time, n = RECORD.rows[since].time, int(since)
            assert appearance(RECORD, n, time, "text", DARK)[i][2] not in (None, DARK.mask)
            assert end["order"][i][2] == viridis(time)
            glow = appearance(RECORD, n, time + FADE / 2, "text", DARK)[i][2]
            assert glow == mix(DARK.page, DARK.accent, 0.55 / 4)
    taken = made_up([" one", " two"], step=[1, 2])
    taken.add(np.array([MASKED, 1]), 0.5, 0.5)  # a mask again: that is seen, too
    glows = [appearance(taken, 3, at, "text", DARK)[0][2] for at in (0.5, 0.52, 0.6)]
    assert glows[2] == DARK.mask and glows[0] != glows[1] != glows[2]


# -- controls


def press(name, mod=0):
    """A key; one that types a character comes as a text."""
    if name.startswith("Ctrl+"):
        name, mod = name[5:], pygame.KMOD_CTRL
    if len(name) == 1 and not mod:
        return pygame.event.Event(pygame.TEXTINPUT, text=name)
    return pygame.event.Event(pygame.KEYDOWN, key=pygame.key.key_code(name.lower()), mod=mod)


def mouse(x, y, kind=pygame.MOUSEMOTION, button=1):
    return pygame.event.Event(kind, pos=(x, y), button=button)


LANES, NOTHING = [RECORD], Layout([], [], ())


def after(state, *events, page=None):
    for event in events:
        state = on_event(event, state, page or NOTHING, LANES)
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
    n = 5
    s = State(settings=ASKED, playing=False, at=RECORD.rows[n].time)
    before, later = RECORD.rows[n - 1].time, RECORD.rows[n + 1].time
    cases = {
        "Space": dict(playing=True), "Right": dict(at=later), "Left": dict(at=before),
        "Home": dict(at=0.0), "End": dict(at=END),
        "1": {}, "2": dict(view="order"), "3": dict(view="prediction"), "Up": dict(picked=5),
        "Down": dict(picked=1), "+": dict(settings=replace(ASKED, steps=48)),
        "=": dict(settings=replace(ASKED, steps=48)), "Return": dict(request="run"),
        "-": dict(settings=replace(ASKED, steps=12)), "Enter": dict(request="run"),
        "Ctrl+N": dict(request="new"),
        "Ctrl+T": dict(theme="light"), "F1": dict(help=True), "?": dict(help=True), "Escape": {},
        "Ctrl+Q": dict(request="quit"), "Tab": dict(prompt=Field(ASKED.prompt, 13, 13)),
        "Ctrl+A": dict(head=0),
        "Ctrl+Z": dict(request="undo"), "Ctrl+C": dict(request="copy"),
        "Ctrl+B": dict(request="branch"),
        "Ctrl+D": dict(request="compare"), "Ctrl+S": dict(request="picture"),
        "Ctrl+R": dict(request="corrupt"),
        "Ctrl+G": dict(request="animation"), "F11": dict(request="fullscreen"),
        "Delete": dict(request="erase"), "Backspace": dict(request="erase"),
    }  # fmt: skip
    for name, change in cases.items():
        assert replace(after(s, press(name)), message="") == replace(s, **change), name
    assert after(s, press("+")).message == "next run: steps 48"  # where there is no room for it
    assert set(KEYS) <= set(cases)
    assert after(s, press("n", mod=pygame.KMOD_SHIFT)) == s  # it counts when it comes as a text
    assert after(replace(s, help=True), press("Escape")) == s
    assert after(s, pygame.event.Event(pygame.QUIT)).request == "quit"
    end = after(s, *[press("Right")] * 99)
    assert end.at == END and after(end, press("Left")).at == RECORD.rows[-2].time


def test_typing_a_prompt(window):
    s = State(settings=ASKED, help=True)
    s = after(s, *map(press, "péq "))  # whoever types begins another prompt, and commands nothing
    assert s == State(settings=ASKED, prompt=Field("péq ", 4, 4))
    assert after(s, press("Escape")) == after(s, press("Tab")) == State(settings=ASKED)
    assert after(State(), press("_")).prompt.text == "_" and after(State(), press(" ")) == State()
    pygame.scrap.put_text("a b\n")
    paste = press("v", mod=pygame.KMOD_SHIFT), press("v", mod=pygame.KMOD_CTRL)
    s = after(s, press("Backspace"), *paste, press("_"))
    assert s.prompt.text == "péqa b_"
    control, shift = pygame.KMOD_CTRL, pygame.KMOD_SHIFT
    all_cut = after(s, press("a", mod=control), press("x", mod=control))
    assert all_cut.prompt == Field() and pygame.scrap.get_text() == "péqa b_"
    s = after(s, press("Left", mod=control), press("Left", mod=control | shift), press("Delete"))
    assert s.prompt.text == "b_" and s.prompt.caret == 0
    started = after(State(), pygame.event.Event(pygame.TEXTEDITING, text="に", start=0, length=1))
    assert started.prompt == Field(composing="に")
    composing = after(s, pygame.event.Event(pygame.TEXTEDITING, text="に", start=0, length=1))
    assert composing.prompt.composing == "に" and after(composing, press("Return")) == composing
    s = after(composing, press("日本"[0]), press("End"), press("Backspace"), press("Return"))
    assert s.prompt is None and s.settings.prompt == "日b" and s.request == "run"


def test_a_field_edits_like_others():
    field = Field("one two", 7, 7)
    assert field.press("Left", by_word=True).caret == 4
    assert field.press("Backspace", by_word=True).text == "one "
    assert field.press("Home").press("Right", by_word=True).caret == 3
    assert field.press("Home", shift=True).selected == "one two"
    assert field.press("Home", shift=True).press("Left").span == (0, 0)
    assert field.press("Home", shift=True).type("x") == Field("x", 1, 1)
    assert field.press("Left").press("Left", shift=True).press("Delete").text == "one to"
    assert Field().press("Backspace") == Field() == Field().press("Delete")


@pytest.mark.parametrize("size", [(1000, 700), (1500, 900)])
def test_the_mouse_reaches_everything(size):
    s = State(settings=ASKED, at=END)
    page = laid(LANES, s, size)
    items = {item.command: item for item in page.items if item.command}
    line = items.pop("timeline")
    wanted = {"play", "step 1", "step -1", "theme", "help", "run", "new", "prompt"}
    wanted |= {f"view {view}" for view in VIEWS}
    wanted |= {*ACTIONS, "example 0", "example 1", "example 2"}
    wanted |= {f"{verb} {name}" for verb in ("less", "more") for name in CHOICES}
    assert set(items) == wanted

    def click(item, button=1, s=s, page=page):
        middle = item.x + item.w / 2, item.y + item.h / 2
        return after(s, mouse(*middle, pygame.MOUSEBUTTONDOWN, button), page=page)

    for command, item in items.items():
        assert replace(click(item), mouse=None) == handle(s, command, LANES), command
        assert replace(click(item, button=3), mouse=None) == s
    for _ in range(12):  # a setting that changes moves nothing under the pointer
        for name in CHOICES:
            s2 = handle(s, f"more {name}", LANES)
            moved = {i.command: i[1:5] for i in laid(LANES, s2, size).items if i.command}
            assert all(moved[c][:2] == items[c][1:3] for c in wanted if "prompt" not in c)
    full, known, done = (t for t in page.items if t.kind == "box" and t.h < 5 and line.y < t.y)
    assert done.x == full.x == line.x and done.w == full.w == line.w == known.w  # all is done
    s = click(line)
    assert s.dragging and s.at == pytest.approx(0.5, abs=0.01) and not s.playing
    s = after(s, mouse(9999, 0), page=page)
    assert s.at == END and s.mouse == (9999, 0)
    s = after(s, mouse(9999, 0, pygame.MOUSEBUTTONUP), mouse(0, 0))
    assert s.at == END  # it was let go
    assert after(s, pygame.event.Event(pygame.WINDOWLEAVE)).mouse is None


def card(state, lanes=LANES, size=(1000, 700)):
    return [item.text for item in laid(lanes, state, size).overlay if item.text]


def middle_of(token, state, size=(1000, 700)):
    item = next(a for a in anchors(laid(LANES, state, size)) if a.token == token)
    return item.x + item.w / 2, item.y + item.h / 2


def test_pointing_at_things_shows_what_is_known_of_them():
    i = int(RECORD.rows[-1].since.argmax())
    pointed = [State(at=at, mouse=middle_of(i, State(at=at))) for at in (0.0, END)]
    _, name, p = rivals(RECORD, 0, i)[0]
    assert len(card(pointed[0])) == 2 + RIVALS and card(pointed[0])[1].split() == [
        f"{p:.1%}",
        f"“{name}”",
    ]
    first, drawn, *_, last = card(pointed[1])
    assert last == "click: change it"
    assert first == f"“{TOKENIZER.show(RECORD.rows[-1].text[i])}”"
    assert drawn == f"drawn at t 0.00 with {RECORD.rows[-1].probability[i]:.1%}"
    page = laid(LANES, State())
    for item in page.items:
        if item.text in ("t ", "network calls ", "steps ", " ancestral    "):
            assert card(State(mouse=(item.x + 1, item.y + 1)))
        if item.command == "timeline":  # what follows the mouse can be seen below it
            tip = laid(LANES, State(mouse=(item.x + 1, item.y + 1))).overlay
            assert tip and all(part.y + part.h <= item.y for part in tip)
            dragging = State(mouse=(item.x + 1, item.y + 1), dragging=item)
            assert not card(dragging)  # nor is the text hidden
        if item.command.startswith("view"):  # what the caption says is not said again
            told = card(State(mouse=(item.x + 1, item.y + 1)))
            assert told == [VIEWS[item.command[5:]]] * (item.command != "view text")


def test_nobody_can_or_is_told_to_change_what_a_gpt_wrote():
    lanes = [sampled(TWIN)]
    place = anchors(laid(lanes, State(at=END)))[9]
    told = card(State(at=END, mouse=(place.x + 1, place.y + 1)), lanes)
    assert "drawn" in told[1] and "click" not in " ".join(told)
    worker = work(model=TWIN)
    worker.open()
    state = State(at=END, selected=frozenset([9]), request="erase")
    assert obey(state, worker, None, lanes).message.startswith("a GPT cannot fill gaps")


def test_settings_change_one_at_a_time_and_stay_in_range():
    for name in CHOICES:
        for verb, sign in (("less", -1), ("more", 1)):
            s = State(settings=ASKED)
            for _ in range(40):
                before, s = s.settings, handle(s, f"{verb} {name}", LANES)
                value, old = getattr(s.settings, name), getattr(before, name)
                assert replace(s.settings, **{name: old}) == before
                assert name == "sampler" or sign * value >= sign * old
            begin(MODEL, TOKENIZER, s.settings)  # raises for what cannot be run


def test_a_run_plays_to_its_end_and_starts_again():
    s = State(touring=True)
    for _ in range(9 * 60):
        s = advance(s, LANES, 1 / 60)
    assert s.at == END and not s.playing and not s.touring
    assert advance(State(), LANES, 2.0).at == 2 * advance(State(), LANES, 1.0).at > 0
    again = handle(s, "play", LANES)
    assert again.playing and again.at == 0
    half = replace(RECORD, rows=RECORD.rows[:9], done=False)  # while it is sampled
    waits = advance(State(at=half.edge), [half], 1.0)
    assert waits.at == half.edge and waits.playing and advance(State(), [half], 99).at == half.edge
    assert handle(State(), "seek 2", [half]).at == half.edge
    paused = handle(State(), "play", [half])
    assert advance(paused, [half], 1.0) == paused


# -- worker and window


def show_until(window, worker, state, condition):
    """Show the window and close it when the condition holds."""

    def watch():
        wait_for(condition)
        pygame.event.post(pygame.event.Event(pygame.QUIT))

    threading.Thread(target=watch).start()
    return show(window, worker, state)


def work(asked=ASKED, model=MODEL, twin=None):
    """A worker that has its model and has not begun."""
    rivals = [twin] if twin else []
    return Worker(lambda settings: (model, TOKENIZER, "title", rivals, settings), asked)


@pytest.mark.parametrize("twin", [None, TWIN])
def test_the_window_samples_and_plays_and_draws_only_what_has_changed(window, twin, monkeypatch):
    drawn, worker = [], work(twin=twin)
    assert worker.lanes[0].masked(0) == 40  # something to see at once
    state = State(view="prediction", playing=False, at=END)
    state = show_until(window, worker, state, lambda: worker.lanes[-1].done and not worker.busy)
    assert state.settings == ASKED
    assert [lane.causal for lane in worker.lanes] == [False, True][: 1 + bool(twin)]
    assert worker.lanes[0].title == "title" and all(lane.done for lane in worker.lanes)
    assert state.message == "" and state.playing and state.at < END
    monkeypatch.setattr("visual.window.lay_out", lambda *a: drawn.append(a) or lay_out(*a))
    end = time.monotonic() + 1
    show_until(window, worker, State(playing=False), lambda: time.monotonic() > end)
    assert 1 <= len(drawn) <= 4
    alone = replace(worker.lanes[0], layouts={})
    assert texts(alone) == texts(RECORD)


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
    impossible = State(settings=asked, request="run")
    started = lambda: len(worker.lanes[0].rows) > 2 and worker.lanes[0].settings  # noqa: E731
    worker.load = lambda settings, load=worker.load: time.sleep(0.3) or load(settings)
    state = show_until(window, worker, impossible, started)  # it waits for the model
    assert state.message == "" and not worker.lanes[0].done
    with pytest.raises(UserError, match="only 40 fit"):
        worker.run(replace(asked, prompt="earth " * 99))
    assert worker.lanes[0].settings == asked and not worker.lanes[0].done  # which goes on
    assert state.busy.startswith("Sampling")
    worker.run(replace(asked, prompt="In the"))
    wait_for(started)
    assert worker.lanes[0].settings.prompt == "In the" and not worker.lanes[0].done
    wait_for(lambda: worker.message)
    assert worker.message == "this device has no float64" and worker.thread.is_alive()
    worker.model.calls = 100
    worker.run(asked)
    worker.close()
    worker.thread.join(timeout=20)  # 4000 steps would take longer
    assert not worker.thread.is_alive()


def test_what_cannot_be_loaded_closes_the_window(window):
    def fail(settings):
        raise UserError("no checkpoint")

    with pytest.raises(UserError, match="no checkpoint"):
        show(window, Worker(fail, ASKED), State())


# -- writing with it


def test_a_run_goes_on_from_any_moment_with_other_words():
    n, i = 6, int(np.flatnonzero(RECORD.rows[6].since)[0])
    (token, _, p), before = rivals(RECORD, n, i)[-1], RECORD.rows[n]
    other = continued(RECORD, n, {i: token}, replace(ASKED, seed=9))
    assert texts(other)[: n + 1] == texts(RECORD)[: n + 1] and other.start == before.time
    write(other)
    new = other.rows[n + 1]
    assert new.text[i] == token and new.probability[i] == p and new.time == before.time
    times, kept = [row.time for row in other.rows], before.text != MASKED
    kept[i] = False
    assert times == sorted(times) and other.masked(-1) == 0 and other.rows[-1].time <= 1
    assert all((row.text[kept] == before.text[kept]).all() for row in other.rows[n:])
    assert len(RECORD.rows) == LAST + 1 and RECORD.rows[n] is before  # it is as it was
    only = continued(RECORD, LAST, {3: token}, ASKED)
    assert only.done and only.rows[-1].text[3] == token and only.start >= 1


def test_words_of_a_finished_text_are_erased_and_all_else_stays():
    again = continued(RECORD, LAST, {3: MASKED, 9: MASKED}, ASKED)
    masked, old, n = again.rows[-1], RECORD.rows[-1], len(again.rows)
    assert masked.t == 2 / 40 and again.start == masked.time < 1 and not again.done
    write(again)
    new, kept = again.rows[-1], masked.text != MASKED
    assert kept.sum() == 38 and new.time == 1 and (new.since[~kept] >= n).all()
    for now in (masked, new):  # what else is there is no more given than it was
        for name in ("text", "since", "probability"):
            assert (getattr(now, name)[kept] == getattr(old, name)[kept]).all()
    assert texts(again)[: LAST + 1] == texts(RECORD)  # its past can be seen again
    times = [row.time for row in again.rows]
    assert times == sorted(times)


def test_a_real_text_is_masked_as_t_rises_and_written_again():
    ids = np.array(TOKENIZER.encode(TEXT * 3)[:40])
    run = corrupted(MODEL, TOKENIZER, Settings(steps=20, length=40), "", ids)
    n = len(run.rows)
    assert run.masked(0) == 0 and (run.rows[0].text == ids).all()
    masks, ts = [run.masked(k) for k in range(n)], [row.t for row in run.rows]
    assert masks == sorted(masks) and ts == sorted(ts) and 20 < masks[-1] < 40
    i = int(np.flatnonzero(run.rows[-1].text == MASKED)[0])
    write(run)
    run.rows[-1].text[i] = other = ids[i] - 1
    told = card(State(at=END, selected=frozenset([i])), [run])
    assert f"“{TOKENIZER.show(other)}”" in told
    assert f"the original: “{TOKENIZER.show(ids[i])}”" in told
    same = card(State(at=0.0, selected=frozenset([i])), [run])
    assert "original" not in " ".join(same) and f"“{TOKENIZER.show(ids[i])}”" in same
    page = laid([run], State(settings=ASKED))
    assert any(
        item.text.startswith("a text of the validation set") for row in page.rows for item in row
    )
    assert run.masked(-1) == 0 and run.rows[n - 1].time == 0.5 < run.rows[n].time
    stays = run.rows[n - 1].text != MASKED
    assert (run.rows[-1].text[stays] == ids[stays]).all() and run.rows[n].t < run.rows[n - 1].t


def test_examples_are_real_lines_with_masks():
    line = "In the beginning God created {0} heavens_ and {0} earths without any form."
    lines = "\n".join(line.format(i) for i in range(9))
    beginning, gap, middle = examples(TOKENIZER, lines, 3)
    assert beginning == "In the beginning God created"
    for prompt in (gap, middle):
        kept = [part for part in parse_prompt(prompt) if isinstance(part, str)]
        assert len(kept) == 2 and kept[0].startswith("In the") and kept[1].endswith("form.")
    assert len({examples(TOKENIZER, lines, seed) for seed in range(9)}) > 1
    with pytest.raises(UserError, match="no lines"):
        examples(TOKENIZER, "short", 3)


def test_attention_is_that_of_the_network(monkeypatch):
    row, found, layer = RECORD.rows[3], [], type(MODEL.blocks[0].attention)
    z = torch.from_numpy(np.where(row.text == MASKED, TOKENIZER.mask_id, row.text))
    weights = layer.weights
    monkeypatch.setattr(layer, "weights", lambda *a: found.append(weights(*a)) or found[-1])
    MODEL(z[None])
    np.testing.assert_allclose(row.look.attention, found[0][0].detach(), atol=0.02)
    assert row.look.attention.shape == (2, 40, 40) and RECORD.heads == (1, 2)


def test_tokens_are_chosen_by_click_and_drag(window):
    s = State(at=END)
    places = [middle_of(i, s) for i in (3, 6, 1)]
    page = laid(LANES, s)
    first = after(s, mouse(*places[0], pygame.MOUSEBUTTONDOWN), page=page)
    assert first.selected == {3} and not first.playing and card(first)  # the card stays
    more = after(first, mouse(*places[1]), page=page)
    assert more.selected == {3, 4, 5, 6}
    assert after(more, mouse(*places[2]), page=page).selected == {1, 2, 3}
    up = mouse(*places[1], pygame.MOUSEBUTTONUP)
    let_go = after(more, up, mouse(*places[2]), page=page)
    assert let_go.selected == {3, 4, 5, 6}
    assert after(let_go, press("Escape")).selected == set()
    assert after(let_go, mouse(1, 1, pygame.MOUSEBUTTONDOWN), page=page).selected == set()
    again = mouse(*places[0], pygame.MOUSEBUTTONDOWN)
    assert after(replace(first, dragging=None), again, page=page).selected == set()


def test_a_word_that_is_chosen_shows_what_can_be_done_with_it(window):
    alone = State(at=END, selected=frozenset([9]))
    page = laid(LANES, alone)
    areas = {item.command: item for item in page.overlay if item.kind == "area"}
    assert set(areas) == {"erase", "attend", *(f"put {t}" for t, *_ in rivals(RECORD, LAST, 9))}
    for command in set(areas) - {"attend"}:
        place = areas[command].x + 1, areas[command].y + 1
        clicked = after(alone, mouse(*place, pygame.MOUSEBUTTONDOWN), page=page)
        assert clicked.request == command
        (lit,) = {
            item.command
            for item in laid(LANES, replace(alone, mouse=place)).overlay
            if item.color == DARK.line and item.kind == "box"
        }  # and that can be seen
        assert lit == command
    masks = State(at=0.0, selected=frozenset([9]))
    assert "erase" not in " ".join(card(masks)) and "other words" in " ".join(card(masks))
    for state, ends in (
        (alone, companions(RECORD, LAST, 9)),  # what was drawn with it
        (
            replace(alone, head=1),
            RECORD.rows[RECORD.rows[-1].since[9] - 1].look.attention[0, 9].argsort()[-12:],
        ),
    ):
        page = laid(LANES, state)
        boxes = {item.token: item for item in anchors(page)}
        middles = {(b.x + b.w / 2, b.y + b.h / 2) for i, b in boxes.items() if i in ends}
        lines = [item for item in page.items if item.kind == "line"]
        reached = {(line.x + x, line.y + y) for line in lines for x, y in line.points}
        close = [np.abs(np.subtract(list(reached), m)).sum(axis=1).min() < 1 for m in middles]
        assert all(close) and len(lines) == len(set(ends) - {9})


def test_what_is_typed_replaces_the_words_chosen(window):
    shown = pieces(RECORD, LAST)
    i = next(i for i in range(9, 40) if shown[i][0] == " " and shown[i].isascii())
    s = State(at=END, selected=frozenset([i]))
    (the,), many = TOKENIZER.encode(" the"), len(TOKENIZER.encode(" earthy"))
    typed = after(s, *map(press, "the"))
    texts = [item.text for item in laid(LANES, typed).items]
    assert "instead " in texts
    assert after(typed, press("Escape")) == s
    done = after(typed, press("Return"))
    assert done == replace(s, request=f"type {the}")
    assert after(replace(s, selected=frozenset([0])), press("T"), press("Return")).request == (
        f"type {TOKENIZER.encode('T')[0]}"  # nothing is before it, so no space
    )
    long = after(s, *map(press, "earthy"), press("Return"))
    assert many > 1 and f"“earthy”: {many} tokens, but 1 selected" in long.message
    more = replace(long, selected=frozenset(range(i, i + many)))  # what is typed is still there
    assert after(more, press("Return")).request.split()[1:] == [
        str(token) for token in TOKENIZER.encode(" earthy")
    ]
    assert after(s, press("Tab")).selected == frozenset()  # that is the prompt
    worker = work()
    worker.thread.start()
    wait_for(lambda: worker.lanes[0].done and not worker.busy)
    obey(replace(done, settings=ASKED), worker, window, worker.lanes)
    (new,) = worker.lanes
    kept = np.arange(40) != i
    assert (new.rows[-1].text[kept] == RECORD.rows[-1].text[kept]).all() and new.done
    assert new.rows[-1].text[i] == the and new.rows[-1].since[i] == 0  # given
    assert rivals(new, -1, i) == [] and "given" in card(replace(s, at=END), [new])
    worker.close()


@pytest.mark.parametrize("model", [MODEL, BLOCKS], ids=["diffusion", "blocks"])
def test_what_can_be_requested(window, tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    worker, state = work(model=model), State(settings=ASKED)

    def ask(command, **changes):
        """Request something as the window does: the state when it is done."""
        nonlocal state
        state = handle(replace(state, message="", **changes), command, worker.lanes)
        state = obey(state, worker, window, worker.lanes)
        wait_for(lambda: all(lane.done for lane in worker.lanes) and not worker.busy)
        return state

    worker.thread.start()
    wait_for(lambda: worker.lanes[0].done and not worker.busy)
    worker.real_text, (first,) = (TEXT + "And " + TEXT) * 9, worker.lanes
    ask("erase", at=END, selected=frozenset([2, 3]))
    (refilled,) = worker.lanes
    new = refilled.rows[-1].since >= len(first.rows)
    assert np.flatnonzero(new).tolist() == [2, 3]
    assert refilled.settings.seed == 2 and state.message == "with seed 2"
    ask("undo")
    assert worker.lanes[0].rows is first.rows and worker.lanes[0].start > 1  # finished
    assert state.settings == first.settings
    ask("branch", at=0.4, selected=frozenset())
    (branch,) = worker.lanes
    n = first.at(0.4)
    assert texts(branch)[:n] == texts(first)[:n] and texts(branch)[-1] != texts(first)[-1]
    before = state.settings
    assert "nothing is masked" in ask("branch", at=END).message
    assert "choose words first" in ask("erase").message
    assert state.settings == before != first.settings  # what was refused changes nothing
    ask("compare")
    seeds = [lane.settings.seed for lane in worker.lanes]
    assert seeds[0] < seeds[1] and worker.kept
    ask("run", settings=replace(state.settings, steps=4))
    shown = {item.text for item in laid(worker.lanes, state).items}
    assert f"steps 24, seed {seeds[0]}" in shown
    ask("compare")
    assert len(worker.lanes) == 1 and worker.kept is None
    prompts = {ask("example 1", settings=ASKED).settings.prompt for _ in range(9)}
    assert len(prompts) > 1 and "_" in state.settings.prompt
    assert (
        worker.lanes[0].settings == state.settings == replace(ASKED, prompt=state.settings.prompt)
    )
    ask("corrupt")
    assert worker.lanes[0].masked(0) == 0 and worker.lanes[0].rows[-1].time > 0.5
    assert state.settings.seed == ASKED.seed  # an example is one for any seed
    for name in ("picture", "picture", "animation"):
        worker.message = ""
        ask(name)
        wait_for(lambda: worker.message)
    made = [Image.open(tmp_path / name) for name in ("text-1.png", "text-2.png", "text-1.gif")]
    assert made[0].size == made[2].size == (800, 600) and made[2].n_frames > 9
    ask("copy", at=END)
    assert pygame.scrap.get_text() == "".join(pieces(worker.lanes[0], -1)).replace("\0", "")
    worker.close()


# -- Sudoku

PUZZLE = "1_3_5_" + "_" * 30
SOLUTIONS = 28_200_960 // (6 * 5 * 4)  # all grids, by the choices for three cells of a row


@pytest.fixture(scope="module")
def grid():
    """A grid that the perfect network has completed."""
    asked = Settings(prompt=PUZZLE, grid=6, length=36)
    return write(begin(perfect(), BYTES, asked))


def test_a_grid_shows_how_probable_each_digit_is(grid):
    assert is_valid(torch.from_numpy(grid.rows[-1].text)[None])
    assert [solutions(grid, n) for n in (0, -1)] == [SOLUTIONS, 1]
    chosen = State(at=0.0, selected=frozenset([1]), playing=False)
    page = laid([grid], chosen)
    shown = [[item for item in word if item.text] for word in page.words]
    assert [word[0].text for word in shown[:6:2]] == ["1", "3", "5"]
    assert [len(word) for word in shown[:6:2]] == [2, 2, 2]  # bold: they are given
    assert [item.text for item in shown[1]] == ["2", "4", "6"]  # the row has the others
    chances = grid.rows[0].look.chances(0, 6)
    assert chances[1::2] == pytest.approx([1 / 3] * 3) and sum(chances) == pytest.approx(1)
    n = next(n for n in range(len(grid.rows)) if 0.1 < max(grid.rows[n].look.chances(0, 6)) < 0.9)
    marks = laid([grid], State(at=grid.rows[n].time)).words[1]
    marks = [item for item in marks if item.text]
    chances = [grid.rows[n].look.chances(0, 6)[int(item.text) - 1] for item in marks]
    by_chance = [item.h for _, item in sorted(zip(chances, marks, strict=True))]
    assert by_chance == sorted(by_chance)  # the likelier, the larger
    squares = np.array([item.h**2 for item in marks]) / chances
    assert squares.max() < 1.4 * squares.min()  # and its area is the probability
    facts = {item.text for row in page.rows for item in row}
    assert f"{SOLUTIONS:,}" in facts and not facts & {"corrupt a text", "length "}
    ends = [word[0].x + word[0].w for word in page.words[:6]]
    thick = [i.x for row in page.rows for i in row if i.kind == "box" and i.w == 2 and i.h > 100]
    assert [sum(x > line for x in ends) for line in thick] == [6, 3, 0]  # boxes are 3 wide


def test_givens_are_typed_and_a_contradiction_is_said(grid, window):
    s = State(settings=grid.settings, selected=frozenset([3]))
    typed = on_event(press("2"), s, NOTHING, [grid])
    assert typed.settings.prompt == "1_325_" + "_" * 30 and typed.request == "run"
    assert handle(s, f"put {ord('4')}", [grid]).settings.prompt[:6] == "1_345_"
    s = replace(s, selected=frozenset([0, 2]))
    assert handle(s, "erase", [grid]).settings.prompt == "____5_" + "_" * 30
    for state in (s, State()):  # no prompt begins with what no cell can hold
        refused = on_event(press("7"), state, NOTHING, [grid])
        assert refused == replace(state, message="a cell takes a digit from 1 to 6")
    page = laid([grid], State(prompt=Field("12")))
    cell = anchors(page)[7]
    down = mouse(cell.x + 9, cell.y + 9, pygame.MOUSEBUTTONDOWN)
    clicked = on_event(down, State(prompt=Field("12")), page, [grid])
    assert clicked.selected == {7} and clicked.prompt is None  # what is typed now is its digit
    for at, *keys, to in ((0, "Right", 1), (0, "Left", "Up", 0), (8, "Down", "Left", 13)):
        s = replace(s, selected=frozenset([at]))
        for key in keys:
            s = on_event(press(key), s, NOTHING, [grid])
        assert s.selected == {to}
    for size in ((1000, 700), (640, 480)):
        page = laid([grid], replace(s, at=END), size)
        right = max(cell.x + cell.w for cell in anchors(page))
        assert all(item.x > right for item in page.overlay)  # the grid can be seen
    assert "attention" not in " ".join(card(s, [grid])) != ""
    wrong = begin(perfect(), BYTES, replace(grid.settings, prompt="11"))
    page = laid([wrong], State(touring=True))
    assert CONTRADICTION in {item.text for row in page.rows for item in row}
    red = [cell.token for cell in anchors(page) if cell.color == DARK.wrong]
    assert red == [0, 1]
    prompt = puzzle(3)
    made = begin(perfect(), BYTES, replace(grid.settings, prompt=prompt))
    assert 1 <= solutions(made, 0) <= 30 and 4 < prompt.count("_") < 36


# -- drawing, files, terminal


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("size", [(640, 480), (1000, 700), (1600, 1000)])
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
    for text in ["e\u0301", "中文", "🙂", "\ufffd", "✓ и ש", "\ufe0f\u200b", "❤\ufe0f", "\udce9"]:
        for size in (20, 9, 40):
            width = fonts.image(visible(text), size, (9, 9, 9)).get_width()
            assert width == max(1, fonts.width(visible(text), size))
    assert all(len(fonts.parts(text, 20)) == 1 for text in ("e\u0301", "👨\u200d👩", "❤\ufe0f"))


def test_a_script_without_a_font_is_named(monkeypatch):
    first = next(font_paths())
    monkeypatch.setattr("visual.drawing.font_paths", lambda: iter([first]))
    fonts = Fonts()
    fonts.image("a word: शब्द", 20, (9, 9, 9))
    assert fonts.lacking() == "no font here has Devanagari: install one, such as Noto Sans"


def test_files(tmp_path, monkeypatch):
    state, size = State(view="order"), (401, 301)
    for name, options in [("a.gif", {}), ("a.png", {}), ("b.png", {"at": 0.5})]:
        save(tmp_path / name, LANES, state, size, n_frames=5, **options)
    gif, sheet, half = (Image.open(tmp_path / name) for name in ("a.gif", "a.png", "b.png"))
    assert half.tobytes() == next(pictures(LANES, state, size, [0.5])).tobytes()
    moments = list(pictures(LANES, state, size, np.linspace(0, END, 6)))
    other = list(
        pictures(
            LANES,
            replace(state, help=True, mouse=(99, 99), touring=True),
            size,
            np.linspace(0, END, 6),
        )
    )
    assert [a.tobytes() for a in moments] == [b.tobytes() for b in other]  # a file has no controls
    for i, moment in enumerate(moments):
        x, y = i % 2 * 401, i // 2 * 301
        assert sheet.crop((x, y, x + 401, y + 301)).tobytes() == moment.tobytes()
    assert gif.size == size and 2 <= gif.n_frames <= 5
    durations = [gif.seek(i) or gif.info["duration"] for i in range(gif.n_frames)]
    assert sum(durations) == pytest.approx(4000 + 4 * 1000 / 12, abs=50)  # milliseconds
    held = durations.index(max(durations))  # the end is held, and the middle comes first
    moments = list(pictures(LANES, state, size, np.linspace(0, END, 5), 1 / 12))
    for k, moment in ((held, moments[4]), (0, moments[2])):
        gif.seek(k)
        assert np.abs(np.asarray(gif.convert("RGB"), int) - np.asarray(moment, int)).mean() < 4


def test_inline_in_a_notebook():
    masks = torch.full((2, 40), TOKENIZER.mask_id)
    masks[0, 3:] = 7
    made = sample(MODEL, masks, 8, generator=torch.Generator().manual_seed(0))
    first, second = (show_inline(made, TOKENIZER, row=i, size=(300, 200)) for i in (0, 1))
    assert Image.open(io.BytesIO(first.data)).size == (300, 200) and first.data != second.data
    assert second.alt == TOKENIZER.decode(made.tokens[1].tolist())


def test_the_terminal(monkeypatch):
    out = io.StringIO()
    play_in_terminal(LANES, State(), out)
    finished = frame(LANES, END, State(), 78, colors=False)
    assert "\x1b" not in out.getvalue() and out.getvalue().endswith("\n".join(finished) + "\n")
    assert out.getvalue().startswith("step  0/24  t 1.00  masked ")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "7")
    words = made_up([f" word{i}" for i in range(60)])
    for shown, end in ((RECORD, finished[-2].split()[-1]), (words, "word59")):
        out = io.StringIO()
        out.isatty = lambda: True
        play_in_terminal([shown], State(theme="light"), out, seconds=0.2)
        plain = re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", out.getvalue())
        page = ";".join(map(str, THEMES["light"].page))
        assert f";48;2;{page}m" in out.getvalue() and end in plain.rsplit("masked", 1)[1]
        assert max(map(len, re.split(r"[\r\n]+", plain))) < 40  # a longer line would take two
    monkeypatch.setenv("NO_COLOR", "1")
    start = out.tell()
    play_in_terminal(LANES, State(), out, seconds=0.2)
    assert "\x1b[38" not in out.getvalue()[start:]


# -- the command line


def test_text_files_and_races_from_the_command_line(checkpoint, tmp_path, capsys):
    path, gif = str(tmp_path / "tiny-twin.safetensors"), str(tmp_path / "out.gif")
    save_checkpoint(path, TWIN, TOKENIZER, {})
    asked = ["--folder", str(tmp_path), "--steps", "6", "--prompt", "In the _ "]
    assert sample_visual.main([*asked, "--text"]) == 0
    out = capsys.readouterr()
    told = f"your newest model, {checkpoint}: 0.0 million parameters\nstep 0/6"
    assert out.out.startswith(told) and out.err == ""
    masks = 40 - len(TOKENIZER.encode("In the"))  # the text is as long as the context
    assert f"masked {masks}  network calls 0" in out.out and out.out.count("masked") == 5
    assert sample_visual.main([*asked, "--race", "--save", gif, "--size", "300x200"]) == 0
    assert Image.open(gif).size == (300, 200)
    assert (
        sample_visual.main([*asked, "--text", "--compare", "steps=3", "--compare", "seed=2"]) == 0
    )
    told = capsys.readouterr().out  # two texts, on one clock
    assert told.count("network calls") == 10 and told.count("seconds") == 10
    assert sample_visual.main(["--folder", str(tmp_path), "--block", "--text"]) == 2
    assert "no model of blocks" in capsys.readouterr().err
    blocks = str(tmp_path / "tiny-blocks.safetensors")
    save_checkpoint(blocks, BLOCKS, TOKENIZER, {})
    assert sample_visual.main(["--text", "--race", blocks, path, *asked]) == 0  # of three
    told = capsys.readouterr().out
    assert (
        told.startswith(f"your newest model, {checkpoint}: ") and told.count("network calls") == 15
    )
    arguments = sample_visual.parse_arguments(["--race", blocks, path, *asked])
    worker = Worker(lambda settings: sample_visual.load(arguments, settings), ASKED)
    worker.open()
    page = laid(worker.begin(ASKED), State())
    shown = [item.text for row in page.rows for item in row]
    assert shown[0] == "your newest model, tiny, against tiny-blocks, against tiny-twin"
    assert [text for text in shown if text.endswith("0.0M")] == [
        "diffusion, 0.0M", "blocks of 8, 0.0M", "GPT, 0.0M"
    ]  # fmt: skip
    for block in (["--block"], ["--block", "8"]):
        assert sample_visual.main([*asked, *block, "--length", "auto", "--text"]) == 0
        assert "\nblock 1/" in capsys.readouterr().out
    whole = ["--folder", str(tmp_path), "--block", "--prompt", "", "--text"]
    assert sample_visual.main(whole) == 0  # a token in each call, if nothing else is asked for
    assert "network calls  16" in capsys.readouterr().out
    wrong = {"for blocks of 8": ["--block", "4"], "without blocks": [checkpoint, "--block"]}
    for trained, options in wrong.items():
        assert sample_visual.main([*asked, *options, "--text"]) == 2
        assert f"trained {trained}: name another" in capsys.readouterr().err
    other = str(tmp_path / "other-twin.safetensors")
    save_checkpoint(other, TWIN, BPETokenizer.train(TEXT * 9 + "zebra crossing " * 9, 300), {})
    assert sample_visual.main([checkpoint, "--text", "--race", path, other]) == 2
    assert capsys.readouterr().err.startswith(f"sample_visual.py: {other}: it has another token")
    assert sample_visual.main([path, "--text", "--prompt", ""]) == 0  # the twin alone
    assert capsys.readouterr().out.startswith(f"{path}: ")  # which the user has named
    Path(checkpoint).rename(tmp_path / "kjv.safetensors")
    assert sample_visual.main([*asked, "--text"]) == 0
    assert capsys.readouterr().out.startswith("the included model, ")


def test_the_plain_command_opens_a_window(checkpoint, monkeypatch):
    shown = []

    def watched(*arguments):
        shown.append(show_until(*arguments, lambda: arguments[1].lanes[0].done))

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
    CHECKPOINT --length auto --text       | the length must be
    CHECKPOINT --seed -1 --text           | the seed must be
    CHECKPOINT --compare steps=0 --text   | the number of steps must be from 1 to
    --compare steps=many --text           | --compare steps=many: not like steps=8; there are steps,
    --compare steps --text                | not like steps=8
    --compare colour=8 --text             | not like steps=8
    --compare sampler=best --text         | the sampler must be one of ancestral,
    --sudoku --text                       | a grid needs the window, or --save
    --sudoku --save x.png --prompt 17     | digits from 1 to 6
    CHECKPOINT --sudoku --save x.png      | not trained on grids
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
