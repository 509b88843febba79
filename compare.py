"""What did my change do? The runs in a folder on one picture, and what they differ in."""

from dataclasses import asdict
from pathlib import Path

from files import UserError
from saving import INCLUDED, SUDOKU, read_metadata

COLUMNS = ("bits per byte", "minutes", "parameters")


def differences(folder="checkpoints"):
    """The runs of a folder as {name: row}, and their histories as {name: list}.

    A row has only those settings that differ between the runs, "code" if their code does (the same
    letter for the same code), and the final figures. Raises UserError if there is no run.
    """
    paths = sorted(Path(folder).glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
    paths = [path for path in paths if path.stem != SUDOKU]
    paths = [path for path in paths if path.stem not in INCLUDED] or paths
    rows, histories, codes = {}, {}, {}
    for path in paths:
        config, metadata = read_metadata(path)
        code = codes.setdefault(metadata["code"], chr(ord("A") + len(codes) % 26))
        rows[path.stem] = asdict(config) | {"code": code}
        histories[path.stem] = metadata["history"]
        if metadata["history"]:
            last = metadata["history"][-1]
            when = f" (step {last['step']:,})" if last["step"] < metadata["steps"] else ""
            rows[path.stem][COLUMNS[0]] = f"{last['bpb']:.3f} ± {last['error']:.3f}{when}"
        rows[path.stem] |= {
            "steps": f"{metadata['steps']:,} of {config.steps:,}",
            COLUMNS[1]: f"{metadata['seconds'] / 60:.1f}",
            COLUMNS[2]: f"{metadata['parameters']:,}",
        }
    if not rows:
        raise UserError(f"no checkpoint in {folder}: train one with train_model.ipynb or train.py")
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    differ = [n for n in names if len({str(row.get(n)) for row in rows.values()}) > 1]
    keep = [n for n in differ if n not in COLUMNS] + list(COLUMNS)
    return {run: {n: row.get(n, "-") for n in keep} for run, row in rows.items()}, histories


def compare(folder="checkpoints", save=None):
    """Print the table of `differences` and draw all curves, into a file if `save` is a path."""
    import matplotlib.pyplot as plt

    rows, histories = differences(folder)
    names = list(next(iter(rows.values())))
    table = [["run", *names], *([run, *map(str, row.values())] for run, row in rows.items())]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )
    fig, axis = plt.subplots(figsize=(7, 3))
    for run, history in histories.items():
        later = [row for row in history if row["step"] > 0]
        axis.plot([row["step"] for row in later], [row["bpb"] for row in later], ".-", label=run)
    axis.set(xlabel="step", ylabel="validation bits per byte")
    axis.legend(fontsize=8)
    if save:
        fig.savefig(save, dpi=120, bbox_inches="tight")
        print(f"the curves: {save}")
    else:
        plt.show()
