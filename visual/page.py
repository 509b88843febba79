"""The whole page as items: the text, and the rows and cards around it. Pure functions.

A row is a function of the width that returns (items, height); `lay_out` puts them together.
"""

import math
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

from visual import controls
from visual.colors import THEMES, certainty_color, mix, probability_color, viridis
from visual.controls import BLOCK_TOUR, CHOICES, REQUESTS, TOUR, VIEWS, State, lane_of
from visual.items import Item, Layout, Style, extent, moved, shorten, visible
from visual.record import MASKED, SAMPLERS, asked, companions, facts, rivals
from visual.sudoku import CONTRADICTION, LEGEND, PUZZLES, lay_out_grid, solutions
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
    return [item for item in items if item.x + item.w <= width + 0.5], y + h


def line_of(style, text, width, color):
    """A text on one line, cut off where it is too long."""
    return style.text(0, 0, shorten(style.fonts, visible(text), style.px(14), width), color)


def fact(style, label, value):
    """A faint label and a value, as a group of texts."""
    tip = TIPS.get(label, "")
    return (f"{label} ", style.theme.faint, "", tip), (value, style.theme.ink, "", tip)


def arrows(style, label, value, less, more, color=None):
    """A label, two arrows to click, and a value whose width moves none of them: a group."""
    theme = style.theme
    name = (f"{label} ", color or theme.faint, "", TIPS.get(label, ""))
    value = (f" {value}", theme.ink, "", TIPS.get(value.strip(), ""))
    return name, ("‹ ", theme.accent, less), ("› ", theme.accent, more), value


@lru_cache(maxsize=4)
def header_row(lanes, state, style, width):
    """The title on the left; on the right the views, help and theme."""
    names = [(view, f"view {view}") for view in VIEWS]
    names += [("theme", "theme"), ("help", "help")] if state.controls else []
    colors = {f"view {state.view}": style.theme.accent}
    tips = VIEWS | {state.view: ""}  # it is the caption
    groups = [
        [(f" {name} ", colors.get(command, style.theme.faint), command, tips.get(name, ""))]
        for name, command in names
    ]
    right, h = flow(style, groups, width, style.px(4))
    left = width - extent(right)[0]
    title = line_of(style, lanes[0].title, left - style.px(20), style.theme.ink)
    return [title, *moved(right, left, 0)], h


def caption_row(lanes, state, style, width):
    """One line on what is to be seen, and the scale of its colours. Errors appear here, too."""
    legend, text = color_legend(state.view, style), VIEWS[state.view]
    if state.touring and not lanes[0].grid:
        tour = BLOCK_TOUR if lanes[0].block else TOUR
        text = tour[min(len(tour) - 1, int(state.at * len(tour)))]
    if lanes[0].grid:
        text = LEGEND if state.view != "order" else text
    if lanes[0].tokenizer is None or len(lanes) > 1:  # what else is to be said, if anything
        text = state.busy or text
    if solutions(lanes[0], lanes[0].at(state.at)) == 0:
        text = CONTRADICTION
    left, told = width - extent(legend)[0], state.message or state.touring or text == CONTRADICTION
    color = style.theme.accent if told else style.theme.faint
    label = line_of(style, state.message or text, left - style.px(16), color)
    return [label, *moved(legend, left, 0)], label.h


@lru_cache(maxsize=4)
def color_legend(view, style):
    """The scale of a view's colours between its two ends, as items at (0, 0)."""
    theme = style.theme
    first, last, color = {
        "text": ("0 ", " 1 ", lambda k: probability_color(k, theme)),
        "order": ("first ", " last ", viridis),
        "prediction": ("unsure ", " sure ", lambda k: certainty_color(k, theme)),
    }[view]
    items = [style.text(0, 0, first, theme.faint)]
    left, n, w, h = items[0].w, 24, style.px(4), style.px(8)
    for i in range(n):
        place = (left + i * w, (items[0].h - h) / 2, w, h)
        items.append(Item("box", *place, color(i / (n - 1))))
    return [*items, style.text(left + n * w, 0, last, theme.faint)]


def timeline_row(lanes, state, style, width):
    """Buttons, and the run from left to right, as far as it is known, with a knob where we are."""
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
    bits = lanes[0].rows[lanes[0].at(state.at)].bits
    tip = "the curve: the mean entropy at the masks, as far as it is computed"
    tip += f"; here {bits:.1f} bits" if bits is not None else ""
    bar, done, line = max(1, width - x - style.px(8)), min(1.0, state.at), (height - hair) / 2
    for share, color in (
        (1, theme.line),
        (controls.edge(lanes), theme.faint),
        (done, theme.accent),
    ):
        items.append(Item("box", x, line, bar * min(1, share), hair, color))
    points = tuple((row.time, row.bits) for row in lanes[0].rows if row.bits is not None)
    items += curve(points, x, bar, line, theme.faint)
    place = (x + bar * done - knob / 2, (height - knob) / 2, knob, knob)
    items.append(Item("box", *place, theme.accent, radius=knob / 2))
    items.append(Item("area", x, 0, bar, height, command="timeline", tip=tip))
    return items, height


@lru_cache(maxsize=4)
def curve(points, x, w, h, color):
    """Lines through points (0 to 1, a height from 0) in a box that begins at (x, 0)."""
    most, items = max((bits for _, bits in points), default=1) or 1, []
    for (start, a), (end, b) in pairwise(points):
        place = (x + w * start, h * (1 - a / most), w * (end - start), h * (a - b) / most)
        items.append(Item("line", *place, color, radius=1))
    return items


def status_row(lanes, state, style, width):
    """Where we are, in numbers. (Those of several lanes stand over each of them.)"""
    n = lanes[0].at(state.at)
    told = facts(lanes[0], n) if lanes[0].settings else []
    if told and (left := solutions(lanes[0], n)) is not None:
        told.append(("solutions", f"{left:,}"))
    groups = [fact(style, *each) for each in told]
    groups.append([(state.busy, style.theme.faint)])
    return flow(style, groups, width, style.px(20))


@lru_cache(maxsize=4)
def settings_row(lanes, state, style, width):
    """The settings of the next run."""
    groups, longest, form = [], max(map(len, SAMPLERS)), {"temperature": ".1f", "top_p": ".2f"}
    for i, name in enumerate(CHOICES):
        if name == "length" and lanes[0].grid:
            continue
        value = f"{getattr(state.settings, name):{form.get(name, '')}}"
        value = "auto" if name == "length" and value == "0" else value
        value = value.ljust(longest if name == "sampler" else 4)
        color = style.theme.accent if i == state.picked else style.theme.faint
        label = name.replace("_", "-")
        groups.append(arrows(style, label, value, f"less {name}", f"more {name}", color))
    return flow(style, groups, width, style.px(14))


@lru_cache(maxsize=4)
def action_row(lanes, state, style, width):
    """What can be done."""
    theme, settings = style.theme, lanes[-1].settings
    ready = theme.accent if settings and state.settings != settings else theme.ink
    colors = {"run": ready, "compare": theme.accent if state.kept else theme.ink}
    names = dict(run="▶ run", new="new seed", branch="branch here", corrupt="corrupt a text")
    groups = [
        [(names.get(verb, verb), colors.get(verb, theme.ink), verb, tip)]
        for verb, tip in REQUESTS.items()
        if " " not in verb  # the examples stand beside the prompt
        and not (verb == "corrupt" and lanes[0].grid)
    ]
    return flow(style, groups, width, style.px(20))


@lru_cache(maxsize=4)
def prompt_row(lanes, state, style, width):
    """The prompt of the next run; while it is typed, a field with a caret."""
    theme, size, field = style.theme, style.px(14), state.prompt
    if field is None:
        text = state.settings.prompt[:200]
        prompt = line_of(style, f"“{text}”" if text else "none", width / 3, theme.ink).text
        real = lanes[-1].original is not None
        label = "a text of the validation set; next prompt " if real else "prompt "
        groups = [[(label, theme.faint, "prompt", TIPS["prompt"])]]
        groups[0].append((prompt, theme.ink, "prompt", TIPS["prompt"]))
        if width > style.px(600):
            hint = "try" if real or lanes[0].grid else "type another, or try"
            groups.append([(hint, theme.faint)])
            names = ("a beginning", "a gap", "a lost middle") if not lanes[0].grid else PUZZLES
            for k, name in enumerate(names):
                groups.append([(name, theme.ink, f"example {k}", REQUESTS[f"example {k}"])])
        return flow(style, groups, width, style.px(20))
    label, note = "prompt ", "write it.  Escape: leave it.  Each _ is a mask, \\_ an underscore."
    if state.selected:
        label, note = "instead ", "put it in the place of what is selected.  Escape: leave it."
    label = line_of(style, label, width / 2, theme.accent)
    h, room, measure = label.h, width - label.w - style.px(4), style.fonts.width
    text, rest = visible(field.text[: field.caret]), visible(field.text[field.caret :])
    # of what is left of the caret its end is shown, of what is right of it its beginning
    before = shorten(style.fonts, (text + field.composing)[-1000:][::-1], size, room)[::-1]
    x = label.w + measure(before, size)
    after = shorten(style.fonts, rest[:1000], size, max(0, width - x - style.px(2)))
    shift = x - measure(text + field.composing, size)
    ends = [measure(visible(field.text[:k]), size) + shift for k in field.span]
    left, right = (min(max(label.w, end), width) for end in ends)
    items = [label] + [Item("box", left, 0, right - left, h, theme.line)] * (left < right)
    items += [style.text(label.w, 0, before, theme.ink), style.text(x, 0, after, theme.ink)]
    caret = Item("box", x, 0, style.px(2), h, theme.accent, command="caret")
    note = line_of(style, "Return: " + note, width, theme.faint)._replace(y=h + style.px(6))
    return [*items, caret, note], note.y + note.h


def lane_rows(lanes, state, style, width):
    """Over each lane of several: who it is, and how far, as much as fits on one line over all."""
    groups = []
    for lane in lanes:
        name, same = lane.name, [each for each in lanes if each.name == lane.name]
        other = next((each for each in same if each is not lane), lane)
        if not lane.causal and lane.settings != other.settings:
            mine, theirs = vars(lane.settings), vars(other.settings)
            name = [f"{k.replace('_', '-')} {v}" for k, v in mine.items() if v != theirs[k]]
            name = ", ".join(name)
        name = line_of(style, name, width, style.theme.ink).text
        told = facts(lane, lane.at(state.at), alone=False)
        groups.append([[(name, style.theme.ink)], *(fact(style, *each) for each in told)])
    for k in (3, 2, 1):
        rows = [flow(style, group[:k], width, style.px(20)) for group in groups]
        if len({h for _, h in rows}) == 1 and all(item.y == 0 for row, _ in rows for item in row):
            return rows


# -- what lies on top


def card(style, lines, size):
    """Lines of text on a card, at (0, 0): (text, colour, length of a bar below it, command)."""
    theme, pad = style.theme, style.px(12)
    pitch = math.ceil(style.fonts.height(size) * 1.25)
    wide = max(style.fonts.width(text, size) for text, *_ in lines)
    box = (0, 0, wide + 2 * pad, pitch * len(lines) + 2 * pad)
    items = [
        Item("box", *box, theme.card, radius=style.px(8), command="card"),
        Item("outline", *box, theme.line, radius=style.px(8)),
    ]
    for i, (text, color, share, command) in enumerate(lines, 1):
        bottom = pad + i * pitch
        bar = Item("box", pad, bottom - style.px(3), wide * share, style.px(2), theme.accent)
        items += [bar] if share else []
        items.append(style.text(pad, bottom - pitch, text, color, size=size))
        if command:
            items.append(Item("area", pad, bottom - pitch, wide, pitch, command=command))
    return items


def percent(p):
    """A probability as a person writes it, never 0: "12.3%", "0.04%", "below 0.01%"."""
    if p < 0.0001:
        return "<0.01%"
    return f"{p:.1%}" if p >= 0.001 else f"{p:.2%}"


def token_card(lanes, state, tokens, style):
    """What there is to know about a token now, and what can be done with it, at (0, 0)."""
    theme, (record, i) = style.theme, lane_of(lanes, max(tokens))
    n = record.at(state.at)
    row, since = record.rows[n], record.rows[n].since[i]
    found, together = rivals(record, n, i) if len(tokens) == 1 else [], companions(record, n, i)
    told = [f"{len(tokens)} words"]
    if len(tokens) == 1 and row.text[i] == MASKED:
        told = ["masked" if found else "masked; not predicted so far"]
    elif len(tokens) == 1:
        when = f"drawn at t {record.rows[since].t:.2f} with {percent(row.probability[i])}"
        told = [f"“{visible(record.tokenizer.show(row.text[i]))}”", when if since else "given"]
        if together:
            told.append(f"in one step with {len(together)} more, unseen by each other")
        if record.causal:
            told.append("what else it could have been is not kept of a GPT")
    original = row.text if record.original is None else record.original
    if len(tokens) == 1 and original[i] != row.text[i]:
        told.append(f"the original: “{visible(record.tokenizer.show(original[i]))}”")
    lines = [(text, theme.ink if k == 0 else theme.faint, 0, "") for k, text in enumerate(told)]
    free = not record.causal and record.tokenizer is not None  # to be changed
    edits = free and state.selected
    if edits:
        other = "another digit" if record.grid else "other words"
        lines.append((f"{other:<19}type", theme.faint, 0, ""))
        if (row.text[[i + token - max(tokens) for token in tokens]] != MASKED).any():
            lines.append((f"{'erase and refill':<19}Delete", theme.ink, 0, "erase"))
    for token, name, p in found:
        line = f"{percent(p):>6}  “{visible(name)}”"
        lines.append((line, theme.ink, p, f"put {token}" if edits else ""))
    if not state.selected:
        lines += [("click: change it", theme.faint, 0, "")] if free else []
        return card(style, lines, style.px(14))
    layer, head = divmod(max(0, state.head - 1), max(1, record.heads[1]))
    shown = {-1: "", 0: ": mean"}.get(state.head, f": {layer + 1}, head {head + 1}")
    if record.heads[0]:
        lines.append((f"{'attention' + shown:<19}Ctrl+A", theme.ink, 0, "attend"))
    return card(style, lines, style.px(14))


def threads(words, lanes, state, style):
    """Lines from a token that is chosen: to what was drawn with it, or to what it attended to."""
    theme, token = style.theme, max(state.selected)
    record, i = lane_of(lanes, token)
    n, boxes = record.at(state.at), {word[0].token: word[0] for word in words}
    row, found = asked(record, n, i), []
    if state.head < 0:
        found = [(j, theme.accent, 2) for j in companions(record, n, i)]
    elif row.look is not None and record.done and record.heads[0]:
        weights = row.look.attention
        w = weights.mean(axis=0)[i] if state.head == 0 else weights[state.head - 1, i]
        for j in map(int, w.argsort()[:-13:-1]):  # the more, the thicker and the brighter
            k = w[j] / w.max()
            found.append((j, mix(theme.page, theme.accent, 0.4 + 0.6 * k), 1 + 3 * k))
    lines = []
    for j, color, wide in found:
        pair = [boxes.get(token), boxes.get(token - i + j)]
        if j != i and None not in pair:
            (x1, y1), (x2, y2) = sorted((box.x + box.w / 2, box.y + box.h / 2) for box in pair)
            lines.append(Item("line", x1, y1, x2 - x1, y2 - y1, color, radius=style.px(1) * wide))
    return lines


def put_beside(items, item, size, gap):
    """Items at (0, 0) to below another one, or above it; in any case inside the window."""
    w, h = extent(items)
    if w > size[0] or h > size[1]:
        return []
    y = item.y + item.h + gap
    if y + h > size[1] or item.command == "timeline":  # below it are the figures of this moment
        y = max(0, item.y - gap - h)
    return moved(items, min(max(0, item.x), size[0] - w), y)


def highlighted(page, item, style):
    """The page with a lighter row of the card, if that is what the mouse points at."""
    if item is None or item.kind != "area" or item not in page.overlay:
        return page
    more = style.px(6)
    behind = item._replace(kind="box", x=item.x - more, w=item.w + 2 * more, y=item.y - more / 2)
    behind = behind._replace(color=style.theme.line)
    return replace(page, overlay=[*page.overlay[:2], behind, *page.overlay[2:]])


def help_card(box, style):
    """All keys, on a card over the text, so that what it explains can be seen."""
    theme, (x, y, w, h) = style.theme, box
    rows = [("letters", "type a prompt, or other words for those chosen")]
    rows += [(keys.replace(" ", "  "), meaning) for keys, _, meaning in controls.BINDINGS]
    rows.append(("mouse", "click on anything; point at anything to know it"))
    longest = max(len(keys) for keys, _ in rows)
    lines = [(f"{keys:<{longest}}   {meaning}", theme.ink, 0, "help") for keys, meaning in rows]
    for letters in range(style.px(15), 5, -1):
        items = card(style, lines, letters)
        wide, tall = extent(items)
        if wide <= w and tall <= h:
            return moved(items, x + (w - wide) // 2, y + (h - tall) // 2)
    return []


# -- the page

ROWS = [header_row, caption_row, timeline_row, status_row, settings_row, action_row, prompt_row]
MOVING = (caption_row, timeline_row, status_row)  # they depend on where on the clock we are
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
    still = State(state.settings, view=state.view, help=state.help, picked=state.picked)
    still = replace(still, prompt=state.prompt, kept=state.kept, controls=state.controls)
    still = replace(still, selected=state.selected if state.prompt else frozenset())
    rows = {make: make(lanes, state if make in MOVING else still, style, inner) for make in ROWS}
    given_up = [settings_row, prompt_row, action_row, status_row]
    given_up += [caption_row, header_row, timeline_row]
    share = 0.5 if len(lanes) == 1 or beside(inner, style) else 0.6  # of the height is for text
    if len(lanes) > 1:
        del rows[status_row]
    if not state.controls:
        del rows[settings_row], rows[action_row], rows[prompt_row]
    elif state.prompt is not None:  # what is being typed must be seen
        given_up.remove(prompt_row)
    for make in [*given_up, None]:  # in a small window
        room = height - 2 * margin - sum(h + gap for _, h in rows.values())
        if room > share * height:
            break
        rows.pop(make, None)

    items, words, y, bleed = [], [], margin, min(margin, style.px(BLEED))
    for make in ROWS:
        if make is timeline_row:  # the text is above it
            panel = (margin - bleed, y + style.px(8), inner + 2 * bleed, room - style.px(8))
            labels, words = lay_out_lanes(lanes, state, panel, style)
            items += labels + (threads(words, lanes, state, style) if state.selected else [])
            y += room
        if make in rows:
            row, h = rows[make]
            items += moved(row, margin, y)
            y += h + gap
    page = Layout(items, words, [])
    if state.help:
        return replace(page, overlay=help_card(panel, style))
    pointed = page.at(*state.mouse) if state.mouse else None
    if state.selected:
        chosen = [word[0] for word in words if word[0].token == max(state.selected)]
        pointed = chosen[0] if chosen else None
    if pointed is None or (pointed.token is None and (not pointed.tip or state.dragging)):
        return page
    near = card(style, [(pointed.tip, style.theme.ink, 0, "")], style.px(14))
    if pointed.token is not None:
        near = token_card(lanes, state, state.selected or {pointed.token}, style)
        if lanes[0].grid:  # the card stands beside it, if it can
            right = max(word[0].x + word[0].w for word in words) + style.px(12)
            near *= right + extent(near)[0] <= width
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
    across = beside(w, style)
    if across:
        w = (w - (n - 1) * gap) / n
    else:
        h = (h - (n - 1) * gap) / n
    items, words, before, used = [], [], 0, 0
    rows = lane_rows(lanes, state, style, w) if n > 1 else []
    for lane in lanes:
        if n > 1:
            row, used = rows.pop(0)
            items += moved(row, x + min(style.px(BLEED), w), y)
            used += style.px(12)
        panel = (x, y + used, w, h - used)
        if lane.grid:
            lines, cells = lay_out_grid(lane, state, panel, style, before)
            items, words = items + lines, words + cells
        else:
            words += lay_out_panel(lane, state, panel, style, before)
        before += lane.length
        x, y = (x + w + gap, y) if across else (x, y + h + gap)
    return items, words
