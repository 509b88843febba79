"""A run is named after its code: what counts as an edit, and that none of them is overlooked."""

import json
import linecache
import re
import sys
import types

import pytest

from conftest import ROOT
from files import UserError
from identity import NOTEBOOKS, check_exported, code_digest
from run import export_notebooks
from tests.test_edits import copy_project

CODE = '''
import functools, torch
import torch.nn.functional as F
from math import floor as rounded
RATE = 0.5
SIZES = (1, 2)
GRID = torch.tensor([1.0, 2.0])
SCHEDULES = {"linear": lambda t: (1 - t, 1 / t)}
act = F.silu
def helper(x, by=1):
    return x + by
@functools.cache
def cached(n):
    return n * 2
def first(x): return x
def second(x): return -x
STAGES = [first]
class Constants:
    eps = 1e-6
class Layer(torch.nn.Module):
    """A layer."""
    def forward(self, x):
        return act(x) * RATE + GRID.sum()
    @staticmethod
    def size():
        return 4
def unused():
    return 1
def root(x):
    """What is trained."""
    y = Layer()(helper(x)) + cached(3) + Constants.eps + rounded(2.5)  # all of it
    return [f(y) for f in STAGES], SCHEDULES["linear"](0.5), SIZES
'''
COUNT = (
    "x + by -> x - by | by=1 -> by=2 | act(x) * -> act(x) / | return 4 -> return 5 | 1 / t -> 2 / t"
    " | 0.5\n -> 0.25\n | (1, 2) -> (1, 3) | [1.0, 2.0] -> [1.0, 2.5] | F.silu -> F.gelu"
    " | n * 2 -> n * 3 | [first] -> [second] | 1e-6 -> 1e-5 | torch.nn.Module -> torch.nn.Identity"
    " | floor -> ceil | (0.5) -> (0.6) | return x\n -> return 2 * x\n | @static -> @class"
)
DO_NOT = (
    "# all of it -> # some | What is trained -> Words | A layer. -> Another one. | 1 / t) -> 1/t)"
    " | x + by -> (x  +  by) | return 1\n -> return 2\n | def helper -> \n\n\ndef helper"
    " | [1.0, 2.0] -> [1, 2.] | \"linear\": -> 'linear': | (x, by=1) -> (\n  x, by=1\n)"
)


def edits(text):
    return [edit.split(" -> ") for edit in text.split(" | ")]


def digest(code, name="mdlm.written"):
    """The digest of `root` in a module that has this code."""
    module, file = types.ModuleType(name), f"<{name}>"
    linecache.cache[file] = (len(code), None, code.splitlines(keepends=True), file)
    before, sys.modules[name] = sys.modules.get(name), module
    try:
        exec(compile(code, file, "exec"), vars(module))
        return code_digest(module.root)
    finally:
        sys.modules[name] = before


@pytest.mark.parametrize(("old", "new"), edits(COUNT))
def test_every_kind_of_edit_makes_another_run(old, new):
    assert CODE.count(old) == 1
    assert digest(CODE.replace(old, new)) != digest(CODE) == digest(CODE)


@pytest.mark.parametrize(("old", "new"), edits(DO_NOT))
def test_comments_formatting_docstrings_and_unused_code_do_not_count(old, new):
    assert CODE.count(old) == 1
    assert digest(CODE.replace(old, new)) == digest(CODE)


def test_a_function_of_another_library_counts_by_its_name_only():
    assert digest(CODE, "some_library") != digest(CODE)  # there, nothing but the root is our own
    text = "from mdlm.training import {} as used\ndef root(): return used()\n"
    assert digest(text.format("evaluate")) != digest(text.format("validate"))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_project(tmp_path_factory.mktemp("project") / "copy", "none")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_an_edit_of_any_exported_cell_is_noticed(name, project):
    whole, n_edits = (project / name).read_text(encoding="utf-8"), 0
    for number, cell in enumerate(json.loads(whole)["cells"]):
        source = "".join(cell["source"]).rstrip()
        for edited in (
            re.sub(r"\s*\S+$", "", source),  # the last word is gone: what is left stands in mdlm/
            source + "\nNEW = 1",
            source.replace("\n", "\n# a comment\n", 1),
            "pass",
        ):
            notebook = json.loads(whole)
            notebook["cells"][number]["source"] = edited
            (project / name).write_text(json.dumps(notebook), encoding="utf-8")
            if source.startswith("#| export "):
                n_edits += 1
                with pytest.raises(UserError, match=rf"^{name} has been edited.*run\.py export$"):
                    check_exported(project)
            else:
                check_exported(project)
    (project / name).write_text(whole, encoding="utf-8")
    assert n_edits >= 4


def test_the_modules_are_what_the_notebooks_export(project, capsys):
    check_exported()
    export_notebooks(project)
    assert capsys.readouterr().out == ""  # nothing has changed, nothing is said
    for path in (project / "mdlm").glob("[a-z]*.py"):
        path.write_text("# gone", encoding="utf-8")
    export_notebooks(project)
    assert "exported from the notebooks: mdlm/" in capsys.readouterr().out
    for path in (ROOT / "mdlm").glob("*.py"):
        exported = (project / "mdlm" / path.name).read_text(encoding="utf-8")
        assert exported == path.read_text(encoding="utf-8")
