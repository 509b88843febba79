"""The whole page as items: the text, and the rows and cards around it. Pure functions.

A row is a function of the width that returns (items, height); `lay_out` puts them together.
"""

import math
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from visual import controls
from visual.colors import THEMES, certainty_color, mix, probability_color, viridis
from visual.controls import CHOICES, VIEWS, edge, lane_of
from visual.items import Item, Layout, Style, extent, moved, shorten, visible
from visual.record import MASKED, SAMPLERS, asked, companions, facts, rivals
from visual.sudoku import CONTRADICTION, LEGEND, lay_out_grid, solutions
from visual.typesetting import BLEED, lay_out_panel

TIPS = {  # what appears beside these words when the mouse is there
    "step": "how many of the steps from t = 1 to t = 0 are done",
    "t": "the noise level: at t = 1 all is masked, at t = 0 nothing",
    "masked": "how many masks there are now",
    "network calls": "how often the network ran; a step in which nothing is drawn needs no call",
    "seconds": "what the sampler took so far, without the window's own work",
    "steps": "more steps: fewer words drawn at once, which cannot see each other",
    "temperature": "below 1: safer words, and fewer different ones",
    "top-p": "below 1: words that are improbable are never drawn",
    "sampler": "how the masks are unmasked, and in which order",
    "length": "how many tokens the text has; auto: it ends by itself",
    "block": "which block is being written; it sees those before it, and itself",
    "solutions": "how many completed grids have these digits",
    "seed": "another seed, another text; the same seed and settings, the same text",
    "prompt": "how the text begins; each _ in it is the mask of one token",
    "ancestral": "unmask each token at a random time, as in the paper",
    "plain": "as ancestral, but the network runs in every step",
    "first-hitting": "one token after the other, in random order: the exact limit of many steps",
    "confident": "always the tokens of which the model is surest: safe, and often dull",
    "remask": "may mask again what it wrote, and write it anew",
}

# -- rows


@lru_cache(maxsize=32)
def flow(style, groups, width, gap):
    """Groups of texts, each (text, colour, and perhaps command, tip), in lines like words."""
    items, x, y, h = [], 0, 0, style.fonts.height(style.px(14))
    for group in groups:
        labels = [style.text(0, 0, *text) for text in group]
        if x > 0 and x + sum(label.w for label in labels) > width:
            x, y = 0, y + h + style.px(6)
        for label in labels:
            items.append(label._replace(x=x, y=y))
            x += label.w
        x += gap
    return tuple(item for item in items if item.x + item.w <= width + 0.5), y + h


def line_of(style, text, width, color):
    """A text on one line, cut off where it is too long."""
    return style.text(0, 0, shorten(style.fonts, visible(text), style.px(14), width), color)


def fact(style, label, value):
    """A faint label and a value, as a group of texts."""
    tip = TIPS.get(label, "")
    return (f"{label} ", style.theme.faint, "", tip), (value, style.theme.ink, "", tip)


def header_row(lanes, state, style, width):
    """The title on the left; on the right the views, help and theme."""
    theme, groups = style.theme, []
    for name in [*VIEWS, *(("theme", "help") if state.controls else ())]:
        command = f"view {name}" if name in VIEWS else name
        shown = name == state.view  # then the caption says what it is
        tip, color = ("", theme.accent) if shown else (VIEWS.get(name, ""), theme.faint)
        groups.append(((f" {name} ", color, command, tip),))
    right, h = flow(style, tuple(groups), width, style.px(4))
    left = width - extent(right)[0]
    title = line_of(style, lanes[0].title, left - style.px(20), theme.ink)
    return (title, *moved(right, left, 0)), h


def caption_row(lanes, state, style, width):
    """One line on what is to be seen, and the scale of its colours. Errors appear here, too."""
    theme, record = style.theme, lanes[0]
    wrong = solutions(record, record.at(state.at)) == 0 and CONTRADICTION
    tour = controls.BLOCK_TOUR if record.block else controls.TOUR
    touring = state.touring and not record.grid and tour[min(2, int(3 * state.at))]
    busy = (record.tokenizer is None or len(lanes) > 1) and state.busy
    grid = record.grid and state.view != "order" and LEGEND
    text = state.message or wrong or busy or grid or touring or VIEWS[state.view]
    legend = color_legend(state.view, style)
    left = width - extent(legend)[0]
    color = theme.accent if state.message or state.touring or wrong else theme.faint
    label = line_of(style, text, left - style.px(16), color)
    return (label, *moved(legend, left, 0)), label.h


@lru_cache(maxsize=4)
def color_legend(view, style):
    """The scale of a view's colours between its two ends, as items at (0, 0)."""
    theme = style.theme
    first, last, color = {
        "text": ("0 ", " 1 ", lambda k: probability_color(k, theme)),
        "order": ("first ", " last ", viridis),
        "prediction": ("unsure ", " sure ", lambda k: certainty_color(k, theme)),
    }[view]
    label, n, w, h = style.text(0, 0, first, theme.faint), 24, style.px(4), style.px(8)
    scale = (
        Item("box", label.w + i * w, (label.h - h) / 2, w, h, color(i / (n - 1))) for i in range(n)
    )
    return (label, *scale, style.text(label.w + n * w, 0, last, theme.faint))


def timeline_row(lanes, state, style, width):
    """Buttons, and the run from left to right, as far as it is known, with a knob where we are."""
    theme, hair, height, knob = style.theme, style.px(2), style.px(28), style.px(12)
    items, x, button, rows = [], 0, style.px(30), lanes[0].rows
    if state.controls:
        play = "❚❚" if state.playing else "▶"
        for mark, command in ((play, "play"), ("◂", "step -1"), ("▸", "step 1")):
            label = style.text(0, 0, mark, theme.ink)
            left, top = x + (button - label.w) / 2, (height - label.h) / 2
            items.append(Item("area", x, 0, button, height, command=command))
            items.append(label._replace(x=left, y=top))
            x += button
        x += style.px(10)
    bar, done, line = max(1, width - x - style.px(8)), min(1.0, state.at), (height - hair) / 2
    for share, color in ((1, theme.line), (edge(lanes), theme.faint), (done, theme.accent)):
        items.append(Item("box", x, line, bar * min(1, share), hair, color))
    known = [row for row in rows if row.bits is not None]
    most = max((row.bits for row in known), default=0) or 1
    curve = tuple((bar * row.time, line * (1 - row.bits / most)) for row in known)
    if curve:
        items.append(Item("line", x, 0, bar, line, theme.faint, radius=1, points=curve))
    middle, bits = x + bar * done, rows[lanes[0].at(state.at)].bits
    place = (middle - knob / 2, (height - knob) / 2, knob, knob)
    items.append(Item("box", *place, theme.accent, radius=knob / 2))
    tip = "the curve: the mean entropy at the masks, as far as it is computed"
    tip += f"; here {bits:.1f} bits" if bits is not None else ""
    return (*items, Item("area", x, 0, bar, height, command="timeline", tip=tip)), height


def status_row(lanes, state, style, width):
    """Where we are, in numbers. (Those of several lanes stand over each of them.)"""
    n = lanes[0].at(state.at)
    told = facts(lanes[0], n) if lanes[0].settings else []
    if (left := solutions(lanes[0], n)) is not None:
        told.append(("solutions", f"{left:,}"))
    groups = (*(fact(style, *each) for each in told), ((state.busy, style.theme.faint),))
    return flow(style, groups, width, style.px(20))


def settings_row(lanes, state, style, width):
    """The settings of the next run: each with arrows, which no change of the value moves."""
    theme, groups = style.theme, []
    longest, form = max(map(len, SAMPLERS)), {"temperature": ".1f", "top_p": ".2f"}
    for i, name in enumerate(CHOICES):
        value = f"{getattr(state.settings, name):{form.get(name, '')}}"
        value = "auto" if name == "length" and value == "0" else value
        label, pad = name.replace("_", "-"), longest if name == "sampler" else 4
        group = (
            (f"{label} ", theme.accent if i == state.picked else theme.faint, "", TIPS[label]),
            ("‹ ", theme.accent, f"less {name}"),
            ("› ", theme.accent, f"more {name}"),
            (f" {value:<{pad}}", theme.ink, "", TIPS.get(value, "")),
        )
        groups += [group] if name != "length" or not lanes[0].grid else []
    return flow(style, tuple(groups), width, style.px(14))


def action_row(lanes, state, style, width):
    """What can be done."""
    theme, settings = style.theme, lanes[-1].settings
    lit = {"run": settings and state.settings != settings, "compare": state.kept}
    groups = tuple(
        ((label, theme.accent if lit.get(verb) else theme.ink, verb, tip),)
        for verb, (label, tip) in controls.ACTIONS.items()
        if not (verb == "corrupt" and lanes[0].grid)
    )
    return flow(style, groups, width, style.px(20))


def prompt_row(lanes, state, style, width):
    """The prompt of the next run; while it is typed, a field with a caret."""
    if state.prompt is not None:
        return field_row(state, style, width)
    theme, real, grid = style.theme, lanes[-1].original is not None, lanes[0].grid
    text = f"“{state.settings.prompt[:200]}”" if state.settings.prompt else "none"
    text = line_of(style, text, width / 3, theme.ink).text
    label = "a text of the validation set; next prompt " if real else "prompt "
    tell = ("prompt", TIPS["prompt"])
    groups = [((label, theme.faint, *tell), (text, theme.ink, *tell))]
    if width > style.px(600):
        groups.append((("try" if real or grid else "type another, or try", theme.faint),))
        examples = controls.PUZZLES if grid else controls.EXAMPLES
        for k, (name, tip) in enumerate(examples.items()):
            groups.append(((name, theme.ink, f"example {k}", tip),))
    return flow(style, tuple(groups), width, style.px(20))


def field_row(state, style, width):
    """What is being typed: a prompt, or other words for those that are selected."""
    theme, size, field, measure = style.theme, style.px(14), state.prompt, style.fonts.width
    label, note = "prompt ", "write it.  Escape: leave it.  Each _ is a mask, \\_ an underscore."
    if state.selected:
        label, note = "instead ", "put it in the place of what is selected.  Escape: leave it."
    label = line_of(style, label, width / 2, theme.accent)
    h, room = label.h, width - label.w - style.px(4)
    text, rest = visible(field.text[: field.caret]), visible(field.text[field.caret :])
    text += field.composing
    # of what is left of the caret its end is shown, of what is right of it its beginning
    before = shorten(style.fonts, text[-1000:][::-1], size, room)[::-1]
    x = label.w + measure(before, size)
    after = shorten(style.fonts, rest[:1000], size, max(0, width - x - style.px(2)))
    start = x - measure(text, size)
    ends = [start + measure(visible(field.text[:k]), size) for k in field.span]
    left, right = (min(max(label.w, end), width) for end in ends)
    note = line_of(style, "Return: " + note, width, theme.faint)._replace(y=h + style.px(6))
    items = [
        label,
        Item("box", left, 0, right - left, h, theme.line if left < right else theme.page),
        style.text(label.w, 0, before, theme.ink),
        style.text(x, 0, after, theme.ink),
        Item("box", x, 0, style.px(2), h, theme.accent, command="caret"),
        note,
    ]
    return tuple(items), note.y + note.h


def lane_rows(lanes, state, style, width):
    """Over each lane of several: who it is, and how far, as much as fits on one line over all."""
    groups = []
    for lane in lanes:
        name, same = lane.name, [each for each in lanes if each.name == lane.name]
        mine, *others = (vars(each.settings) for each in (lane, *same) if each.settings)
        other = next((each for each in others if each != mine), None)
        if other and not lane.causal:
            changes = (f"{k.replace('_', '-')} {v}" for k, v in mine.items() if v != other[k])
            name = ", ".join(changes)
        name = line_of(style, name, width, style.theme.ink).text
        told = facts(lane, lane.at(state.at), alone=False)
        groups.append((((name, style.theme.ink),), *(fact(style, *each) for each in told)))
    for k in (3, 2, 1):
        rows = [flow(style, group[:k], width, style.px(20)) for group in groups]
        if len({h for _, h in rows}) == 1 and all(item.y == 0 for row, _ in rows for item in row):
            return rows


# -- what lies on top


class Line(NamedTuple):
    """A line of text on a card."""

    text: str
    color: tuple
    share: float = 0  # the length of a bar below it
    command: str = ""  # what a click on it does


def card(style, lines, size):
    """Lines on a card, as items at (0, 0)."""
    theme, pad = style.theme, style.px(12)
    pitch = math.ceil(style.fonts.height(size) * 1.25)
    wide = max(style.fonts.width(line.text, size) for line in lines)
    box = (0, 0, wide + 2 * pad, pitch * len(lines) + 2 * pad)
    items = [
        Item("box", *box, theme.card, radius=style.px(8), command="card"),
        Item("outline", *box, theme.line, radius=style.px(8)),
    ]
    for i, line in enumerate(lines):
        y = pad + i * pitch
        if line.share:
            place = (pad, y + pitch - style.px(3), wide * line.share, style.px(2))
            items.append(Item("box", *place, theme.accent))
        items.append(style.text(pad, y, line.text, line.color, size=size))
        if line.command:
            items.append(Item("area", pad, y, wide, pitch, command=line.command))
    return tuple(items)


def percent(p):
    """A probability as a person writes it, never 0: "12.3%", "0.04%", "<0.01%"."""
    return "<0.01%" if p < 0.0001 else f"{p:.1%}" if p >= 0.001 else f"{p:.2%}"


def told_of(record, n, i):
    """What there is to know about the token at place i of row n, line by line."""
    row, named = record.rows[n], lambda token: f"“{visible(record.tokenizer.show(token))}”"
    if row.text[i] == MASKED:
        told = ["masked" if rivals(record, n, i) else "masked; not predicted so far"]
    else:
        since, together = row.since[i], len(companions(record, n, i))
        drawn = f"drawn at t {record.rows[since].t:.2f} with {percent(row.probability[i])}"
        told = [named(row.text[i]), drawn if since else "given"]
        told += [f"in one step with {together} more, unseen by each other"] * bool(together)
        told += ["what else it could have been is not kept of a GPT"] * record.causal
    if record.original is not None and record.original[i] != row.text[i]:
        told.append(f"the original: {named(record.original[i])}")
    return told


def token_card(lanes, state, tokens, style):
    """What there is to know about a token now, and what can be done with it, at (0, 0)."""
    theme, (record, i) = style.theme, lane_of(lanes, max(tokens))
    n, alone, selected = record.at(state.at), len(tokens) == 1, bool(state.selected)
    text, free = record.rows[n].text, not record.causal and record.tokenizer is not None
    first, *told = told_of(record, n, i) if alone else [f"{len(tokens)} words"]
    lines = [Line(first, theme.ink), *(Line(text, theme.faint) for text in told)]

    def way(what, how, *more):
        lines.append(Line(f"{what:<22}{how}", *more))

    if free and selected:
        way("another digit" if record.grid else "other words", "type", theme.faint)
        if any(text[i + token - max(tokens)] != MASKED for token in tokens):
            way("erase and refill", "Delete", theme.ink, 0, "erase")
    for token, name, p in rivals(record, n, i) if alone else ():
        command = f"put {token}" if free and selected else ""
        lines.append(Line(f"{percent(p):>6}  “{visible(name)}”", theme.ink, p, command))
    if free and not selected:
        lines.append(Line("click: change it", theme.faint))
    if record.heads[0] and selected:
        layer, head = divmod(state.head - 1, record.heads[1])
        shown = {-1: "", 0: ": mean"}.get(state.head, f": {layer + 1}, head {head + 1}")
        way("attention" + shown, "Ctrl+A", theme.ink, 0, "attend")
    return card(style, lines, style.px(14))


def threads(words, lanes, state, style):
    """Lines from a token that is chosen: to what was drawn with it, or to what it attended to."""
    theme, token = style.theme, max(state.selected)
    record, i = lane_of(lanes, token)
    n, boxes = record.at(state.at), {word[0].token: word[0] for word in words}
    row, found, lines = asked(record, n, i), {}, []  # found: place: how strong the line is
    if state.head < 0:
        found = dict.fromkeys(companions(record, n, i))
    elif row.look is not None and record.done and record.heads[0]:
        weights = row.look.attention
        w = weights.mean(axis=0)[i] if state.head == 0 else weights[state.head - 1, i]
        found = {int(j): w[j] / w.max() for j in w.argsort()[:-13:-1] if j != i}
    for j, k in found.items():
        ends = [boxes.get(token), boxes.get(token - i + j)]
        if None not in ends:
            x, y = zip(*((box.x + box.w / 2, box.y + box.h / 2) for box in ends), strict=True)
            place = (min(x), min(y), max(x) - min(x), max(y) - min(y))
            points = tuple((a - min(x), b - min(y)) for a, b in zip(x, y, strict=True))
            color = theme.accent if k is None else mix(theme.page, theme.accent, 0.4 + 0.6 * k)
            wide = style.px(1) * (2 if k is None else 1 + 3 * k)
            lines.append(Item("line", *place, color, radius=wide, points=points))
    return moved(tuple(lines), 0, 0)


def put_beside(items, item, size, gap):
    """Items at (0, 0) to below another one, or above it; in any case inside the window."""
    w, h = extent(items)
    if w > size[0] or h > size[1]:
        return ()
    y = item.y + item.h + gap
    if y + h > size[1] or item.command == "timeline":  # below it are the figures of this moment
        y = max(0, item.y - gap - h)
    return moved(items, min(max(0, item.x), size[0] - w), y)


def highlighted(page, item, style):
    """The page with a lighter row of the card, if that is what the mouse points at."""
    if item is None or item.kind != "area" or item not in page.overlay:
        return page
    more = style.px(6)
    place = dict(x=item.x - more, w=item.w + 2 * more, y=item.y - more / 2)
    behind = item._replace(kind="box", color=style.theme.line, **place)
    return replace(page, overlay=(*page.overlay[:2], behind, *page.overlay[2:]))


def help_card(box, style):
    """All keys, on a card over the text, so that what it explains can be seen."""
    x, y, w, h = box
    rows = [("letters", "type a prompt, or other words for those chosen")]
    rows += [(keys.replace(" ", "  "), meaning) for keys, _, meaning in controls.BINDINGS]
    rows.append(("mouse", "click on anything; point at anything to know it"))
    longest = max(len(keys) for keys, _ in rows)
    lines = [Line(f"{k:<{longest}}   {what}", style.theme.ink, 0, "help") for k, what in rows]
    for letters in range(style.px(15), 5, -1):
        items = card(style, lines, letters)
        wide, tall = extent(items)
        if wide <= w and tall <= h:
            return moved(items, x + (w - wide) // 2, y + (h - tall) // 2)
    return ()


# -- the page

ROWS = {  # from top to bottom; in a small window those with the smallest numbers are given up first
    header_row: 6, caption_row: 5, timeline_row: 7, status_row: 4, settings_row: 1, action_row: 3,
    prompt_row: 2,
}  # fmt: skip
CONTROLS = (settings_row, action_row, prompt_row)
style_of = lru_cache(maxsize=4)(Style)  # the same object for the same style


def lay_out(lanes, state, size, fonts, scale=1.0):
    """Everything in a window of `size` (w, h) pixels: a `Layout`.

    lanes: the records to be shown beside each other. `scale`: pixels in one point of the screen,
    2 on many a laptop.
    """
    width, height = size
    unit = max(min(width / 1000, height / 700), 0.8 * scale)
    style, lanes = style_of(fonts, THEMES[state.theme], unit), tuple(lanes)
    margin = min(style.px(36), width // 12, height // 12)
    inner, gap = width - 2 * margin, style.px(12)
    rows = {
        make: make(lanes, state, style, inner)
        for make in ROWS
        if not (make is status_row and len(lanes) > 1)
        if state.controls or make not in CONTROLS
    }
    share = 0.5 if len(lanes) == 1 or beside(inner, style) else 0.6  # of the height is for text
    for make in [*sorted(rows, key=ROWS.get), None]:
        room = height - 2 * margin - sum(h + gap for _, h in rows.values())
        if room > share * height:
            break
        if not (make is prompt_row and state.prompt):  # what is being typed must be seen
            rows.pop(make, None)

    placed, words, y, bleed = [], [], margin, min(margin, style.px(BLEED))
    for make in ROWS:
        if make is timeline_row:  # the text is above it
            panel = (margin - bleed, y + style.px(8), inner + 2 * bleed, room - style.px(8))
            labels, words = lay_out_lanes(lanes, state, panel, style)
            placed += [labels, threads(words, lanes, state, style)] if state.selected else [labels]
            y += room
        if make in rows:
            row, h = rows[make]
            placed.append(moved(row, margin, y))
            y += h + gap
    page = Layout(placed, words, help_card(panel, style) if state.help else ())
    return page if state.help else with_card(page, lanes, state, style, size)


def with_card(page, lanes, state, style, size):
    """The page with a card: of the token that is chosen, or of what the mouse points at."""
    pointed = page.at(*state.mouse) if state.mouse else None
    if state.selected:
        boxes = [word[0] for word in page.words if word[0].token == max(state.selected)]
        pointed = boxes[0] if boxes else None
    if pointed is None or (pointed.token is None and (not pointed.tip or state.dragging)):
        return page
    near = card(style, [Line(pointed.tip, style.theme.ink)], style.px(14))
    if pointed.token is not None:
        near = token_card(lanes, state, state.selected or {pointed.token}, style)
        if lanes[0].grid:  # the card stands beside it, if it can
            right = max(word[0].x + word[0].w for word in page.words) + style.px(12)
            near *= right + extent(near)[0] <= size[0]
            pointed = pointed._replace(x=right, h=0)
    page = replace(page, overlay=put_beside(near, pointed, size, style.px(6)))
    return highlighted(page, page.at(*state.mouse), style) if state.mouse else page


def beside(width, style):
    """Whether lanes stand side by side, and not one above the other."""
    return width > style.px(640)


def lay_out_lanes(lanes, state, box, style):
    """The panels of all lanes in box (x, y, w, h), beside each other, or one above the other:
    (labels, words)."""
    x, y, w, h = box
    n, gap = len(lanes), style.px(28)
    right, down = (1, 0) if beside(w, style) else (0, 1)
    w, h = (w - (n - 1) * gap) / n if right else w, (h - (n - 1) * gap) / n if down else h
    labels, words, before = (), [], 0
    rows = lane_rows(lanes, state, style, w) if n > 1 else [((), 0)]
    for lane, (row, used) in zip(lanes, rows, strict=True):
        labels += moved(row, x + min(style.px(BLEED), w), y)
        used += style.px(12) * (n > 1)
        panel = (x, y + used, w, h - used)
        if lane.grid:
            lines, cells = lay_out_grid(lane, state, panel, style, before)
            labels, words = labels + lines, words + cells
        else:
            words += lay_out_panel(lane, state, panel, style, before)
        before += lane.length
        x, y = x + right * (w + gap), y + down * (h + gap)
    return moved(labels, 0, 0), words
