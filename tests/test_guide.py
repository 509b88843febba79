"""The learning guide: what its own blocks cannot check, that it holds together and GitHub shows it.

The blocks themselves are run by Sybil, see conftest.py.
"""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```.*?^```$", flags=re.DOTALL | re.MULTILINE)
GUIDE = (ROOT / "learning_guide.md").read_text(encoding="utf-8")
PROSE = BLOCK.sub("", GUIDE)
DISPLAY = re.findall(r"\$\$(.+?)\$\$", PROSE, flags=re.DOTALL)
INLINE = re.sub(r"\$\$.+?\$\$|`[^`\n]+`", "", PROSE, flags=re.DOTALL)
FORMULAS = re.findall(r"\$([^$]+)\$", INLINE)
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "*/*.md", "*.ipynb")
    for path in ROOT.glob(pattern)
    if path.name != "samples.md" and not path.parts[len(ROOT.parts)].startswith((".", "runs"))
)
SECTIONS = re.split(r"^## (?=\d)", PROSE.split("## Where things are")[0], flags=re.MULTILINE)[1:]


def anchors(text):
    """The link targets that GitHub makes from the headings of a Markdown text."""
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def cells(notebook):
    """(cell type, source) of each cell of a notebook."""
    for cell in json.loads((ROOT / notebook).read_text(encoding="utf-8"))["cells"]:
        yield cell["cell_type"], "".join(cell["source"])


def test_github_can_typeset_every_formula():
    """GitHub reads a formula as Markdown first; these are the ways in which that has failed."""
    assert len(FORMULAS) > 100 and len(DISPLAY) > 10
    lost = r"\\[!-/:-@\[-`{-~]|[}\])]_|\*|<\S|\]\(|operatorname"  # backslash, emphasis, tag, link
    for formula in FORMULAS + DISPLAY:
        assert not re.search(lost, formula), formula
        assert formula.count("{") == formula.count("}"), formula
    assert all("\n" not in formula and formula == formula.strip() for formula in FORMULAS)
    for line in INLINE.splitlines():  # dollars stand where GitHub sees them
        parts = line.split("$")
        assert len(parts) % 2, f"a dollar without a partner: {line}"
        for before, after in zip(parts[:-2:2], parts[2::2], strict=True):
            assert before == "" or before[-1] in " (", line
            assert after == "" or after[0] in " ,.;:!?)", line
    assert set(re.findall(r"</?([a-z]+)", INLINE)) == {"details", "summary"}
    assert PROSE.count("<details>") == PROSE.count("</details>")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_within_the_repository_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join(source for kind, source in cells(path.name) if kind == "markdown")
    text = re.sub(r"`[^`\n]+`", "", BLOCK.sub("", text))
    for target in re.findall(r"\]\((?!https?:|attachment:)([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        there = path.parent / name if name else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("number", range(1, 12))
def test_every_section_ends_with_exercises_and_their_solutions(number):
    section = SECTIONS[number - 1]
    exercises, solutions = section.split("**Exercises.**")[1].split("<details>")
    asked = re.findall(rf"\(({number}\.\d)\)", exercises)
    assert asked == [f"{number}.{i + 1}" for i in range(len(asked))] and 2 <= len(asked) <= 3
    assert re.findall(rf"^\(({number}\.\d)\)", solutions, flags=re.MULTILINE) == asked


def test_code_is_where_the_table_says():
    places = re.findall(r"`(\w+)`: (\w+) (\d+) \|", PROSE)
    assert len(places) > 15
    for name, notebook, number in places:
        section, found = "", None
        for kind, text in cells(f"{notebook}.ipynb"):
            if kind == "markdown" and (heading := re.search(r"^## (\d+)\.", text, re.MULTILINE)):
                section = heading[1]
            if kind == "code" and re.search(rf"^(def |class )?{name}( =|\()", text, re.MULTILINE):
                found = found or section
        assert found == number, f"{name} is in section {found} of {notebook}.ipynb, not {number}"


def test_blocks_are_short_enough_to_read():
    blocks = [block for block in BLOCK.findall(GUIDE) if block.startswith("```python")]
    assert len(blocks) > 20 and max(block.count("\n") for block in blocks) <= 21
