"""The model in a page: what its JavaScript calculates is what Python calculates."""

import base64
import functools
import gzip
import json
import math
import random
import re
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from playwright.sync_api import Error, expect

import mdlm.sampling
import publish
from bpe_tokenizer import BPETokenizer
from conftest import ROOT, make_model, noise
from mdlm.diffusion import nelbo, spread_mask_counts
from mdlm.model import DiffusionTransformer
from mdlm.sudoku import is_valid
from mdlm.twin import sample_twin
from saving import load_checkpoint, save_checkpoint
from tests.chromium import WAIT, chromium, open_tab, run, says
from toy import exact_nelbo, exact_nelbo_in_steps, tabulate
from visual.colors import THEMES, probability_color

CHECKPOINTS = ROOT / "checkpoints"
TOKENIZER = BPETokenizer.train("the end of the beginning, " * 20, 300)
SIMD, PLAIN, WEBGPU = WAYS = "WebAssembly with SIMD", "plain JavaScript", "WebGPU"
expect.set_options(timeout=WAIT)


@pytest.fixture(scope="module")
def address():
    """Where the page is served."""
    with publish.server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        if browser is None:
            pytest.skip("no Chromium here")
        yield browser


@pytest.fixture(scope="module")
def lab(browser, address):
    """A tab in which `lab` holds the page's modules, and nothing else goes on."""
    tab = open_tab(browser, address + "kernel.wat")
    run(tab, """
        const names = ["model", "sampling", "tokenizer", "webgpu"];
        const modules = await Promise.all(names.map((name) => import(`/${name}.js`)));
        globalThis.lab = Object.assign({}, ...modules);
        const file = async (address) => new Uint8Array(await (await fetch(address)).arrayBuffer());
        lab.load = async (address, way) => {
            const wasm = way === "plain JavaScript" ? null : await file("/kernel.wasm");
            const device = way === "WebGPU" ? await lab.openDevice(true) : null;
            lab.model = await lab.DiffusionTransformer.load(await file(address), wasm, device);
            return lab.model.arithmetic;
        };
    """)  # fmt: skip
    return tab


def load_in_lab(lab, path, way=SIMD):
    """The network in a file becomes `lab.model`. Returns the way in which it calculates."""
    data = base64.b64encode(path.read_bytes()).decode()
    return run(lab, "return lab.load(address, way)", address=f"data:;base64,{data}", way=way)


def has_webgpu(lab):
    return run(lab, "return Boolean(await lab.openDevice(true))")


@functools.cache
def included(name="kjv"):
    """An included model, and its tokenizer."""
    return load_checkpoint(CHECKPOINTS / f"{name}.safetensors", DiffusionTransformer, "cpu")[:2]


def save_tiny(folder, **changes):
    """A tiny network, and the file that it has been saved in."""
    model, path = make_model(vocab_size=TOKENIZER.vocab_size, **changes), folder / "t.safetensors"
    save_checkpoint(path, model, TOKENIZER, {"é": "ü\x7f"})
    return model, path


# -- the network


@torch.no_grad()
def answers(lab, model):
    """Logits of several texts, which `lab.model` is asked for at once: the lab's, and PyTorch's."""
    lengths = (7, model.config.context, 1)
    texts = [torch.randint(model.mask_id, (length,), generator=noise()) for length in lengths]
    for z in texts:
        z[::2] = model.mask_id
    code = """
        const logits = (z) => lab.model.predict(z, z.map((_, l) => l), 0.3);
        const all = await Promise.all(texts.map(logits));
        return JSON.stringify(all.map((rows) => rows.map((row) => [...row])));
    """
    found = json.loads(run(lab, code, texts=[z.tolist() for z in texts]))
    expected = [model.head(model.features(z[None], torch.tensor([0.3])))[0] for z in texts]
    return [torch.tensor(rows) for rows in found], expected


NETWORKS = [
    dict(d_model=48, n_heads=3, n_layers=2, context=23, qk_norm=False),
    dict(n_heads=1),
    dict(time_conditioning=True),
    dict(causal=True),
]


@pytest.mark.parametrize("changes", NETWORKS, ids=str)
def test_a_network_answers_as_in_pytorch(lab, tmp_path, changes):
    model, path = save_tiny(tmp_path, **changes)
    found = {load_in_lab(lab, path, way): answers(lab, model) for way in WAYS}
    no_program = changes in NETWORKS[2:]  # for a graphics card
    assert len(found) == (2 if no_program or not has_webgpu(lab) else 3)
    for logits, expected in found.values():
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    # without WebAssembly a seed gives the same text, as the bits are the same
    assert all(map(torch.equal, found[SIMD][0], found[PLAIN][0]))


def test_a_graphics_card_takes_the_included_network(lab):
    if not has_webgpu(lab):
        pytest.skip("this Chromium has no WebGPU")
    assert run(lab, "return lab.load('/kjv.safetensors', 'WebGPU')") == WEBGPU


def test_the_kernel_is_what_its_source_says():
    wasmtime = pytest.importorskip("wasmtime")
    source = (ROOT / "page" / "kernel.wat").read_text(encoding="utf-8")
    assert wasmtime.wat2wasm(source) == (ROOT / "page" / "kernel.wasm").read_bytes()


# -- the tokenizer

PIECES = [
    "In the beginning", " God", "  ", "\r\n", "\n\n", "\t", "\x1c", "\x85", "\u00a0", "\u3000",
    "\ufeff", "it's", "don’t", "we'll've", "'s", "'sé", "12345", "٣٤٥", "²³", "½", "Ⅷ", "〇", "x²y",
    "_", "__init__", "สวัสดี", "ชาวโลก", "नमस्ते", "שָׁלוֹם", "é", "e\u0301", "👩\u200d👩\u200d👧",
    "👍🏽", "🇩🇪", "❤️", "漢字", "한국어", "<|mask|>", "<|mask", "|>", "…", "—", "$%&", "a" * 70,
    "7" * 70, "é" * 70, " " * 70, "." * 70, "\0", "\ud800", "\udfff", "\U0001d400", "\U000e0100",
    "\U0010ffff", "a-b", "Mt. 5:3", "ΑΒΓ", "ß", "Ǆ",
]  # fmt: skip


def test_the_tokenizer_is_pythons(lab):
    """For scripts, emoji, line ends, half characters, the letters of the mask, and broken UTF-8."""
    tokenizer, choose = included()[1], random.Random(1)
    texts = [*PIECES, *("".join(choose.choices(PIECES, k=6)) for _ in range(150))]
    ids = [tokenizer.encode(text) for text in texts]
    several = ids + [choose.choices(range(tokenizer.vocab_size), k=9) for _ in range(100)]
    code = """
        const tokens = new lab.Tokenizer(learned);
        const ids = JSON.parse(texts).map((text) => tokens.encode(text));
        return [ids, several.map((ids) => tokens.decode(ids))];
    """
    given = dict(learned=tokenizer.to_json(), several=several)
    found = run(lab, code, texts=json.dumps(texts), **given)  # which keeps half a character
    assert found == [ids, [tokenizer.decode(each) for each in several]]


# -- sampling

SAMPLERS = {
    "ancestral": mdlm.sampling.sample,
    "first-hitting": mdlm.sampling.sample_first_hitting,
    "confident": mdlm.sampling.sample_confident,
    "remask": mdlm.sampling.sample_remask,
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps, temperature, top_p", [(1, 1, 1), (7, 1, 1), (40, 0.7, 0.8)])
def test_a_seed_gives_pythons_text(lab, tmp_path, in_float32, sampler, steps, temperature, top_p):
    model, path = save_tiny(tmp_path)
    load_in_lab(lab, path)
    z = torch.full((1, 16), model.mask_id)
    z[0, 3:6] = torch.tensor([5, 6, 7])
    code = """
        let end;
        for await (end of lab.sample(lab.model, z, options));
        return [[...end.z], [...end.when], [...end.probability], end.calls];
    """
    for seed in range(4):
        options = dict(sampler=sampler, steps=steps, seed=seed, temperature=temperature, topP=top_p)
        tokens, when, probability, calls = run(lab, code, z=z[0].tolist(), options=options)
        options = dict(temperature=temperature, top_p=top_p)
        expected = SAMPLERS[sampler](model, z, steps, noise(seed), **options)
        assert tokens == expected.tokens[0].tolist() and when == expected.step[0].tolist()
        assert np.allclose(probability, expected.probability[0], atol=1e-5)
        assert calls == expected.network_calls


# -- the page itself


@pytest.fixture(scope="module")
def page(browser, address):
    """The page, which has no uncaught error and no refused resource in any test."""
    tab, troubles = open_tab(browser, address + "#write&prompt=And+God+said&steps=6&length=24"), []
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("console", lambda it: troubles.append(it.text) if it.type == "error" else None)
    says(tab, "Written")
    yield tab
    assert troubles == []


def click(page, selector, then):
    """Click, and wait until the page says something new that begins with `then`."""
    page.evaluate("document.querySelector('#live').textContent = ''")
    page.dispatch_event(selector, "click")
    says(page, then)


def put(page, selector, value):
    """Put a value into a field."""
    change = "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', { bubbles: true })) }"
    page.locator(selector).evaluate(change, value)


def begin_anew(page, hash):
    page.evaluate("(hash) => history.replaceState(null, '', hash)", hash)
    page.reload()
    says(page, "Written")


def test_an_address_gives_pythons_text(page, in_float32):
    """What one reader shares, another sees: here, and in Python."""
    model, tokenizer = included()
    expect(page.locator("#status")).to_contain_text("calculated in WebAssembly with SIMD")
    begin_anew(page, "#write&prompt=The+LORD_said&seed=4294967294&steps=12&length=40"
                     "&temperature=0.8&topP=0.9&sampler=remask")  # fmt: skip
    z = mdlm.sampling.template(tokenizer, ["The LORD", 1, "said"], 40)
    options = dict(temperature=0.8, top_p=0.9)
    expected = mdlm.sampling.sample_remask(model, z, 12, noise(4294967294), **options)
    text = tokenizer.decode(expected.tokens[0].tolist())
    assert page.text_content("#live") == f"Written: {text}"
    assert page.text_content("#write .text") == text
    assert "seed=4294967294" in page.url


def test_back_and_forth_mask_again_type_and_fill(page):
    begin_anew(page, "#write&prompt=And+God+said&steps=6&length=24")
    text, facts, play = (page.locator(f"#write {it}") for it in (".text", ".facts", "#play"))
    written = text.text_content()
    put(page, "#timeline", 1)
    page.click("#back")
    expect(facts).to_have_text("0 network calls, 21 masked")
    page.click("#play")
    expect(play).to_have_text("Pause")
    put(page, "#timeline", 5)
    page.click("#forth")
    expect(play).to_have_text("Play")
    assert text.text_content() == written
    click(page, "#write .token:nth-of-type(20)", "Masked")
    expect(facts).to_have_text("0 network calls, 1 masked")
    page.click("#write .mask")
    page.fill("#typing input", "<b>heaven</b>")
    page.click("#typing button")
    expect(text).to_contain_text("<b>heaven</b>")  # letters, no element
    click(page, "#write .token:nth-of-type(5)", "Masked")
    click(page, "#fill", "Written")
    expect(text).to_contain_text("<b>heaven</b>")


@torch.no_grad()
def test_what_the_model_expects_at_a_mask(page):
    """Ten tokens and their probabilities, as in PyTorch; a view shows the first in its place."""
    model, tokenizer = included()
    put(page, "#write [name=prompt]", "In the beginning God_the heaven and the earth.")
    put(page, "#write [name=length]", 12)
    click(page, "#write .main", "Written")
    put(page, "#timeline", 0)
    page.hover("#write .mask")
    expect(page.locator("#card p")).to_have_count(10)
    parts = ["In the beginning God", 1, "the heaven and the earth."]
    z = mdlm.sampling.template(tokenizer, parts, 12)
    place = z[0].tolist().index(model.mask_id)
    best = model(z)[0, place].exp().topk(10)
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    expected = [f"“{tokenizer.decode([i])}”{p:.1%}".replace("%", " %") for i, p in rows]
    assert page.locator("#card p").all_text_contents() == expected
    page.click("label:has([value=prediction])")
    likeliest = tokenizer.decode([best.indices[0].item()]).strip()
    expect(page.locator("#write .mask").first).to_have_attribute("data-guess", likeliest)


def test_it_works_by_keyboard_alone(page):
    def press(*keys):
        for key in keys:
            page.keyboard.press(key)

    page.fill("#write [name=prompt]", "And Aaron said")
    press("Enter")
    says(page, "Written: And Aaron said")
    while not page.locator("#write .text :focus").count():
        assert not page.locator("#destroy :focus").count(), "Tab has passed the text by"
        press("Tab")
    press("Home", "ArrowRight", "ArrowRight")
    third = page.locator("#write .token").nth(2)
    expect(third).to_be_focused()
    press("Enter")
    expect(third).to_have_class("token mask")
    press("Enter", *"Moses", "Enter")
    expect(page.locator("#write .text")).to_contain_text("And Aaron Moses")
    press("Enter", "Enter", "Escape")  # masked again, and no word for it
    expect(page.locator("#typing")).to_be_hidden()


def test_words_fall_as_their_moments_pass(page):
    put(page, "#destroy [name=sentence]", "And the children of Israel did evil.")
    masks = page.locator("#destroy .mask")
    for t, fewest, most in ((0, 0, 0), (0.5, 1, 7), (1, 8, 8)):
        put(page, "#destroy [name=t]", t)
        facts = f"{masks.count()} of 8 tokens are masked"
        expect(page.locator("#destroy .facts")).to_contain_text(facts)
        assert fewest <= masks.count() <= most
    page.dispatch_event("#destroy [name=t]", "change")  # the slider is let go
    says(page, "Written again")
    assert masks.count() == 0


@torch.no_grad()
def test_one_sample_of_the_bound_is_pythons(lab):
    model, tokenizer = included()
    assert run(lab, "return lab.load('/kjv.safetensors', way)", way=SIMD) == SIMD
    x = tokenizer.encode("And it came to pass in those days, that he went out into a mountain.")
    code = "return (await lab.nelbo(lab.model, x, k, lab.generator(k))).nats"
    for k in (1, 5, len(x)):
        expected = nelbo(model, torch.tensor([x]), torch.tensor([k]), noise(k)).item()
        assert run(lab, code, x=x, k=k) == pytest.approx(expected, rel=1e-4, abs=1e-3)


@torch.no_grad()
def test_how_surprised_it_is(page):
    """The bound agrees with Python's within the errors of both."""
    model, tokenizer = included()
    text = page.input_value("#surprise textarea")
    x, n_bytes = tokenizer.encode(text), len(text.encode())
    click(page, "#surprise .main", "At most")
    bits, error = map(float, page.text_content("#bound").split(" ± "))
    k = spread_mask_counts(128, len(x), noise(0))
    expected = nelbo(model, torch.tensor([x] * 128), k, noise(2)) / math.log(2) / n_bytes
    expected_error = expected[k.argsort()].diff().pow(2).mean().div(2 * 128).sqrt().item()
    assert abs(bits - expected.mean().item()) < 4 * math.hypot(error, expected_error)
    assert 0.3 < error / expected_error < 3
    expect(page.locator("#surprise .token[aria-label$=' bits']")).to_have_count(len(x))
    zipped = 8 * len(gzip.compress(text.encode())) / n_bytes
    assert float(page.text_content("#gzip")) == pytest.approx(zipped, abs=0.2)
    click(page, "#shuffle", "At most")
    assert float(page.text_content("#bound").split()[0]) > 1.3 * bits
    put(page, "#surprise textarea", "")
    page.click("#surprise .main")
    expect(page.locator("#problem")).to_contain_text("There is no text")


@torch.no_grad()
def test_the_cube_is_exact(page):
    """Its bounds are those of toy.py, with the network's own probabilities."""
    model, tokenizer = included()
    put(page, "#cube [name=sentence]", "And [Saul] said unto [Samuel], I have [sinned].")
    expect(page.locator("#given-0 + span")).to_have_text("Saul")
    x = torch.tensor(tokenizer.encode("And Saul said unto Samuel, I have sinned."))
    words = [tokenizer.encode(f" {word}")[0] for word in ("Saul", "Samuel", "sinned")]
    places = [x.tolist().index(word) for word in words]

    def three_words(states):  # of toy.py's tokens 0, 1, 2 and its mask, (B, 3)
        z = x.repeat(len(states), 1)
        z[:, places] = torch.tensor([*words, model.mask_id])[states]
        return model(z)[:, places][..., words]

    table, text = tabulate(three_words), (0, 1, 2)
    facts, walks = page.locator("#cube .facts"), page.locator("#walks li")
    for log in (0, 2, 8):
        put(page, "#cube [name=log]", log)
        bounds = exact_nelbo(table, text), exact_nelbo_in_steps(table, text, 2**log)
        numbers = re.findall(r"([\d.]+) bits", facts.text_content())
        assert numbers == ["0.0", *(f"{nats / math.log(2):.1f}" for nats in bounds)]
    expect(walks).to_have_count(6)
    page.locator("#walks button").first.click()
    expect(page.locator(".edge.walked")).to_have_count(3)
    page.check("#given-1")  # a prompt: a face of the cube
    expect(walks).to_have_count(2)
    corners = page.locator("#cube-picture [role=button]")
    corners.nth(1).click()  # 0 is the top, a leap
    expect(page.locator(".edge.walked")).to_have_count(1)
    expect(corners).to_have_count(2)  # on to the top, or back to the beginning
    put(page, "#cube [name=sentence]", "no brackets")
    expect(facts).to_contain_text("Put three words")


def test_the_race(page, in_float32):
    """The twin is loaded when asked for, and writes what it writes in Python."""
    tokenizer = included()[1]
    put(page, "#race [name=seed]", 3)
    click(page, "#race .main", "diffusion")
    z = mdlm.sampling.template(tokenizer, ["And God said"], 96)
    expected = sample_twin(included("kjv-twin")[0], z, noise(3)).tokens[0].tolist()
    assert page.locator("#race .text").nth(1).text_content() == tokenizer.decode(expected)
    assert "96 calls" in page.text_content("#live")


@torch.no_grad()
def test_sudoku(page):
    """A puzzle is made and solved; the small digits are what PyTorch's network expects."""
    model, cells = included("sudoku")[0], page.locator("#sudoku .grid button")
    page.click("#puzzle")
    expect(page.locator("#sudoku .given")).to_have_count(10)
    expect(page.locator("#sudoku .grid i")).to_have_count(26 * 6)
    shown = cells.evaluate_all("all => all.map((c) => c.matches('.given') ? c.textContent : '')")
    shares = "all => all.map((i) => Number(i.style.getPropertyValue('--share')))"
    found = torch.tensor(page.locator("#sudoku .grid i").evaluate_all(shares)).view(26, 6)
    z = torch.tensor([[ord(digit) if digit else model.mask_id for digit in shown]])
    expected = model(z).exp()[z == model.mask_id, ord("1") : ord("7")]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    click(page, "#sudoku .main", "Every rule is kept.")
    solved = torch.tensor([[ord(digit) for digit in cells.all_text_contents()]])
    assert is_valid(solved) and ((z == solved) | (z == model.mask_id)).all()
    page.click("#clear")
    cells.first.focus()
    for key in ("3", "ArrowDown", "3"):
        page.keyboard.press(key)
    facts = "No grid has that: two 3s in one column."
    expect(page.locator("#sudoku .facts")).to_have_text(facts)
    expect(page.locator("#sudoku .wrong")).to_have_count(2)


def test_a_file_of_ones_own(page, tmp_path):
    """A wrong one is refused in a sentence, and the page goes on; a good one is used."""
    model, path = save_tiny(tmp_path)
    whole, problem = path.read_bytes(), page.locator("#problem")
    model.blocks[0].norm1.forward = lambda x: x  # another network, of the same shapes
    save_checkpoint(path, model, TOKENIZER, {})
    flipped = whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:]
    put(page, "#write [name=prompt]", "the")
    for data in (b"", whole[:-9], flipped, path.read_bytes()):
        page.set_input_files("#file", {"name": "mine", "mimeType": "", "buffer": data})
        expect(problem).to_have_text(re.compile("damaged|another network"))
        click(page, "#write .main", "Written")
        expect(problem).to_be_hidden()
    drop = """
        const files = new DataTransfer();
        files.items.add(new File([Uint8Array.fromBase64(data)], "mine"));
        dispatchEvent(new DragEvent("drop", { dataTransfer: files, cancelable: true }));
    """
    run(page, drop, data=base64.b64encode(whole).decode())
    expect(page.locator("#status")).to_contain_text("0.0 million parameters")
    expect(page.locator("[name=length]")).to_have_attribute("max", "16")
    begin_anew(page, "#write&steps=6&length=24")


# -- the page with other files


def open_with(browser, address, files):
    """A tab with the page, in which some files are others, {name: bytes}, or missing (None)."""

    def answer(route):
        body = files[route.request.url.rpartition("/")[2]]
        kind = "text/javascript"  # which is looked at in scripts only
        route.fulfill(status=200 if body else 404, body=body or b"", content_type=kind)

    tab = open_tab(browser, "about:blank")
    for name in files:
        tab.route(f"**/{name}", answer)
    tab.goto(address + "#write&prompt=the&steps=9&length=12&topP=1&seed=5")
    return tab


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("kjv.safetensors", "kjv.safetensors is not there (404)."),
        ("worker.js", "A part of the page is missing, or this browser is too old: reload it."),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_sentence(browser, address, name, sentence):
    tab = open_with(browser, address, {name: None})
    expect(tab.locator("#problem")).to_have_text(sentence)
    expect(tab.locator("#status")).to_have_text("No model is loaded.")


SUBMIT = "device.queue.submit([encoder.finish()]);"
LOSE = "await new Promise((go) => setTimeout(go, 1000)); device.destroy();"
CARDS = {  # what is wrong with it: how it is used at first, a line of webgpu.js, and another one
    "it is lost": (WEBGPU, SUBMIT, f"if (places.length === 1) {{ {LOSE} }} {SUBMIT}"),
    "its numbers": (SIMD, "value / sum;", "value;"),
    "its compiler": (SIMD, "value / sum;", "value / sums;"),
}


@pytest.mark.parametrize("trouble", ["no WebAssembly", *CARDS])
def test_the_text_is_the_same_whatever_calculates_it(
    lab, browser, address, tmp_path, in_float32, trouble
):
    """In JavaScript, or with a card that the CPU plays, which is taken in this test alone."""
    first, old, new = CARDS.get(trouble, (PLAIN, "", ""))
    if trouble in CARDS and not has_webgpu(lab):
        pytest.skip("this Chromium has no WebGPU")
    code = (ROOT / "page" / "webgpu.js").read_text(encoding="utf-8")
    for one, other in {old: new, "played && !software": "false"}.items():
        assert one in code
        code = code.replace(one, other)
    model, path = save_tiny(tmp_path)
    files = {"webgpu.js": code.encode()} if trouble in CARDS else {"kernel.wasm": None}
    tab = open_with(browser, address, files | {"kjv.safetensors": path.read_bytes()})
    expect(tab.locator("#arithmetic")).to_have_text(first)
    z = mdlm.sampling.template(TOKENIZER, ["the"], 12)
    tokens = mdlm.sampling.sample(model, z, 9, noise(5)).tokens[0]
    says(tab, f"Written: {TOKENIZER.decode(tokens.tolist())}")
    expect(tab.locator("#arithmetic")).to_have_text(SIMD if trouble in CARDS else PLAIN)


def test_nothing_else_is_run_or_loaded(browser, address):
    tab = open_with(browser, address, {"main.js": None})
    foreign = """
        const script = document.createElement("script");
        script.textContent = "globalThis.foreign = true";
        document.body.append(script);
        return Boolean(globalThis.foreign);
    """
    assert not run(tab, foreign)
    other = address.replace("127.0.0.1", "localhost")  # it answers, too, but is another host
    with pytest.raises(Error, match="Failed to fetch"):
        run(tab, "await fetch(other, { mode: 'no-cors' })", other=other)


# -- how it looks, and what it bears


def test_the_colors_are_the_windows(page):
    """Of which test_visual.py says that one can read them."""
    style = (ROOT / "page" / "style.css").read_text(encoding="utf-8")
    for name in ("page", "ink", "faint", "line", "mask", "accent", "card"):
        light, dark = (bytes(getattr(THEMES[t], name)).hex() for t in ("light", "dark"))
        assert f"--{name}: light-dark(#{light}, #{dark});" in style
    code = "return (await import(location.origin + '/colors.js')).probabilityColor(p)"
    for p in (0, 0.2, 0.55, 1):
        found = [int(n) for n in re.findall(r"\d+", run(page, code, p=p))]
        expected = [*probability_color(p, THEMES["light"]), *probability_color(p, THEMES["dark"])]
        assert np.abs(np.subtract(found, expected)).max() <= 1


def test_every_control_has_a_name(page):
    """What a screen reader says of it."""
    roles = {"button", "textbox", "slider", "spinbutton", "radio", "checkbox", "combobox", "link"}
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    controls = [n for n in nodes if not n["ignored"] and n["role"].get("value") in roles]
    assert len(controls) > 60
    assert [n["role"] for n in controls if not n.get("name", {}).get("value", "").strip()] == []


def test_it_fits_a_telephone_and_keeps_still_if_asked_to(page):
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    put(page, "#destroy [name=t]", 0.9)
    assert page.evaluate("document.getAnimations().length") == 0
    page.set_viewport_size({"width": 1000, "height": 900})


TEXTS = [
    "", "_", "\\_", "a _ b", "[x] [y] [z]", "[the] [the] [the]", "[", "]]", "\0", "👩\u200d👩",
    "\n", " ", "-1", "1e99", "NaN", "<b>x</b>", "<|mask|>", "a" * 3000, "_" * 300,
]  # fmt: skip
RANDOM_INPUTS = """
    let state = 1;
    const pick = (list) => list[(state = (state * 48271) % 2147483647) % list.length];
    const all = (selector) => [...document.querySelectorAll(selector)];
    for (let i = 0; i < 150; i++) {
        const field = pick(all("input:not([type=file]), select, textarea"));
        if (/radio|checkbox/.test(field.type)) field.click();
        else field.value = pick(texts);
        field.dispatchEvent(new Event(pick(["input", "change"]), { bubbles: true }));
        const visible = all("button, .token, [role=button]").filter((it) => it.checkVisibility());
        const mouse = new MouseEvent(pick(["click", "pointerover", "focusin"]), { bubbles: true });
        const key = pick(["Enter", " ", "ArrowLeft", "ArrowDown", "Home", "End", "Escape", "x"]);
        for (const event of [mouse, new KeyboardEvent("keydown", { key, bubbles: true })])
            pick(visible).dispatchEvent(event);
        if (i % 20 === 0) await new Promise((resolve) => setTimeout(resolve, 20));
    }
"""


def test_random_inputs(page):
    run(page, RANDOM_INPUTS, texts=[*TEXTS, "The LORD said unto Moses"])
    assert page.locator("img, b").count() == 0
    begin_anew(page, "#write&prompt=And&steps=4&length=16")  # and it still writes


# -- serving it


def test_what_a_static_host_needs(tmp_path, monkeypatch):
    """All that is served here, of which a first visit loads at most 12 MB, and working links."""
    for repository, guide in {
        "": '"learning_guide.md#5',
        "a/b": "https://github.com/a/b/blob/main/learning_guide.md#5",
    }.items():
        monkeypatch.setenv("GITHUB_REPOSITORY", repository)
        publish.main(["--build", str(tmp_path)])
        assert guide in (tmp_path / "index.html").read_text(encoding="utf-8")
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes.keys() == publish.site_files().keys()
    later = ("kjv-twin.safetensors", "sudoku.safetensors", "learning_guide.md", "kernel.wat")
    assert sum(size for name, size in sizes.items() if name not in later) < 12e6


def test_only_the_page_is_served_and_only_here(address):
    assert address.startswith("http://127.0.0.1:")
    for path in ("README.md", "page/index.html", "../README.md", "checkpoints/", "%2e%2e/run.py"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address + path)
