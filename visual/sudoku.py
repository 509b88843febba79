"""A Sudoku as the text of a run: what is still masked shows how probable each digit is there."""

from functools import cache, lru_cache

import numpy as np

from files import UserError
from visual.colors import certainty_color
from visual.items import Item
from visual.record import MASKED, place_among_masks
from visual.typesetting import appearance

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # size of the grid: height and width of its boxes
CONTRADICTION = "a contradiction: no grid has these digits"
LEGEND = "The larger a small digit, the more probable. Bold: given; click on a cell, type a digit."
MANY = 30  # solutions that a puzzle may have: one with a single solution leaves nothing to doubt


@cache
def perfect():
    """The network that knows all grids of 6 x 6: nothing has to be learned."""
    from mdlm.sudoku import PerfectNetwork, first_row_grids

    return PerfectNetwork(first_row_grids(6))


def puzzle(seed):
    """A random grid of 6 x 6 that has lost digits, until it has several solutions; as a prompt."""
    import torch

    from mdlm.sudoku import draw_grids

    network, noise = perfect(), torch.Generator().manual_seed(seed)
    z = draw_grids(network.columns.T, 1, noise)[0]
    for cell in torch.randperm(len(z), generator=noise).tolist():
        digit, z[cell] = int(z[cell]), network.mask_id
        if network.count(z) > MANY:
            z[cell] = digit
    return "".join("_" if token == network.mask_id else chr(token) for token in z.tolist())


def checked(prompt, size):
    """The givens, row by row, "_" for an empty cell. Raises UserError if they are none."""
    givens = "".join(prompt.split())
    if len(givens) > size * size or set(givens) - set("_123456789"[: size + 1]):
        raise UserError(
            f"write the grid row by row: {size * size} cells, digits from 1 to {size}, _ for empty"
        )
    return givens.ljust(size * size, "_")


def with_given(prompt, cells, digit, size):
    """The givens with a digit, or "_", in some cells."""
    cells = {cell % (size * size) for cell in cells}
    old = "".join(prompt.split()).ljust(size * size, "_")
    return "".join(digit if i in cells else c for i, c in enumerate(old))


@lru_cache(maxsize=512)
def solutions(record, n):
    """How many completed grids have the digits of row n; None for a size that nobody can count."""
    if record.grid != 6:
        return None
    text = record.rows[n].text
    return perfect().count(np.where(text == MASKED, perfect().mask_id, text))


@lru_cache(maxsize=512)
def clashing(record, n):
    """The cells of row n whose digit stands twice in a row, column or box."""
    from mdlm.sudoku import units

    cells = units(record.grid).numpy()
    digits = record.rows[n].text[cells]  # (3 * size, size)
    twice = (digits[:, :, None] == digits[:, None]).sum(axis=2) > 1
    return set(cells[twice & (digits != MASKED)].tolist())


def lay_out_grid(record, state, box, style, before=0):
    """The grid of a run in box (x, y, w, h): (its lines, its cells as words, see `Layout`)."""
    size, n, theme = record.grid, record.at(state.at), style.theme
    cell = min(box[2], box[3] - style.px(16)) // size
    x, y = box[0] + (box[2] - cell * size) // 2, box[1]
    lines, cells, row = [], [], record.rows[n]
    height, width = BOXES[size]
    for k in range(size + 1):
        for every, upright in ((width, True), (height, False)):
            hair = style.px(1 if k % every else 2)
            color, long = theme.line if k % every else theme.faint, size * cell + hair
            place = (x + k * cell, y, hair, long) if upright else (x, y + k * cell, long, hair)
            lines.append(Item("box", *place, color))
    lines.sort(key=lambda line: line.color == theme.faint)  # what is fainter is behind
    view = "order" if state.view == "order" else "text"
    looks, clashes = appearance(record, n, state.at, view, theme), clashing(record, n)
    for i, (token, (_, ink, paper)) in enumerate(zip(row.text.tolist(), looks, strict=True)):
        place = (x + i % size * cell + 2, y + i // size * cell + 2, cell - 4, cell - 4)
        paper = None if token == MASKED and row.since[i] == 0 else paper
        if i in clashes:
            ink, paper = theme.page, theme.wrong
        items = [Item("box" if paper else "area", *place, paper)]
        if token == MASKED:
            items += pencil_marks(row, i, place, size, style)
        else:
            items.append(written(style, chr(token), place, 0.62, ink))
        if token != MASKED and row.since[i] == 0:  # given: bold
            items.append(items[-1]._replace(x=items[-1].x + style.px(1.5)))
        if before + i in state.selected:
            items.append(Item("outline", *place, theme.accent, radius=cell / 8))
        cells.append(tuple(item._replace(token=before + i) for item in items))
    return tuple(lines), cells


def written(style, text, box, share, color):
    """A text in the middle of box (x, y, w, h), so high as that share of it."""
    x, y, w, h = box
    item = style.text(0, 0, text, color, size=max(4, round(share * h)))
    return item._replace(x=x + (w - item.w) / 2, y=y + (h - item.h) / 2)


def pencil_marks(row, i, box, size, style):
    """What the network says of a masked cell: the larger a digit, the more probable."""
    if row.look is None:
        return []
    x, y, w, h = box
    columns, lines = BOXES[size][::-1]
    chances, items = row.look.chances(place_among_masks(row, i), size), []
    for k, p in enumerate(chances):
        if p >= 0.005:
            place = (x + k % columns * w / columns, y + k // columns * h / lines)
            place = (*place, w / columns, h / lines)
            color = certainty_color(p, style.theme)
            items.append(written(style, str(k + 1), place, 0.85 * p**0.5, color))
    return items
