"""Which code made this run? A digest of the functions that decide what is learned.

An edited network, loss, step or optimiser makes another run, under another name. Formatting,
comments and docstrings do not count.
"""

import ast
import hashlib
import inspect
import json
import linecache
import symtable
import sys
from pathlib import Path

from files import UserError

NOTEBOOKS = ("train_model.ipynb", "sampling.ipynb", "twin.ipynb")
PLAIN = (bool, int, float, str, tuple, list, dict)


def code_digest(*roots):
    """SHA-256 of functions and classes, and of all that they use of the notebooks' own code.

    "Own" is what is defined in the running notebook, or in `mdlm`, which is exported from it: the
    two have the same digest. Global constants count with their values.
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
            used = scope[name]
            parts = list(used.values()) if isinstance(used, dict) else [used]
            waiting += [part for part in parts if is_own(part)]
            if (
                isinstance(used, PLAIN)
                and not name.startswith("__")
                and not any(map(is_own, parts))
            ):
                found.add(f"{name} = {used!r}")
    return hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()


def is_own(value):
    """Whether a value is a function or class of the notebooks."""
    module = str(getattr(value, "__module__", ""))
    kind = inspect.isfunction(value) or inspect.isclass(value)
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
    return repr(getattr(value, "__annotations__", value))  # a class without methods


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


def check_exported():
    """Raise UserError if a notebook has been edited since `mdlm/` was exported from it."""
    here = Path(__file__).parent
    for notebook in filter(Path.exists, (here / name for name in NOTEBOOKS)):
        exported, cells = {}, {}
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            directive, _, code = "".join(cell["source"]).partition("\n")
            if cell["cell_type"] == "code" and directive.startswith("#| export "):
                module = here / "mdlm" / f"{directive.removeprefix('#| export ').strip()}.py"
                cells.setdefault(module, []).append(code.strip().replace("from mdlm.", "from ."))
                text = module.read_text(encoding="utf-8") if module.exists() else ""
                exported[module] = text.replace("from mdlm.", "from .")  # nbdev writes it so
        for module, text in exported.items():
            n_exported = text.count(f"# %% ../{notebook.name}")
            if n_exported != len(cells[module]) or not all(c in text for c in cells[module]):
                raise UserError(f"{notebook.name} has been edited: first run python run.py export")
