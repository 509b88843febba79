"""The whole page as items: the text, and the rows and cards around it. Pure functions.

A row is a function of the width that returns (items, height); `lay_out` puts them together.
"""

import math
from dataclasses import replace

from visual.colors import THEMES, certainty_color, probability_color, viridis
from visual.controls import BINDINGS, CHOICES, VIEWS
from visual.items import Item, Layout, Style, extent, moved, shorten, visible
from visual.record import MASKED, candidates, lane_of
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
    theme, size = style.theme, style.px(14)
    names = [(view, f"view {view}") for view in VIEWS]
    if state.controls:
        names += [("theme", "theme"), ("?", "help")]
    groups = [[(f" {name} ", theme.faint, command)] for name, command in names]
    right, h = flow(style, groups, width, style.px(4))
    left = width - extent(right)[0]
    title = shorten(style.fonts, visible(record.title), size, left - style.px(20))
    items = [style.text(0, 0, title, theme.ink)]
    for item in moved(right, left, 0):
        if item.command == f"view {state.view}":
            place = (item.x, item.y, item.w, item.h)
            items.append(Item("box", *place, theme.ink, radius=style.px(5)))
            item = item._replace(color=theme.page)
        items.append(item)
    return items, h


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
    """Where we are, in numbers."""
    step, n_steps, masks = math.floor(state.at), record.n_steps, record.masked(0)
    if record.twin:
        now = record.clock * state.at / n_steps
        facts = [("the clock, in seconds", f"{now:.2f}/{record.clock:.2f}")]
    else:
        facts = [
            ("step", f"{step:>{len(str(n_steps))}}/{n_steps}"),
            ("t", f"{1 - step / n_steps:.2f}"),
            ("masked", f"{record.masked(step):>{len(str(masks))}}"),
            ("network calls", f"{record.calls[step]:.0f}"),
        ]
        if record.live:  # neither the steps nor the time of the whole run are known
            facts = facts[2:]
        elif record.seconds > 0:
            facts.append(("tokens/s", f"{masks / record.seconds:.0f}"))
    groups = [fact(style, *each) for each in facts]
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
    """Over each panel of a race: who it is, and how far."""
    step = min(math.floor(state.at), lane.n_steps)
    name = "twin: from left to right" if lane is record.twin else "diffusion: all places at once"
    groups = [[(name, style.theme.ink)], fact(style, "masked", f"{lane.masked(step)}")]
    if not lane.live:
        seconds = min(record.clock * state.at / lane.n_steps, lane.seconds)
        groups[1:] = [
            fact(style, "calls", f"{lane.calls[step]:>{len(str(lane.calls[-1]))}.0f}"),
            fact(style, "seconds", f"{seconds:.2f}"),
        ]
    return flow(style, groups, width, style.px(20))


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
    lane, i = lane_of(record, i)
    row = lane.row(state.at)
    token, since = lane.texts[row, i], lane.since[row, i]
    if token == MASKED:
        lines = [("masked", theme.faint, 0)]
        for name, p in candidates(lane, i, state.at):
            lines.append((f"{p:6.1%}  {quote(name)}", theme.ink, p))
        return card(style, lines, style.px(14))
    history = "" if record.twin else f"step {since}, "
    if since == 0:
        history = "given"
    elif token != lane.texts[-1, i]:
        history += "masked again later"
    elif not record.live:
        history += f"drawn with {lane.probability[i]:.1%}"
    lines = [(quote(lane.tokenizer.show(token)), theme.ink, 0), (history, theme.faint, 0)]
    return card(style, lines, style.px(14))


def quote(name):
    """A token in quotes, at most 24 characters of it, so that its spaces can be seen."""
    text = visible(name)
    return f"“{text if len(text) <= 24 else text[:23] + '…'}”"


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
    unit = min(max(min(width / 1000, height / 700), 0.8 * scale), 1.5 * scale)
    style = Style(fonts, THEMES[state.theme], unit)
    margin = min(style.px(36), width // 12, height // 12)
    inner, gap = width - 2 * margin, style.px(12)
    room = height - 2 * margin - 5 * line_height(fonts, style.px(13))  # for five lines of text
    rows = {make: make(record, state, style, inner) for make in ROWS}
    given_up = [status_row, header_row, caption_row, timeline_row]  # in a small window
    if not state.controls:
        del rows[settings_row]
    elif state.draft is None:  # what is being typed must be seen
        given_up.insert(0, settings_row)
    while given_up and sum(h + gap for _, h in rows.values()) > room:
        rows.pop(given_up.pop(0), None)

    items, top, bottom = [], margin, height - margin
    for make, (row, h) in rows.items():
        if make in (header_row, caption_row):
            items += moved(row, margin, top)
            top += h + gap
    for make, (row, h) in reversed(rows.items()):
        if make not in (header_row, caption_row):
            bottom -= h
            items += moved(row, margin, bottom)
            bottom -= gap
    bleed = min(margin, style.px(BLEED))
    panel = (margin - bleed, top, inner + 2 * bleed, bottom - top)
    items += lay_out_lanes(record, state, panel, style)
    page = Layout(items, [])
    if state.help:
        return replace(page, overlay=help_card(size, style))
    pointed = page.at(*state.mouse) if state.mouse else None
    token = pointed.token if pointed and pointed.token is not None else state.cursor
    for item in [item for item in items if item.token is not None and item.token == token][:1]:
        beside = token_card(record, state, token, style)
        return replace(page, overlay=put_beside(beside, item, size, style.px(6)))
    return page


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
