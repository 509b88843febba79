"""The whole page as items: the text, and the rows and cards around it. Pure functions.

A row is a function of the width that returns (items, height); `lay_out` puts them together.
"""

import math
from dataclasses import replace

from visual.colors import THEMES, certainty_color, probability_color, viridis
from visual.controls import BINDINGS, CHOICES, VIEWS
from visual.items import Item, Layout, Style, extent, moved, shorten, visible
from visual.record import MASKED, candidates, facts
from visual.typesetting import BLEED, lay_out_panel, line_height

# -- rows


def flow(style, groups, width, gap):
    """Groups of texts, each (text, colour) or (text, colour, command), in lines like words."""
    items, x, y, h = [], 0, 0, style.fonts.height(style.px(14))
    for group in groups:
        labels = [style.text(0, 0, *text) for text in group]
        if x > 0 and x + sum(label.w for label in labels) > width:
            x, y = 0, y + h + style.px(6)
        for label in labels:
            items.append(label._replace(x=x, y=y))
            x += label.w
        x += gap
    return [item for item in items if item.x + item.w <= width + 0.5], y + h


def fact(style, label, value):
    """A faint label and a value, as a group of texts."""
    return (f"{label} ", style.theme.faint), (value, style.theme.ink)


def arrows(style, value, less, more):
    """A value between two arrows to click, as a group of texts."""
    faint = style.theme.faint
    return (" ‹ ", faint, less), (value, style.theme.ink), (" › ", faint, more)


def header_row(record, state, style, width):
    """The title on the left; on the right the views, help and theme."""
    names = [(view, f"view {view}") for view in VIEWS]
    if state.controls:
        names += [("theme", "theme"), ("help", "help")]
    chosen = f"view {state.view}"
    colors = {True: style.theme.accent, False: style.theme.faint}
    groups = [[(f" {name} ", colors[command == chosen], command)] for name, command in names]
    right, h = flow(style, groups, width, style.px(4))
    left = width - extent(right)[0]
    title = shorten(style.fonts, visible(record.title), style.px(14), left - style.px(20))
    return [style.text(0, 0, title, style.theme.ink), *moved(right, left, 0)], h


def caption_row(record, state, style, width):
    """One line on what is to be seen, and the scale of its colours. Errors appear here, too."""
    legend = [] if record.live else color_legend(state.view, style)
    left = width - extent(legend)[0]
    text = state.message or state.busy or VIEWS[state.view]
    text = shorten(style.fonts, text, style.px(14), left - style.px(16))
    label = style.text(0, 0, text, style.theme.accent if state.message else style.theme.faint)
    return [label, *moved(legend, left, 0)], label.h


def color_legend(view, style):
    """The scale of a view's colours between its two ends, as items at (0, 0)."""
    theme = style.theme
    first, last, color = {
        "text": ("0 ", " 1", lambda k: probability_color(k, theme)),
        "order": ("first ", " last", viridis),
        "prediction": ("unsure ", " sure", lambda k: certainty_color(k, theme)),
    }[view]
    items = [style.text(0, 0, first, theme.faint)]
    left, n, w, h = items[0].w, 24, style.px(4), style.px(8)
    for i in range(n):
        place = (left + i * w, (items[0].h - h) / 2, w, h)
        items.append(Item("box", *place, color(i / (n - 1))))
    return [*items, style.text(left + n * w, 0, last, theme.faint)]


def timeline_row(record, state, style, width):
    """Buttons, and the run from left to right with a knob where we are."""
    theme, hair, height, knob = style.theme, style.px(2), style.px(28), style.px(12)
    items, x, button = [], 0, style.px(30)
    if state.controls:
        play = "❚❚" if state.playing else "▶"
        for mark, command in ((play, "play"), ("◂", "step -1"), ("▸", "step 1")):
            label = style.text(0, 0, mark, theme.ink)
            items.append(Item("area", x, 0, button, height, command=command))
            place = dict(x=x + (button - label.w) / 2, y=(height - label.h) / 2)
            items.append(label._replace(**place))
            x += button
        x += style.px(10)
    bar, done = max(1, width - x - style.px(8)), state.at / record.n_steps
    if record.live:
        done = 1 - record.masked(state.at) / max(1, record.masked(0))
    line = (height - hair) / 2
    items.append(Item("box", x, line, bar, hair, theme.line))
    items.append(Item("box", x, line, bar * done, hair, theme.accent))
    if not record.live:
        place = (x + bar * done - knob / 2, (height - knob) / 2, knob, knob)
        items.append(Item("box", *place, theme.accent, radius=knob / 2))
        items.append(Item("area", x, 0, bar, height, command="timeline"))
    return items, height


def status_row(record, state, style, width):
    """Where we are, in numbers; in a race they stand over each lane."""
    alone = facts(record, record, state.at) if record.twin is None else []
    groups = [fact(style, *each) for each in alone]
    if state.controls:
        speed = arrows(style, f"{state.speed:g}x", "speed 0.5", "speed 2")
        groups.append([("speed", style.theme.faint), *speed])
    return flow(style, groups, width, style.px(20))


def settings_row(record, state, style, width):
    """The settings of the next run, or the prompt that is being typed."""
    theme, size, s = style.theme, style.px(14), state.settings
    if state.draft is not None:
        label = shorten(style.fonts, "prompt (Return: run, Escape: leave it) ", size, width / 2)
        room = width - style.fonts.width(label, size)
        end = (visible(state.draft[-1000:]) + "▏")[::-1]  # what does not fit is its beginning
        end = shorten(style.fonts, end, size, room)[::-1]
        return flow(style, [[(label, theme.accent), (end, theme.ink)]], width, 0)
    changed = s != record.settings and not record.live
    groups = [[("next run", theme.accent if changed else theme.faint)]]
    values = (f"{s.steps}", f"{s.temperature:.1f}", f"{s.top_p:.2f}", s.sampler, f"{s.seed}")
    for i, (name, value) in enumerate(zip(CHOICES, values, strict=True)):
        color = theme.accent if i == state.picked else theme.faint
        label = (name.replace("_", "-"), color, f"pick {i - state.picked}")
        groups.append([label, *arrows(style, value, f"less {name}", f"more {name}")])
    prompt = visible(f"“{s.prompt[:200]}”") if s.prompt else "none"
    prompt = shorten(style.fonts, prompt, size, style.px(230))
    groups.append([("prompt ", theme.faint, "prompt"), (prompt, theme.ink, "prompt")])
    groups += [[("▶ run", theme.accent, "run")], [("new seed", theme.accent, "new")]]
    return flow(style, groups, width, style.px(22))


def lane_row(record, lane, state, style, width):
    """Over each panel of a race: who it is, and how far, as much as fits on one line."""
    name = "twin, left to right" if lane is record.twin else "diffusion"
    groups = [fact(style, *each) for each in facts(record, lane, state.at)]
    items, _ = flow(style, [[(name, style.theme.ink)], *groups], width, style.px(20))
    return [item for item in items if item.y == 0], items[0].h if items else 0


# -- what lies on top


def card(style, lines, size):
    """Lines of text on a card, at (0, 0): (text, colour, how long a bar is below it, 0 to 1)."""
    theme, pad = style.theme, style.px(12)
    pitch = math.ceil(style.fonts.height(size) * 1.25)
    wide = max(style.fonts.width(text, size) for text, _, _ in lines)
    box = (0, 0, wide + 2 * pad, pitch * len(lines) + 2 * pad)
    items = [
        Item("box", *box, theme.card, radius=style.px(8)),
        Item("outline", *box, theme.line, radius=style.px(8)),
    ]
    for i, (text, color, share) in enumerate(lines, 1):
        bottom = pad + i * pitch
        bar = Item("box", pad, bottom - style.px(3), wide * share, style.px(2), theme.accent)
        items += [bar] if share else []
        items.append(style.text(pad, bottom - pitch, text, color, size=size))
    return items


def token_card(record, state, i, style):
    """What there is to know about token i now, as items at (0, 0)."""
    theme = style.theme
    L = record.texts.shape[1]
    lane, i = (record, i) if i < L else (record.twin, i - L)
    row = lane.row(state.at)
    token, since = lane.texts[row, i], lane.since[row, i]
    if token == MASKED:
        lines = [("masked", theme.faint, 0)]
        for name, p in candidates(lane, i, state.at):
            lines.append((f"{p:6.1%}  “{visible(name)}”", theme.ink, p))
        return card(style, lines, style.px(14))
    history = "" if record.twin else f"step {since}, "
    if since == 0:
        history = "given"
    elif token != lane.texts[-1, i]:
        history += "masked again later"
    elif not record.live:
        history += f"drawn with {lane.probability[i]:.1%}"
    lines = [(f"“{visible(lane.tokenizer.show(token))}”", theme.ink, 0), (history, theme.faint, 0)]
    return card(style, lines, style.px(14))


def put_beside(items, item, size, gap):
    """Items at (0, 0) to below another one, or above it; in any case inside the window."""
    w, h = extent(items)
    if w > size[0] or h > size[1]:
        return []
    y = item.y + item.h + gap
    if y + h > size[1]:
        y = max(0, item.y - gap - h)
    return moved(items, min(max(0, item.x), size[0] - w), y)


def help_card(size, style):
    """All keys, on a card in the middle of the window: smaller letters until it fits."""
    theme = style.theme
    rows = [(keys.replace(" ", "  "), meaning) for keys, _, meaning in BINDINGS]
    rows.append(("mouse", "click on anything; point at a token to know it"))
    longest = max(len(keys) for keys, _ in rows)
    lines = [("keys", theme.accent, 0)]
    lines += [(f"{keys:<{longest}}   {meaning}", theme.ink, 0) for keys, meaning in rows]
    for letters in range(style.px(15), 5, -1):
        items = card(style, lines, letters)
        w, h = extent(items)
        if w <= size[0] - 4 and h <= size[1] - 4:
            veil = Item("box", 0, 0, *size, theme.page, command="help")
            return [veil, *moved(items, (size[0] - w) // 2, (size[1] - h) // 2)]
    return []


# -- the page

ROWS = [header_row, caption_row, timeline_row, status_row, settings_row]


def lay_out(record, state, size, fonts, scale=1.0):
    """Everything in a window of `size` (w, h) pixels: a `Layout`.

    `scale`: pixels in one point of the screen, 2 on many a laptop.
    """
    width, height = size
    if record.live:
        state = replace(state, at=record.n_steps)
    unit = max(min(width / 1000, height / 700), 0.8 * scale)
    style = Style(fonts, THEMES[state.theme], unit)
    margin = min(style.px(36), width // 12, height // 12)
    inner, gap = width - 2 * margin, style.px(12)
    rows = {make: make(record, state, style, inner) for make in ROWS}
    given_up = [status_row, header_row, caption_row, timeline_row]  # in a small window
    if not state.controls:
        del rows[settings_row]
    elif state.draft is None:  # what is being typed must be seen
        given_up.insert(0, settings_row)
    for make in [*given_up, None]:
        room = height - 2 * margin - sum(h + gap for _, h in rows.values())
        if room > 5 * line_height(fonts, style.px(13)):
            break
        rows.pop(make, None)

    items, y, bleed = [], margin, min(margin, style.px(BLEED))
    for make in ROWS:
        if make is timeline_row:  # the text is above it
            panel = (margin - bleed, y + style.px(8), inner + 2 * bleed, room - style.px(8))
            items += lay_out_lanes(record, state, panel, style)
            y += room
        if make in rows:
            row, h = rows[make]
            items += moved(row, margin, y)
            y += h + gap
    page = Layout(items, [])
    if state.help:
        return replace(page, overlay=help_card(size, style))
    pointed = page.at(*state.mouse) if state.mouse else None
    if pointed is None or pointed.token is None:
        return page
    beside = token_card(record, state, pointed.token, style)
    return replace(page, overlay=put_beside(beside, pointed, size, style.px(6)))


def lay_out_lanes(record, state, box, style):
    """The panels of all lanes in box (x, y, w, h), beside each other, or one above the other."""
    x, y, w, h = box
    n, gap = len(record.lanes), style.px(28)
    beside = w > style.px(640)
    if beside:
        w = (w - (n - 1) * gap) / n
    else:
        h = (h - (n - 1) * gap) / n
    items, before, used = [], 0, 0
    for lane in record.lanes:
        if n > 1:
            row, used = lane_row(record, lane, state, style, w)
            items += moved(row, x + min(style.px(BLEED), w), y)
            used += style.px(12)
        items += lay_out_panel(lane, state, (x, y + used, w, h - used), style, before)
        before += lane.texts.shape[1]
        x, y = (x + w + gap, y) if beside else (x, y + h + gap)
    return items
