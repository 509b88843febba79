"""Which code made this run? A digest of the functions that decide what is learned.

An edited network, loss, step or optimiser makes another run, under another name. Formatting,
comments and docstrings do not count.
"""

import ast
import hashlib
import inspect
import json
import linecache
import re
import symtable
import sys
from pathlib import Path

from files import UserError

NOTEBOOKS = (
    "train_model.ipynb", "sampling.ipynb", "twin.ipynb", "blocks.ipynb", "sudoku.ipynb"
)  # fmt: skip


def code_digest(*roots):
    """SHA-256 of functions and classes, and of all that they use of the notebooks' own code.

    "Own" is what is defined in the running notebook, or in `mdlm`, which is exported from it: the
    two have the same digest. Global constants count with their values, what is imported with its
    name.
    """
    found, seen, waiting = set(), set(), list(roots)
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        source = plain_source(value)
        found.add(source)
        scope = vars(sys.modules[value.__module__])
        for name in sorted(global_names(source) & set(scope)):
            if not name.startswith("__"):
                found.add(f"{name} = {described(scope[name], waiting)}")
    return hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()


def described(value, own):
    """A value as text, the same in every process. Adds the notebooks' functions in it to `own`."""
    if is_own(value):
        own.append(value)
        return value.__qualname__
    if isinstance(value, dict):
        return str({key: described(part, own) for key, part in value.items()})
    if isinstance(value, (list, tuple, set, frozenset)):
        parts = [described(part, own) for part in value]
        return str(parts if isinstance(value, (list, tuple)) else sorted(parts))
    if hasattr(value, "tolist"):  # a tensor, an array
        return str(value.tolist())
    text = repr(value)
    if inspect.ismodule(value) or " at 0x" in text:  # a path or an address, which may change
        return getattr(value, "__qualname__", getattr(value, "__name__", type(value).__name__))
    return text


def is_own(value):
    """Whether a value is a function or class of the notebooks."""
    module = str(getattr(value, "__module__", ""))
    kind = inspect.isfunction(inspect.unwrap(value)) or inspect.isclass(value)
    return kind and (module == "__main__" or module.partition(".")[0] == "mdlm")


def plain_source(value):
    """The statement that defines a function, lambda or class, without comments and docstrings."""
    functions = vars(value).values() if inspect.isclass(value) else [value]
    for function in filter(inspect.isfunction, map(inspect.unwrap, functions)):
        # a notebook's cell has no file; Python keeps its text under the name of one
        cell = ast.parse("".join(linecache.getlines(function.__code__.co_filename)))
        line = function.__code__.co_firstlineno  # that of a decorator, if there is one
        for node in cell.body:
            first = min(n.lineno for n in [node, *getattr(node, "decorator_list", [])])
            if first <= line <= node.end_lineno:
                return ast.unparse(without_docstrings(node))
    names = vars(value)  # of a class without methods
    return str({n: repr(v) for n, v in names.items() if n == "__annotations__" or n[0] != "_"})


def without_docstrings(tree):
    """A syntax tree whose functions and classes have none."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def global_names(source):
    """The names in a definition that are not its own variables."""
    tables, names = [symtable.symtable(source, "", "exec")], set()
    for table in tables:  # grows while we read it
        tables += table.get_children()
        top = table.get_type() == "module"
        names |= {s.get_name() for s in table.get_symbols() if top or s.is_global()}
    return names


def check_exported(folder=Path(__file__).parent):
    """Raise UserError if a notebook has been edited since `mdlm/` was exported from it."""
    for notebook in filter(Path.exists, (folder / name for name in NOTEBOOKS)):
        cells = {}
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            directive, _, code = "".join(cell["source"]).partition("\n")
            if cell["cell_type"] == "code" and (name := re.match(r"#\| *export +(\w+)", directive)):
                cells.setdefault(folder / "mdlm" / f"{name[1]}.py", []).append(as_exported(code))
        for module, codes in cells.items():
            text = module.read_text(encoding="utf-8") if module.exists() else ""
            # nbdev writes a line above each cell that says which notebook it is from
            marker = rf"^# %% \.\./({'|'.join(NOTEBOOKS)}) .*\n"
            _, *parts = re.split(marker, text, flags=re.MULTILINE)
            exported = zip(parts[::2], map(as_exported, parts[1::2]), strict=True)
            if codes != [code for name, code in exported if name == notebook.name]:
                raise UserError(f"{notebook.name} has been edited: first run python run.py export")


def as_exported(code):
    """A cell's code in the one form that can be compared: nbdev writes some imports anew."""
    return code.strip().replace("from mdlm.", "from .")
