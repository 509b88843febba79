"""The whole page as items: the text, and the rows and cards around it. Pure functions.

A row is a function of the width that returns (items, height); `lay_out` puts them together.
"""

import math
from bisect import bisect_left
from dataclasses import replace
from functools import lru_cache

import numpy as np

from visual.controls import BINDINGS, FIELDS, VIEWS
from visual.items import (
    THEMES,
    Item,
    Style,
    item_at,
    mix,
    moved,
    probability_color,
    shorten,
    viridis,
)
from visual.recording import MASKED, Race, Record, candidates, lane_of
from visual.typesetting import BLEED, lay_out_panel, line_height, visible

# -- rows


def flow(groups, width, gap, leading):
    """Set groups of items, each laid out at (0, 0), in lines like words. Returns (items, h)."""
    items, x, y, tallest = [], 0, 0, 0
    for group in groups:
        w = max(item.x + item.w for item in group)
        if x > 0 and x + w > width:
            x, y = 0, y + tallest + leading
            tallest = 0
        items += moved(group, x, y)
        tallest = max([tallest] + [item.y + item.h for item in group])
        x += w + gap
    return [item for item in items if item.x + item.w <= width + 0.5], y + tallest


def button(style, text, command, on=False, part="button"):
    """A text that can be clicked, as a group of items."""
    theme, pad = style.theme, style.px(8)
    label = style.text(pad, style.px(4), text, theme.page if on else theme.faint, part=part)
    paper = (0, 0, label.w + 2 * pad, label.h + style.px(8))
    if not on:
        return [Item("area", *paper, part=part, command=command), label]
    return [Item("box", *paper, theme.ink, radius=style.px(7), part=part, command=command), label]


def fact(style, label, value, part="fact", color=None):
    """A faint label and a value, as a group of items."""
    first = style.text(0, 0, label, style.theme.faint, part=part)
    second = style.text(first.w + style.px(7), 0, value, color or style.theme.ink, part=part)
    return [first, second]


def header_row(record, state, style, width):
    """The title on the left; on the right the views, help and theme."""
    groups = [button(style, view, f"view {view}", view == state.view, "tab") for view in VIEWS]
    if state.controls:
        groups.append(button(style, "theme", "theme"))
        groups.append(button(style, "?", "help"))
    right, h = flow(groups, width, style.px(4), style.px(2))
    right_w = max((item.x + item.w for item in right), default=0)
    right = moved(right, width - right_w, 0)
    title = "".join(map(visible, record.title))
    title = shorten(style.fonts, title, style.px(14), width - right_w - style.px(20))
    left = [style.text(0, style.px(4), title, style.theme.ink, part="title")] if title else []
    return left + right, h


def caption_row(record, state, style, width):
    """One line on what is to be seen, and the scale of its colours. Errors appear here, too."""
    theme, size = style.theme, style.px(13)
    text, color = VIEWS[state.view], theme.faint
    first = record.lanes[0]
    if state.view == "text" and first.takes_back and not record.live:
        text += " Grey: it will be taken back."
    if state.view == "belief" and not len(first.belief_step):
        text = "The model has not been asked what it believes."
    text = state.busy or text
    if state.message:
        text, color = state.message, theme.accent
    legend = [] if record.live else color_legend(state.view, style, size)
    legend_w = max((item.x + item.w for item in legend), default=0)
    if legend_w > width * 0.45:
        legend, legend_w = [], 0
    text = shorten(style.fonts, text, size, width - legend_w - style.px(16))
    items = moved(legend, width - legend_w, 0)
    if text:
        items.append(style.text(0, 0, text, color, size, "caption"))
    return items, style.fonts.height(size)


def color_legend(view, style, size):
    """The scale of a view's colours between its two ends, as a group of items."""
    theme = style.theme
    ends, color = {
        "text": (("0", "1"), lambda k: probability_color(k, theme)),
        "order": (("first", "last"), viridis),
        "belief": (("unsure", "sure"), lambda k: mix(theme.mask, theme.ink, 0.15 + 0.85 * k)),
    }[view]
    items = [style.text(0, 0, ends[0], theme.faint, size, "legend")]
    x, n, w, h = items[0].w + style.px(8), 24, style.px(4), style.px(8)
    top = (items[0].h - h) / 2
    for i in range(n):
        items.append(Item("box", x + i * w, top, w, h, color(i / (n - 1)), part="legend"))
    return [*items, style.text(x + n * w + style.px(8), 0, ends[1], theme.faint, size, "legend")]


@lru_cache(maxsize=32)
def histogram(steps, n_steps, n_bins):
    """How many tokens appear in each of `n_bins` equal parts of the run, as parts of the most."""
    counts = np.bincount((np.array(steps, np.int64) - 1) * n_bins // n_steps, minlength=n_bins)
    return tuple(counts / max(1, counts.max()))


def play_buttons(state, style, height):
    """Play or pause, one step back, one step forward. Returns (items, width)."""
    items, x, w = [], 0, style.px(30)
    marks = [("❚❚" if state.playing else "▶", "play"), ("◂", "step -1"), ("▸", "step 1")]
    for mark, command in marks:
        text = style.text(
            0, height - style.px(24), mark, style.theme.ink, style.px(16), part="button"
        )
        items.append(Item("area", x, 0, w, height, part="button", command=command))
        items.append(text._replace(x=x + (w - text.w) / 2))
        x += w
    return items, x + style.px(10)


def histogram_bars(record, state, style, width, height):
    """When how many of the finished tokens appeared, as bars that stand on y = height."""
    theme = style.theme
    steps = record.since[-1][record.since[-1] > 0]
    n_bins = max(1, min(record.n_steps, int(width // style.px(5))))
    w, items = width / n_bins, []
    for i, part in enumerate(histogram(tuple(steps.tolist()), record.n_steps, n_bins)):
        middle, h = (i + 0.5) / n_bins, round(part * height)
        color = theme.line
        if middle * record.n_steps <= state.at:
            color = viridis(middle) if state.view == "order" else theme.faint
        if h > 0:
            bar = (i * w, height - h, max(1, w - style.px(1)), h, color)
            items.append(Item("box", *bar, part="histogram"))
    return items


def timeline_row(record, state, style, width):
    """Buttons, and the run from left to right: how much appears when, and where we are."""
    theme, hair, height = style.theme, style.px(2), style.px(44)
    items, x = play_buttons(state, style, height) if state.controls else ([], 0)
    bar_w, base = width - x - style.px(8), height - style.px(16)
    if bar_w < style.px(40):
        return [item for item in items if item.x + item.w <= width], height
    done = state.at / record.n_steps
    if record.live:
        lane = record.lanes[0]
        done = 1 - lane.masked(lane.n_steps) / max(1, lane.n_drawn())
    elif isinstance(record, Record):
        bars = histogram_bars(record, state, style, bar_w, base - style.px(6))
        items += moved(bars, x, style.px(1))
    items.append(Item("box", x, base, bar_w, hair, theme.line, part="timeline"))
    items.append(Item("box", x, base, bar_w * done, hair, theme.accent, part="timeline"))
    if not record.live:
        knob = style.px(12)
        place = (x + bar_w * done - knob / 2, base + hair / 2 - knob / 2, knob, knob)
        items.append(Item("box", *place, theme.accent, radius=knob / 2, part="knob"))
        items.append(Item("area", x, 0, bar_w, height, part="timeline", command="timeline"))
    return items, height


def status_row(record, state, style, width):
    """Where we are, in numbers."""
    if isinstance(record, Race):
        now = record.seconds * state.at / record.n_steps
        groups = [fact(style, "the clock, in seconds", f"{now:.2f}/{record.seconds:.2f}")]
        if state.controls:
            groups.append(knob_group(style, state, "speed", f"{state.speed:g}x"))
        return flow(groups, width, style.px(20), style.px(6))
    step = record.n_steps if record.live else math.floor(state.at)
    digits = len(str(record.n_steps))
    masked, drawn, calls = record.masked(step), record.n_drawn(), record.calls[step]
    if record.live:
        groups = [
            fact(style, "masked", f"{masked:>{len(str(drawn))}}"),
            fact(style, "network calls", f"{calls:.0f}"),
        ]
        return flow(groups, width, style.px(26), style.px(6))
    groups = [
        fact(style, "step", f"{step:>{digits}}/{record.n_steps}"),
        fact(style, "t", f"{1 - step / record.n_steps:.2f}"),
        fact(style, "masked", f"{masked:>{len(str(drawn))}}"),
        fact(style, "network calls", f"{calls:>{len(str(round(record.calls[-1])))}.0f}"),
    ]
    if record.seconds > 0 and drawn:
        groups.append(fact(style, "tokens/s", f"{drawn / record.seconds:.0f}"))
    if state.controls:
        groups.append(knob_group(style, state, "speed", f"{state.speed:g}x"))
    return flow(groups, width, style.px(20), style.px(6))


def knob_group(style, state, name, value):
    """A setting with its value, and marks to click for less and more."""
    theme, picked = style.theme, FIELDS[state.picked] == name
    label = style.text(0, 0, name.replace("_", "-"), theme.accent if picked else theme.faint)
    label = label._replace(part="knob " + name, command=f"pick {name}")
    less = style.text(label.w + style.px(4), 0, "‹", theme.faint, part="less " + name)
    less = less._replace(w=less.w + style.px(8), command=f"less {name}")
    shown = style.text(less.x + less.w, 0, value, theme.ink, part="knob " + name)
    more = style.text(shown.x + shown.w + style.px(8), 0, "›", theme.faint, part="more " + name)
    more = more._replace(x=more.x - style.px(4), w=more.w + style.px(8), command=f"more {name}")
    return [label, less, shown, more]


def settings_row(record, state, style, width):
    """The settings of the next run, or the prompt that is being typed."""
    theme = style.theme
    if state.draft is not None:
        return prompt_row(state, style, width)
    s = state.settings
    changed = replace(s, length=record.settings.length) != record.settings and not record.live
    groups = [[style.text(0, 0, "next run", theme.accent if changed else theme.faint)]]
    for name, value in [
        ("steps", f"{s.steps}"),
        ("temperature", f"{s.temperature:.1f}"),
        ("top_p", f"{s.top_p:.2f}"),
        ("sampler", s.sampler),
        ("seed", f"{s.seed}"),
    ]:
        groups.append(knob_group(style, state, name, value))
    quoted = "".join(map(visible, f"“{s.prompt[:200]}”")) if s.prompt else "none"
    group = fact(
        style, "prompt", shorten(style.fonts, quoted, style.px(14), style.px(230)), "prompt"
    )
    groups.append([item._replace(command="prompt") for item in group])
    if s.kept:
        release = fact(style, "release", f"{len(s.kept)} kept", "release")
        groups.append([item._replace(command="release") for item in release])
    run = style.text(0, 0, "▶ run", theme.accent, part="run", command="run")
    new = style.text(run.w + style.px(16), 0, "new seed", theme.accent, part="new", command="new")
    groups.append([run, new])
    return flow(groups, width, style.px(22), style.px(6))


def prompt_row(state, style, width):
    """The prompt that is being typed: its end, if it is too long to be seen as a whole."""
    theme, size = style.theme, style.px(14)
    label = style.text(0, 0, "prompt", theme.accent, part="prompt")
    room = width - label.w - style.px(8)
    shown = "".join(map(visible, state.draft[-1000:])) + "▏"
    fits = bisect_left(
        range(len(shown) - 1), -room, key=lambda i: -style.fonts.width(shown[i:], size)
    )
    shown = shown[fits:]
    hint = "Enter: run    Esc: leave it    each _ is one mask"
    hint = shorten(style.fonts, hint, size, width)
    draft = style.text(label.w + style.px(8), 0, shown, theme.ink, part="draft")
    below = label.h + style.px(6)
    return [label, draft, style.text(0, below, hint, theme.faint, part="hint")], below + label.h


# -- what lies on top


def card(style, lines, bars, size):
    """Lines of text on a card, at (0, 0); bars: {line: (part of the width, colour)}."""
    theme, pad = style.theme, style.px(12)
    pitch = math.ceil(style.fonts.height(size) * 1.25)
    wide = max(style.fonts.width(text, size) for text, _ in lines) + 2 * pad
    tall = pitch * len(lines) + 2 * pad
    items = [
        Item("box", 0, 0, wide, tall, theme.card, radius=style.px(8), part="card"),
        Item("outline", 0, 0, wide, tall, theme.line, radius=style.px(8), part="card"),
    ]
    for i, (text, color) in enumerate(lines):
        top = pad + i * pitch
        if i in bars:
            w = max(1, (wide - 2 * pad) * bars[i])
            bar = (pad, top + pitch - style.px(3), w, style.px(2), theme.accent)
            items.append(Item("box", *bar, part="card"))
        items.append(style.text(pad, top, text, color, size, "card"))
    return items


def token_card(record, state, i, style):
    """What there is to know about token i now, as a group of items at (0, 0)."""
    theme, size, bars = style.theme, style.px(14), {}
    lane, i = lane_of(record, i)
    record, at = lane, math.floor(record.lane_at(lane, state.at))
    s = record.row(at)
    token, since = record.states[s, i], record.since[s, i]
    if token == MASKED:
        lines = [("the model would write", theme.faint)]
        for name, p in candidates(record, i, at):
            bars[len(lines)] = p
            lines.append((f"{p:6.1%}  {quote(name)}", theme.ink))
        if len(lines) == 1:
            lines = [("masked", theme.faint)]
    elif since == 0:
        lines = [(quote(record.names[token]), theme.ink), ("given", theme.faint)]
    else:
        facts = f"step {since}, drawn with {record.probability[i]:.1%}"
        if token != record.states[-1, i]:
            facts = f"step {since}, taken back later"
        lines = [(quote(record.names[token]), theme.ink), (facts, theme.faint)]
        if state.controls:
            kept = any(position == i for position, _ in state.settings.kept)
            lines.append(
                ("kept; F or a click lets go" if kept else "F or a click keeps it", theme.faint)
            )
    return card(style, lines, bars, size)


def quote(name):
    """A token in quotes, at most 24 characters of it, so that its spaces can be seen."""
    text = "".join(map(visible, name))
    return f"“{text if len(text) <= 24 else text[:23] + '…'}”"


def put_beside(group, box, size, gap):
    """Move a group to below box (x, y, w, h), or above it; in any case inside the window."""
    w, h = max(item.x + item.w for item in group), max(item.y + item.h for item in group)
    if w > size[0] or h > size[1]:
        return []
    x = min(max(0, box[0]), size[0] - w)
    y = box[1] + box[3] + gap
    if y + h > size[1]:
        y = max(0, box[1] - gap - h)
    return moved(group, x, y)


def help_card(size, style):
    """All keys, on a card in the middle of the window: smaller letters until it fits."""
    theme = style.theme
    rows = [(keys.replace(" ", "  "), meaning) for keys, _, meaning in BINDINGS]
    rows.append(("mouse", "click on anything; hover over a token to know it"))
    longest = max(len(keys) for keys, _ in rows)
    lines = [("keys", theme.accent)]
    lines += [(f"{keys:<{longest}}   {meaning}", theme.ink) for keys, meaning in rows]
    for letters in range(style.px(15), 5, -1):
        group = card(style, lines, {}, letters)
        if group[0].w <= size[0] - 4 and group[0].h <= size[1] - 4:
            break
    else:
        return []
    veil = Item("box", 0, 0, *size, theme.page, part="veil", command="help")
    return [veil, *moved(group, (size[0] - group[0].w) // 2, (size[1] - group[0].h) // 2)]


# -- the page


def page_rows(record, state, style, width, gap, room):
    """The rows around the text, {name: (items, height)}: those that fit into `room` pixels."""
    rows = {
        "header": header_row(record, state, style, width),
        "caption": caption_row(record, state, style, width),
        "timeline": timeline_row(record, state, style, width),
        "status": status_row(record, state, style, width),
    }
    if state.controls:
        rows["settings"] = settings_row(record, state, style, width)
    optional = ["settings", "status", "header", "caption", "timeline"]
    if state.draft is not None:  # what is being typed must be seen
        optional.remove("settings")
    for name in optional:
        if sum(h + gap for _, h in rows.values()) <= room:
            break
        rows.pop(name, None)
    return rows


def lay_out(record, state, size, fonts, scale=1.0):
    """Everything in a window of `size` (w, h) pixels, from back to front: a list of Item.

    `scale`: pixels in one point of the screen, 2 on many a laptop.
    """
    width, height = size
    unit = min(max(min(width / 1000, height / 700), 0.8 * scale), 1.5 * scale)
    style = Style(fonts, THEMES[state.theme], unit)
    margin = min(style.px(36), width // 12, height // 12)
    inner = width - 2 * margin
    gap = style.px(12)
    room = height - 2 * margin - 5 * line_height(fonts, style.px(13))  # for five lines of text
    rows = page_rows(record, state, style, inner, gap, room)

    items, top, bottom = [], margin, height - margin
    for name in ("header", "caption"):
        if name in rows:
            row, h = rows[name]
            items += moved(row, margin, top)
            top += h + (style.px(6) if name == "header" else style.px(20))
    for name in ("settings", "status", "timeline"):
        if name in rows:
            row, h = rows[name]
            bottom -= h
            items += moved(row, margin, bottom)
            bottom -= gap
    bleed = min(margin, style.px(BLEED))
    panel = (margin - bleed, top, inner + 2 * bleed, bottom - top - style.px(6))
    text, hidden = lay_out_lanes(record, state, panel, style)
    items += text
    if hidden > 0 and state.controls:
        w, h = style.px(4), max(style.px(12), panel[3] * 0.15)
        y = panel[1] + (panel[3] - h) * min(1.0, state.scroll / hidden)
        bar = (width - margin / 2 - w / 2, y, w, min(h, panel[3]), style.theme.faint)
        items.append(Item("box", *bar, str(hidden), radius=w / 2, part="scroll"))

    token = hovered(items, state)
    boxes = [item for item in items if item.part == "token" and item.command == f"fix {token}"]
    if boxes and not record.live and not state.help:
        group = token_card(record, state, token, style)
        items += put_beside(group, boxes[0][1:5], size, style.px(6))
    if state.help:
        items += help_card(size, style)
    return items


def lay_out_lanes(record, state, box, style):
    """The panels of all lanes in box (x, y, w, h), beside each other, or one above the other.

    Returns what `lay_out_panel` does.
    """
    x, y, w, h = box
    n, gap = len(record.lanes), style.px(28)
    beside = w > style.px(640)
    items, hidden, before = [], 0, 0
    for number, lane in enumerate(record.lanes):
        at = record.lane_at(lane, state.at)
        if beside:
            wide = (w - (n - 1) * gap) / n
            panel = [x + number * (wide + gap), y, wide, h]
        else:
            tall = (h - (n - 1) * gap) / n
            panel = [x, y + number * (tall + gap), w, tall]
        if n > 1:
            row, tall = lane_row(number, lane, at, record, style, panel[2])
            items += moved(row, panel[0] + min(style.px(BLEED), panel[2]), panel[1])
            panel[1] += tall + style.px(12)
            panel[3] -= tall + style.px(12)
        text, more = lay_out_panel(lane, at, state, panel, style, before)
        items += text
        hidden, before = max(hidden, more), before + len(lane.pieces)
    return items, hidden


def lane_row(number, lane, at, race, style, width):
    """Over each panel of a race: who it is, and how far."""
    theme = style.theme
    name = ("diffusion: all places at once", "twin: from left to right")[number]
    step = math.floor(at)
    calls = lane.calls[step]
    done = not lane.live and lane.seconds > 0 and step == lane.n_steps
    groups = [[style.text(0, 0, name, theme.accent if done else theme.ink, part="lane")]]
    if lane.live:
        groups.append(fact(style, "masked", f"{lane.masked(step)}"))
    else:
        groups.append(fact(style, "calls", f"{calls:>{len(str(round(lane.calls[-1])))}.0f}"))
    if lane.seconds > 0:
        now = lane.seconds * calls / max(1, lane.calls[-1])
        groups.append(fact(style, "seconds", f"{now:.2f}"))
    return flow(groups, width, style.px(20), style.px(4))


def hovered(items, state):
    """The token under the mouse, else the one under the keyboard's cursor; None if neither."""
    if state.mouse is not None:
        item = item_at(items, *state.mouse)
        if item is not None and item.part == "token":
            return int(item.command.split()[1])
    return state.cursor


def hidden_lines(items):
    """How many lines of the text do not fit: as far as one can scroll."""
    return sum(int(item.text) for item in items if item.part == "scroll")
