"""Pictures and printing for the notebooks, and the style that all of their plots share."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np

plt.rc("figure", figsize=(7, 2.6), dpi=90)
plt.rc("axes", grid=True, axisbelow=True)
plt.rc("axes.spines", top=False, right=False)
plt.rc("grid", alpha=0.3)


def wrapped(text, width=100):
    """A text with its lines broken between words."""
    return "\n".join(textwrap.fill(line, width) for line in text.split("\n"))


def show_masks(ids, tokenizer):
    """Token ids as text, with a block for each mask."""
    return "".join(" ▁▁" if i == tokenizer.mask_id else tokenizer.show(i) for i in map(int, ids))


def readable(token):
    """A token's text as a label: line breaks are shown, and "$" is no mathematics."""
    return token.replace("\n", "¶").replace("$", r"\$").strip() or "·"


def draw_tokens(tokenizer, x, z, guesses):
    """A row for each item of `guesses` {label: L token ids}: what was said at the masks of z.

    x: (L,) the true tokens; z: (L,) what was visible, or (rows, L). Green: right, red: wrong.
    """
    z = z.expand(len(guesses), -1)  # (rows, L)
    fig, axis = plt.subplots(figsize=(11, 0.22 * len(guesses) + 0.2))
    axis.set(xlim=(0, 110), ylim=(len(guesses), 0))
    axis.axis("off")
    renderer = fig.canvas.get_renderer()
    for row, (label, ids) in enumerate(guesses.items()):
        axis.text(0, row + 0.5, label, va="center", fontsize=8, color="0.4")
        at = 9.0
        for true, seen, said in zip(x.tolist(), z[row].tolist(), ids, strict=True):
            masked = seen == tokenizer.mask_id
            color = ("#c8e6c9" if said == true else "#ffcdd2") if masked else "none"
            word = readable(tokenizer.show(said if masked else seen))
            box = dict(boxstyle="square,pad=0.15", fc=color, ec="none")
            text = axis.text(
                at, row + 0.5, word, va="center", fontsize=8, bbox=box,
                color="black" if masked else "0.55",
            )  # fmt: skip
            extent = text.get_window_extent(renderer).transformed(axis.transData.inverted())
            at = extent.x1 + 0.8
    plt.show()


def draw_network(model):
    """The parts of a network as boxes, in the order in which a text goes through them."""
    block = model.blocks[0]
    size = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    kind = lambda module: type(module).__name__  # noqa: E731
    C, V = model.embedding.weight.shape[1], model.embedding.weight.shape[0]
    inside = []
    for norm, layer in ((block.norm1, block.attention), (block.norm2, block.feed_forward)):
        inside.append((f"{kind(norm)}\n{size(norm):,}", f"{kind(layer)}\n{size(layer):,}"))
    _, axis = plt.subplots(figsize=(9, 2.3))
    axis.set(xlim=(0, 100), ylim=(0, 22))
    axis.axis("off")

    def box(x, y, width, text, color="#e3f2fd"):
        axis.add_patch(plt.Rectangle((x, y), width, 6, fc=color, ec="0.4", lw=0.8))
        axis.text(x + width / 2, y + 3, text, ha="center", va="center", fontsize=8)
        return x + width

    def arrow(x, y, to):
        axis.annotate("", (to, y), (x, y), arrowprops=dict(arrowstyle="->", color="0.3", lw=1))

    axis.text(0, 8, "z_t\n(B, L)", fontsize=8, va="center")
    arrow(5, 8, 8)
    end = box(8, 5, 13, f"embedding\n{V:,} x {C}\n{size(model.embedding):,}", "#fff3e0")
    axis.add_patch(plt.Rectangle((24, 1), 51, 17, fc="#fafafa", ec="0.6", ls="--"))
    axis.text(25, 19.2, f"{len(model.blocks)} blocks like this: {size(model.blocks):,}", fontsize=8)
    axis.plot([end, 77], [8, 8], color="0.3", lw=1)
    for i, (norm, layer) in enumerate(inside):
        x = 27 + 24 * i
        axis.plot([x, x, x + 1], [8, 14, 14], color="0.3", lw=1)
        arrow(box(x + 1, 11, 7, norm), 14, x + 10)
        right = box(x + 10, 11, 9.5, layer)
        axis.plot([right, x + 21, x + 21], [14, 14, 9.4], color="0.3", lw=1)
        axis.text(x + 21, 8, "+", ha="center", va="center", fontsize=9,
                  bbox=dict(boxstyle="circle,pad=0.1", fc="white", ec="0.3"))  # fmt: skip
    axis.text(50, 3, "residual stream (B, L, C)", fontsize=8, ha="center", color="0.4")
    end = box(77, 5, 8, f"{kind(model.norm)}\n{size(model.norm):,}")
    arrow(end, 8, 87)
    end = box(87, 5, 13, f"head: the\nembedding again\n(B, L, {V - 1:,})", "#fff3e0")
    plt.show()
    print(f"{size(model):,} weights in all")


def draw_run(run, per_byte, lines):
    """The losses and bounds of a run in bits per byte, with horizontal lines {name: bits per byte}.

    per_byte: what one nat per token of training text is in bits per byte.
    """
    _, axis = plt.subplots(figsize=(7, 3.2))
    n = max(1, min(50, len(run.losses) // 10))  # steps that make a point
    losses = np.array(run.losses[: len(run.losses) // n * n]).reshape(-1, n).mean(axis=1) * per_byte
    label = f"training (means of {n} steps)"
    axis.plot((np.arange(len(losses)) + 0.5) * n, losses, color="0.7", label=label)
    steps, bpb, error = np.array(
        [[row[k] for k in ("step", "bpb", "error")] for row in run.history]
    ).T
    axis.errorbar(steps, bpb, 2 * error, marker=".", label="validation (± 2 standard errors)")
    for i, (name, value) in enumerate(lines.items()):
        axis.axhline(value, ls="--", lw=1, color=f"C{i + 1}", label=f"{name} {value:.2f}")
    axis.set(xlabel="step", ylabel="bits per byte", ylim=(None, 3.2))
    axis.legend(fontsize=8)
    plt.show()


def draw_predictions(tokenizer, p, x, places, n=5):
    """The n likeliest tokens at some places, as bars. p: (L, V) probabilities; x: (L,) true ids."""
    _, axes = plt.subplots(1, len(places), figsize=(8, 1.8), layout="constrained")
    for axis, place in zip(axes, places, strict=True):
        best = p[place].topk(n)
        names = [readable(tokenizer.show(i)) for i in best.indices]
        colors = ["C0" if i == x[place] else "0.75" for i in best.indices]
        axis.barh(range(n), best.values, color=colors, tick_label=names)
        axis.invert_yaxis()
        axis.set(xlim=(0, 1), xlabel="probability")
        axis.set_title(f"place {place}: true {tokenizer.show(int(x[place]))!r}", fontsize=9)
    plt.show()


def draw_sudoku(axis, tokens, box, given=None, p=None, true=None):
    """One grid: givens in bold, and in every empty cell each digit as large as it is probable.

    tokens: (L,) ids, of which those of the digits 1 to 9 are shown; box: (height, width) of a box;
    given: (L,) bool; p: (L, size) probabilities for the empty cells; true: (L,) right ids, and what
    differs is red.
    """
    height, width = box
    size = height * width
    axis.set(xlim=(0, size), ylim=(size, 0), xticks=[], yticks=[], aspect="equal")
    axis.spines[:].set_visible(False)
    axis.grid(False)
    for i in range(size + 1):
        axis.plot([0, size], [i, i], color="0.2", lw=2 if i % height == 0 else 0.5)
        axis.plot([i, i], [0, size], color="0.2", lw=2 if i % width == 0 else 0.5)
    scale = axis.get_window_extent().height / axis.figure.dpi * 72 / size  # points a cell
    for cell, token in enumerate(map(int, tokens)):
        y, x = divmod(cell, size)
        center = dict(ha="center", va="center_baseline")
        if ord("1") <= token <= ord("9"):
            bold = given is not None and bool(given[cell])
            color = "black" if bold else "C0"
            if true is not None and token != int(true[cell]):
                color = "C3"
            axis.text(
                x + 0.5, y + 0.5, chr(token), color=color, fontsize=0.6 * scale,
                fontweight="bold" if bold else "normal", **center,
            )  # fmt: skip
        elif p is not None:
            for digit, chance in enumerate(p[cell].tolist()):
                row, column = divmod(digit, width)
                if chance > 0.01:
                    away = 1 - 0.8 * chance**2  # the surer, the nearer to the middle of its cell
                    axis.text(
                        x + 0.5 + away * ((column + 0.5) / width - 0.5),
                        y + 0.5 + away * ((row + 0.5) / height - 0.5), str(digit + 1),
                        color="0.4", fontsize=scale * 0.4 * chance**0.4, **center,
                    )  # fmt: skip


def plot_order(trajectory, title):
    """A dot for each token: its place, the step in which it was unmasked, its probability."""
    step, p = trajectory.step[0], trajectory.probability[0]
    plt.scatter(range(len(step)), step, c=p, cmap="viridis", s=14, vmin=0, vmax=1)
    plt.gca().set(title=title, xlabel="place in the text", ylabel="step in which it was unmasked")
    plt.colorbar(label="probability")
    plt.show()
