"""The learning guide: what its own blocks cannot check, that it holds together and GitHub shows it.

The blocks themselves are run by Sybil, see conftest.py.
"""

import json
import math
import re
from collections import Counter
from itertools import pairwise, product

import pytest
import torch

from bpe_tokenizer import BPETokenizer
from conftest import ROOT
from corpus import load_text
from mdlm.diffusion import SCHEDULES
from mdlm.sampling import unmask_probability
from toy import (
    MASK,
    STATES,
    TEXTS,
    ExactDenoiser,
    L,
    chance_of_masks,
    cross_entropy_at,
    exact_nelbo,
    exact_nelbo_in_steps,
    exact_sampler,
    inconsistent_denoiser,
    orders,
    some_language,
)

BLOCK = re.compile(r"^```.*?^```$", flags=re.DOTALL | re.MULTILINE)
GUIDE = (ROOT / "learning_guide.md").read_text(encoding="utf-8")
PROSE = BLOCK.sub("", GUIDE)
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "*/*.md", "*.ipynb", "page/index.html")
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


@pytest.mark.parametrize("name", ["learning_guide.md", "questions.md", "glossary.md"])
def test_github_can_typeset_every_formula(name):
    """GitHub reads a formula as Markdown first; these are the ways in which that has failed."""
    prose = BLOCK.sub("", (ROOT / name).read_text(encoding="utf-8"))
    display = re.findall(r"\$\$(.+?)\$\$", prose, flags=re.DOTALL)
    inline = re.sub(r"\$\$.+?\$\$|`[^`\n]+`", "", prose, flags=re.DOTALL)
    formulas = re.findall(r"\$([^$]+)\$", inline)
    assert len(formulas) > 10
    lost = r"\\[!-/:-@\[-`{-~]|[}\])]_|\*|<\S|\]\(|operatorname"  # backslash, emphasis, tag, link
    for formula in formulas + display:
        assert not re.search(lost, formula), formula
        assert formula.count("{") == formula.count("}"), formula
    assert all("\n" not in formula and formula == formula.strip() for formula in formulas)
    for line in inline.splitlines():  # dollars stand where GitHub sees them
        parts = line.split("$")
        assert len(parts) % 2, f"a dollar without a partner: {line}"
        for before, after in zip(parts[:-2:2], parts[2::2], strict=True):
            assert before == "" or before[-1] in " (", line
            assert after == "" or after[0] in " ,.;:!?)", line
    assert set(re.findall(r"</?([a-z]+)", inline)) <= {"details", "summary"}
    assert prose.count("<details>") == prose.count("</details>")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_within_the_repository_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join(source for kind, source in cells(path.name) if kind == "markdown")
    text = re.sub(r"`[^`\n]+`", "", BLOCK.sub("", text))
    for target in re.findall(r"(?:\]\(|href=\")(?!https?:|attachment:)([^)\s\"]+)", text):
        name, _, anchor = target.partition("#")
        there = path.parent / name if name else path
        assert there.exists(), target
        if anchor:
            found = there.read_text(encoding="utf-8")
            ids = re.findall(r'id="([^"]+)"', found) if there.suffix == ".html" else anchors(found)
            assert anchor in ids, target


@pytest.mark.parametrize("number", range(1, 12))
def test_every_section_ends_with_exercises_and_their_solutions(number):
    section = SECTIONS[number - 1]
    exercises, solutions = section.split("**Exercises.**")[1].split("<details>")
    asked = re.findall(rf"\(({number}\.\d)\)", exercises)
    assert asked == [f"{number}.{i + 1}" for i in range(len(asked))] and 2 <= len(asked) <= 4
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


def test_it_is_read_in_an_afternoon():
    """Code, formulas on lines of their own and what is folded away do not count."""
    reading = re.sub(r"<details>.*?</details>|\$\$.*?\$\$", "", PROSE, flags=re.DOTALL)
    assert len(reading.split()) <= 9700
    blocks = [block for block in BLOCK.findall(GUIDE) if block.startswith("```python")]
    assert len(blocks) > 20 and max(block.count("\n") for block in blocks) <= 21


def test_the_text_that_a_model_wrote_is_among_the_unedited_samples():
    """After another model has been included, quote that one's."""
    quote = re.search(r"^(> .+\n)+", PROSE, re.MULTILINE)[0].replace("> ", "").split()
    samples = (ROOT / "checkpoints" / "samples.md").read_text(encoding="utf-8")
    assert " ".join(quote) in " ".join(samples.replace("> ", "").split())


QUOTED = """
learning_guide.md from twin.ipynb: 0.006 ± 0.001, 0.014 ± 0.002, 0.018 ± 0.003, 0.074 ± 0.011
learning_guide.md from twin.ipynb: 0.010 ± 0.004, 0.055 ± 0.017, 0.781, 1.184, 1.036, 1.221
learning_guide.md from checkpoints/README.md: 1.232, 1.245, 1.233 ± 0.004, 1.169, 58 min, 39 min
learning_guide.md from checkpoints/README.md: 1.228
learning_guide.md from benchmarks/quality.md: 1.416, 1.392, 1.385, 1.393, 1.413, 1.453, 1.458
learning_guide.md from README.md: 2.468, 1.886, 1.671, 1.328, 1.385 ± 0.022, 1.342 ± 0.003
learning_guide.md from README.md: 1.233 ± 0.004, 1.169
learning_guide.md from benchmarks/README.md: 1.465, 1.514
questions.md from twin.ipynb: 0.781, 1.184, 1.036, 1.221, 9 %, 78 %
questions.md from checkpoints/README.md: 3.5 %
questions.md from benchmarks/README.md: 1.465, 1.514
"""  # figures that stand in a document, and in what it names as their source


@pytest.mark.parametrize("line", QUOTED.strip().splitlines())
def test_quoted_figures_are_those_of_their_source(line):
    names, figures = line.split(": ")
    document, source = ((ROOT / name).read_text(encoding="utf-8") for name in names.split(" from "))
    if names.endswith(".ipynb"):
        outputs = [cell.get("outputs") for cell in json.loads(source)["cells"]]
        source = json.dumps(outputs, ensure_ascii=False)
    for figure in figures.split(", "):
        assert figure in document and figure.replace(" %", "%") in source.replace(" %", "%"), figure


# What the guide says about the repository's functions, and what is too long to be shown there.


def test_section_2_two_stretches_of_time_are_one_and_the_code_does_what_the_formula_says():
    def stretch(alpha_s, alpha_t):  # [i, j]: the chance that i at time s is j at t
        moves = torch.eye(4, dtype=torch.float64) * (alpha_t / alpha_s)
        moves[:, MASK] += 1 - alpha_t / alpha_s
        return moves

    assert torch.allclose(stretch(0.9, 0.6) @ stretch(0.6, 0.2), stretch(0.9, 0.2))
    for alpha_s, alpha_t in [(1.0, 0.5), (0.8, 0.4), (0.8, 0.0), (0.3, 0.2)]:  # section 3: Bayes
        joint = stretch(1.0, alpha_s)[1][:, None] * stretch(alpha_s, alpha_t)
        posterior = joint[:, MASK] / joint[:, MASK].sum()
        assert math.isclose(posterior[1], unmask_probability(alpha_s, alpha_t))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_section_5_every_schedule_has_the_same_integral(schedule):
    n, x, model = 100_000, (0, 2, 1), inconsistent_denoiser()
    alpha_t, w_t = SCHEDULES[schedule]((torch.arange(n, dtype=torch.float64) + 0.5) / n)
    integrand = sum(
        w_t * chance_of_masks(k, 1 - alpha_t) * cross_entropy_at(model, x, k) for k in (1, 2, 3)
    )
    assert math.isclose(integrand.mean(), exact_nelbo(model, x), rel_tol=1e-4)
    many_steps = exact_nelbo_in_steps(model, x, 2000)
    assert math.isclose(exact_nelbo(model, x), many_steps, rel_tol=1e-3)
    assert math.isclose(exact_nelbo(model, x), sum(orders(model, x)) / 6, rel_tol=1e-6)


def test_section_4_the_excess_of_many_steps_is_half_of_what_the_height_falls():
    language = some_language()
    exact, pairs = ExactDenoiser(language), list(zip(language.tolist(), TEXTS, strict=True))

    def average(f):
        return sum(p * f(x) for p, x in pairs)

    h_1 = average(lambda x: exact_nelbo_in_steps(exact, x, 1))
    h_0 = L * average(lambda x: cross_entropy_at(exact, x, 1))
    excess = average(lambda x: exact_nelbo_in_steps(exact, x, 64) - exact_nelbo(exact, x))
    assert math.isclose(excess, (h_1 - h_0) / (2 * 64), rel_tol=0.01)


def test_section_5_the_variance_of_the_weighted_estimate_grows_without_limit():
    def second_moment(smallest, n=20_000):  # with one nat a mask; t = smallest ** r
        t = smallest ** ((torch.arange(n, dtype=torch.float64) + 0.5) / n)
        squares = sum(chance_of_masks(k, t) * k**2 for k in range(1, L + 1)) / t**2
        return (squares * t).mean().item() * -math.log(smallest)

    grows = [second_moment(10.0**-e) for e in (2, 4, 6, 8)]
    assert all(math.isclose(b - a, L * math.log(100), rel_tol=0.05) for a, b in pairwise(grows[1:]))


def test_section_6_the_best_prediction_does_not_depend_on_the_time():
    language = some_language()
    exact = ExactDenoiser(language)
    for alpha_t, z in product((0.9, 0.5, 0.1), STATES):
        see = {True: alpha_t, False: 0.0}  # the right token, or a wrong one
        q = [
            math.prod(1 - alpha_t if a == MASK else see[a == b] for a, b in zip(z, x, strict=True))
            for x in TEXTS
        ]
        posterior = language * torch.tensor(q, dtype=torch.float64)
        posterior = (posterior / posterior.sum()).view(3, 3, 3)  # p(x | z_t), with the time in it
        for place in range(L):
            p = posterior.sum(dim=[i for i in range(L) if i != place])
            assert torch.allclose(p, exact.table[z][place].exp(), atol=1e-9)


def test_section_7_how_many_words_of_the_book_are_a_single_token():
    text = load_text("kjv", ROOT / "data")
    words = Counter(re.findall(r" \w+", text))
    for size, one_in in ((2048, 7), (8192, 40)):
        tokenizer = BPETokenizer.train(text, size)
        several = sum(n for word, n in words.items() if len(tokenizer.encode(word)) > 1)
        assert one_in - 2 < words.total() / several < one_in + 4


def test_the_sixty_lines_how_often_a_perfect_network_would_write_the_rarest_text():
    language = some_language()
    rarest, perfect = language.argmin().item(), ExactDenoiser(language)
    for T, times in ((1, 57), (100, 1.2)):
        share = exact_sampler(perfect, T)[TEXTS[rarest]]
        assert math.isclose(share / language[rarest], times, rel_tol=0.04)


def test_section_8_new_york_is_wrong_half_of_the_time_that_both_words_share_a_step():
    cities = torch.full((27,), 1e-12, dtype=torch.float64)  # (almost) nothing but two texts
    for text in ((0, 0, 2), (1, 1, 2)):  # New York. Los Angeles. The third token is the full stop
        cities[TEXTS.index(text)] = 0.5
    perfect = ExactDenoiser(cities / cities.sum())
    for T in (1, 2, 10):
        wrong = sum(p for z, p in exact_sampler(perfect, T).items() if z[0] != z[1])
        assert math.isclose(wrong, 1 / (2 * T), rel_tol=1e-6)
        bound = exact_nelbo_in_steps(perfect, (0, 0, 2), T)
        assert math.isclose(bound, (1 + 1 / T) * math.log(2), rel_tol=1e-6)


def test_section_8_the_formula_for_float32_is_the_sum_over_all_of_its_numbers():
    r = torch.rand(1_000_000, generator=torch.Generator().manual_seed(0))
    assert (r * 2**24 % 1 == 0).all() and r.max() < 1  # float32: multiples of 2^-24
    E = -(torch.arange(2**24) / 2**24).log()  # in float32, for every U there is
    for p_i in (0.1, 1e-4):
        wins = torch.exp(-E.double() * (1000 / p_i - 1)).mean()
        assert math.isclose(wins, 2**-24 / math.expm1(2**-24 * (1000 / p_i - 1)), rel_tol=2e-4)
