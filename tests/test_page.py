"""The model in a page: what its JavaScript calculates is what Python calculates."""

import base64
import contextlib
import itertools
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
from corpus import load_text, split_text
from mdlm.diffusion import nelbo, spread_mask_counts
from mdlm.model import DiffusionTransformer
from mdlm.twin import sample_twin
from saving import load_checkpoint, save_checkpoint
from tests.chromium import WAIT, chromium, open_tab, run, says
from toy import MASK, exact_nelbo, exact_nelbo_in_steps
from visual.colors import THEMES, probability_color, viridis

CHECKPOINTS = ROOT / "checkpoints"
TOKENIZER = BPETokenizer.train("the end of the beginning, " * 20, 300)
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
        globalThis.lab = {
            ...await import("/model.js"), ...await import("/sampling.js"),
            ...await import("/tokenizer.js"), ...await import("/webgpu.js"),
        };
        lab.bytes = async (name) => new Uint8Array(await (await fetch(name)).arrayBuffer());
        lab.wasm = await lab.bytes("/kernel.wasm");
        lab.logits = async (model, z, t = 0) => {
            const rows = await model.predict(z, z.map((_, l) => l), t);
            const all = new Float32Array(z.length * model.maskId);
            rows.forEach((row, l) => all.set(row, l * model.maskId));
            return new Uint8Array(all.buffer).toBase64();
        };
        lab.last = async (states) => {
            let last;
            for await (last of states);
            return last;
        };
    """)  # fmt: skip
    return tab


def load(name):
    """An included model, and its tokenizer."""
    return load_checkpoint(CHECKPOINTS / f"{name}.safetensors", DiffusionTransformer, "cpu")[:2]


@pytest.fixture(scope="module")
def included(lab):
    """The included model in Python; in the lab it is `lab.model`, its tokenizer lab.tokens."""
    run(lab, """
        lab.file = await lab.bytes("/kjv.safetensors");
        lab.model = await lab.DiffusionTransformer.load(lab.file, lab.wasm);
        lab.tokens = new lab.Tokenizer(lab.model.header.tokenizer);
    """)  # fmt: skip
    return load("kjv")


@pytest.fixture(scope="module", params=["null", "lab.device"], ids=["WebAssembly", "WebGPU"])
def device(request, lab):
    """What stands for the graphics card in the lab: none, or one that the CPU plays."""
    if request.param == "lab.device":
        run(lab, "lab.device ??= await lab.openDevice(true)")
        if not run(lab, "return Boolean(lab.device)"):
            pytest.skip("this Chromium has no WebGPU")
    return request.param


on_webgpu = pytest.mark.parametrize("device", ["lab.device"], indirect=True, ids=["WebGPU"])


@pytest.fixture
def float32(monkeypatch):
    """No bfloat16, whatever this CPU has."""
    for module in ("mdlm.sampling", "mdlm.twin"):
        monkeypatch.setattr(f"{module}.autocast", lambda device: contextlib.nullcontext())


def save_tiny(folder, edit=lambda model: None, **changes):
    """A tiny network, and the file that it has been saved in."""
    model, path = make_model(vocab_size=TOKENIZER.vocab_size, **changes), folder / "t.safetensors"
    edit(model)
    save_checkpoint(path, model, TOKENIZER, {"é": "ü\x7f"})
    return model, path


LOAD = "lab.tiny = await lab.DiffusionTransformer.load(Uint8Array.fromBase64(data), {}, {});"


def load_tiny(lab, folder, wasm="lab.wasm", device="null", **changes):
    """A tiny network, as `lab.tiny` in the lab, too. Returns it, and what the lab computes with."""
    model, path = save_tiny(folder, **changes)
    data = base64.b64encode(path.read_bytes()).decode()
    code = LOAD.format(wasm, device) + "return lab.tiny.arithmetic"
    return model, run(lab, code, data=data)


def logits_in_page(lab, name, z):
    """Logits of all places of a text z (L,), from the page."""
    return run(lab, "return lab.logits(lab[name], z)", name=name, z=z.tolist())


@torch.no_grad()
def assert_logits_agree(found, model, z, t=0.0, most=1e-4):
    found = torch.frombuffer(bytearray(base64.b64decode(found)), dtype=torch.float32)
    expected = model.head(model.features(z[None], torch.tensor([t])))[0]
    assert (found.view(len(z), -1) - expected).abs().max() < most


def some_masked_text(model, length):
    generator = noise(1)
    z = torch.randint(model.mask_id, (length,), generator=generator)
    z[torch.rand(length, generator=generator) < 0.5] = model.mask_id
    return z


# -- the network


def test_logits_are_pytorchs(lab, included, device):
    model, _ = included
    code = "lab.asked = device && await lab.DiffusionTransformer.load(lab.file, lab.wasm, device);"
    arithmetic = run(lab, code.replace("device", device) + "return lab.asked?.arithmetic")
    assert arithmetic == (None if device == "null" else "WebGPU")
    name, lengths = ("model", (1, 17, 256)) if device == "null" else ("asked", (1, 96))
    for length in lengths:
        z = some_masked_text(model, length)
        assert_logits_agree(logits_in_page(lab, name, z), model, z, most=1e-3)


NETWORKS = [
    dict(d_model=48, n_heads=3, n_layers=2, context=23, qk_norm=False),
    dict(n_heads=1),
    dict(time_conditioning=True),
    dict(causal=True),
]


@pytest.mark.parametrize("changes", NETWORKS, ids=str)
def test_other_networks_can_be_opened_and_asked_several_things_at_once(lab, tmp_path, changes):
    ask_at_once(lab, *load_tiny(lab, tmp_path, **changes), "WebAssembly with SIMD")


@on_webgpu
def test_so_can_they_on_a_graphics_card(lab, tmp_path, device):
    ask_at_once(lab, *load_tiny(lab, tmp_path, device=device, **NETWORKS[0]), "WebGPU")
    for special in NETWORKS[2:]:  # for which there is no program there
        assert load_tiny(lab, tmp_path, device=device, **special)[1] == "WebAssembly with SIMD"


def ask_at_once(lab, model, arithmetic, expected):
    assert arithmetic == expected
    texts = [some_masked_text(model, length) for length in (7, model.config.context, 1)]
    code = "return Promise.all(texts.map((z) => lab.logits(lab.tiny, z, 0.3)))"
    for z, logits in zip(texts, run(lab, code, texts=[z.tolist() for z in texts]), strict=True):
        assert_logits_agree(logits, model, z, 0.3)


def test_plain_javascript_gives_the_same_bits(lab, tmp_path):
    """So a seed gives the same text with WebAssembly and without."""
    found = {}
    for wasm in ("lab.wasm", "null"):
        model, arithmetic = load_tiny(lab, tmp_path, wasm)
        found[arithmetic] = logits_in_page(lab, "tiny", some_masked_text(model, 13))
    assert [*found] == ["WebAssembly with SIMD", "plain JavaScript"]
    one, other = found.values()
    assert one == other


@on_webgpu
@pytest.mark.parametrize(
    "mistake", ["value", "value / sums"], ids=["wrong numbers", "refused by the compiler"]
)
def test_a_graphics_card_that_is_wrong_is_not_used(lab, tmp_path, device, mistake):
    assert "value / sum;" in (ROOT / "page" / "webgpu.js").read_text(encoding="utf-8")
    run(
        lab,
        "lab.other = await lab.openDevice(true);"
        "const compile = lab.other.createShaderModule.bind(lab.other);"
        "lab.other.createShaderModule = ({ code }) =>"
        "    compile({ code: code.replace('value / sum;', mistake + ';') });",
        mistake=mistake,
    )
    model, arithmetic = load_tiny(lab, tmp_path, device="lab.other")
    assert arithmetic == "WebAssembly with SIMD"
    z = some_masked_text(model, 9)
    assert_logits_agree(logits_in_page(lab, "tiny", z), model, z)
    assert run(lab, "return await lab.openDevice()") is None  # nor one that the CPU plays


def test_the_kernel_is_what_its_source_says():
    wasmtime = pytest.importorskip("wasmtime")
    source = (ROOT / "page" / "kernel.wat").read_text(encoding="utf-8")
    assert wasmtime.wat2wasm(source) == (ROOT / "page" / "kernel.wasm").read_bytes()


DAMAGES = {
    "flipped": lambda whole: whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:],
    "short": lambda whole: whole[:-100],
    "header": lambda whole: whole[:5] + b"\t" + whole[6:],
    "empty": lambda whole: b"",
    "another network": bytes,  # of the same shapes
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_checkpoint_is_refused_in_one_sentence(lab, tmp_path, damage):
    def edit(model):
        if damage == "another network":
            model.blocks[0].norm1.forward = lambda x: x

    data = DAMAGES[damage](save_tiny(tmp_path, edit)[1].read_bytes())
    with pytest.raises(Error, match=r"damaged|another network"):
        run(lab, LOAD.format("lab.wasm", "null"), data=base64.b64encode(data).decode())


# -- the tokenizer

PIECES = [
    "In the beginning", " God", "  ", "\r\n", "\n\n", "\t", "\x1c", "\x85", "\u00a0", "\u3000",
    "\ufeff", "it's", "don’t", "we'll've", "'s", "'sé", "12345", "٣٤٥", "²³", "½", "Ⅷ", "〇", "x²y",
    "_", "__init__", "สวัสดี", "ชาวโลก", "नमस्ते", "שָׁלוֹם", "é", "e\u0301", "👩\u200d👩\u200d👧",
    "👍🏽", "🇩🇪", "❤️", "漢字", "한국어", "<|mask|>", "<|mask", "|>", "…", "—", "$%&", "a" * 70,
    "7" * 70,
    "é" * 70, " " * 70, "." * 70, "\0", "\ud800", "\udfff", "\U0001d400", "\U000e0100",
    "\U0010ffff", "a-b", "Mt. 5:3", "ΑΒΓ", "ß", "Ǆ",
]  # fmt: skip


def test_the_tokenizer_is_pythons(lab, included):
    """On 200 texts: scripts, emoji, line ends, half characters, the letters of the mask."""
    _, tokenizer = included
    choose = random.Random(1)
    texts = [*PIECES, *("".join(choose.choices(PIECES, k=6)) for _ in range(200 - len(PIECES)))]
    found = run(
        lab,
        "return JSON.parse(texts).map((text) => { const ids = lab.tokens.encode(text);"
        "return [ids, lab.tokens.decode(ids)]; })",
        texts=json.dumps(texts),  # half a character survives as an escape only
    )
    assert found == [[ids := tokenizer.encode(text), tokenizer.decode(ids)] for text in texts]
    # and what is not valid UTF-8
    several = [choose.choices(range(tokenizer.vocab_size), k=9) for _ in range(100)]
    decoded = run(lab, "return texts.map((ids) => lab.tokens.decode(ids))", texts=several)
    assert decoded == [tokenizer.decode(ids) for ids in several]


# -- sampling


def test_random_numbers_are_pytorchs(lab):
    for seed in (0, 1, 2**32 - 1, 2**40 + 5):
        expected = torch.rand(700, dtype=torch.float64, generator=noise(seed)).tolist()
        code = "const u = lab.generator(seed); return Array.from({length: 700}, u)"
        assert run(lab, code, seed=seed) == expected


SAMPLERS = {
    "ancestral": mdlm.sampling.sample,
    "first-hitting": mdlm.sampling.sample_first_hitting,
    "confident": mdlm.sampling.sample_confident,
    "remask": mdlm.sampling.sample_remask,
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps, more", [(1, {}), (7, {}), (40, dict(temperature=0.7, top_p=0.8))])
def test_a_seed_gives_pythons_text(lab, tmp_path, float32, sampler, steps, more):
    model, _ = load_tiny(lab, tmp_path)
    z = torch.full((1, 16), model.mask_id)
    z[0, 3:6] = torch.tensor([5, 6, 7])
    options = dict(temperature=1, topP=more.get("top_p", 1)) | more
    for seed in range(4):
        expected = SAMPLERS[sampler](model, z, steps, noise(seed), **more)
        tokens, when, probability, calls = run(
            lab,
            "const end = await lab.last(lab.sample(lab.tiny, z, options));"
            "return [[...end.z], [...end.when], [...end.probability], end.calls]",
            z=z[0].tolist(),
            options=dict(sampler=sampler, steps=steps, seed=seed, **options),
        )
        assert tokens == expected.tokens[0].tolist() and when == expected.step[0].tolist()
        assert np.allclose(probability, expected.probability[0], atol=1e-5)
        assert calls == expected.network_calls


# -- the bound


def test_the_bound_of_a_validation_page_is_pythons(page, lab, included, tmp_path):
    """One sample to the last digits, and many within the errors that both report."""
    model, tokenizer = included
    _, text, _ = split_text(load_text("kjv", tmp_path))
    x = tokenizer.encode(text[:5000])[:96]
    for k in (1, 5, 96):
        with torch.no_grad():
            expected = nelbo(model, torch.tensor([x]), torch.tensor([k]), noise(k)).item()
        code = "return (await lab.nelbo(lab.model, x, k, lab.generator(k))).nats"
        assert run(lab, code, x=x, k=k) == pytest.approx(expected, rel=1e-4, abs=1e-3)
    found = run(
        page,
        "const { oneAtATime } = await import(location.origin + '/client.js'); let last;"
        "await oneAtATime()('bound', { windows: [x], seed: 1, most: 32 }, (s) => last = s);"
        "return last",
        x=x,
    )
    k = spread_mask_counts(32, len(x), noise(0))
    with torch.no_grad():
        nats = nelbo(model, torch.tensor([x] * 32), k, noise(2))
    error = nats[k.argsort()].diff().pow(2).mean().div(2 * len(nats)).sqrt().item()
    assert abs(found["nats"] - nats.mean().item()) < 4 * math.hypot(error, found["error"])
    assert 0.3 < found["error"] / error < 3
    assert len(found["each"]) == len(x)


# -- the page itself


@pytest.fixture(scope="module")
def live(browser, address):
    """The page, after its first text."""
    tab = open_tab(browser, address + "#write&prompt=And+God+said&steps=6&length=24")
    says(tab, "Written")
    return tab


@pytest.fixture
def page(live):
    """The page, on which there is no uncaught error and no refused resource in any test."""
    troubles = []

    def note(what):
        if getattr(what, "type", "error") == "error":
            troubles.append(str(what))

    for kind in ("pageerror", "console"):
        live.on(kind, note)
    yield live
    live.evaluate("1")  # what has gone wrong has been told by now
    for kind in ("pageerror", "console"):
        live.remove_listener(kind, note)
    assert troubles == []


def click(page, selector, then=None):
    """Click on something, and wait until the page says `then`."""
    page.evaluate("document.querySelector('#live').textContent = ''")
    page.dispatch_event(selector, "click")
    if then:
        says(page, then)


def put(page, selector, value):
    """Put a value into a field."""
    change = "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', { bubbles: true })) }"
    page.locator(selector).evaluate(change, value)


def begin_anew(page, hash):
    page.evaluate("(hash) => history.replaceState(null, '', hash)", hash)
    page.reload()
    says(page, "Written")


def test_an_address_gives_pythons_text(page, included, float32):
    """What one reader shares, another sees: here, and in Python."""
    model, tokenizer = included
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
    text, facts, play = (page.locator(f"#write {it}") for it in (".text", ".facts", "#play"))
    for name, value in dict(prompt="And God said", length=24, sampler="ancestral").items():
        put(page, f"#write [name={name}]", value)
    page.click("#write .main")
    says(page, "Written: And God said")
    before = text.text_content()
    press = "(button) => { for (let i = 0; i < 99; i++) document.querySelector(button).click() }"
    page.evaluate(press, "#back")
    expect(facts).to_have_text("0 network calls, 21 masked")
    page.evaluate(press, "#forth")
    assert text.text_content() == before
    for view in ("order", "prediction", "text"):
        page.click(f"label:has([value={view}])")
    page.click("#play")
    expect(play).to_have_text("Pause")
    page.evaluate(press, "#forth")
    expect(play).to_have_text("Play")
    click(page, "#write .token:nth-of-type(20)", "Masked")
    expect(facts).to_have_text("0 network calls, 1 masked")
    click(page, "#write .mask")
    page.fill("#typing input", "<b>heaven</b>")
    page.click("#typing button")
    expect(text).to_contain_text("<b>heaven</b>")  # letters, no element
    assert page.locator("#write b").count() == 0
    click(page, "#write .token:nth-of-type(5)", "Masked")
    click(page, "#fill", "Written")
    expect(text).to_contain_text("<b>heaven</b>")


def test_what_the_model_expects_at_a_mask(page, included):
    """Ten tokens with their probabilities, those of PyTorch."""
    model, tokenizer = included
    put(page, "#write [name=prompt]", "In the beginning God_the heaven and the earth.")
    put(page, "#write [name=length]", 12)
    click(page, "#write .main", "Written")
    put(page, "#timeline", 0)
    page.hover("#write .mask")
    expect(page.locator("#card p")).to_have_count(10)
    parts = ["In the beginning God", 1, "the heaven and the earth."]
    z = mdlm.sampling.template(tokenizer, parts, 12)
    with torch.no_grad():
        place = (z[0] == model.mask_id).nonzero()[0, 0]
        best = model(z)[0, place].exp().topk(10)
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    expected = [f"“{tokenizer.decode([i])}”{p:.1%}".replace("%", " %") for i, p in rows]
    assert page.locator("#card p").all_text_contents() == expected


def test_it_works_by_keyboard_alone(page):
    press = page.keyboard.press
    page.evaluate("document.querySelector('#live').textContent = ''")
    page.focus("#write [name=prompt]")
    press("Enter")
    says(page, "Written")
    for _ in range(20):
        press("Tab")
        if page.locator("#write .text :focus").count():
            break
    for key in ("Home", "ArrowRight", "ArrowRight"):
        press(key)
    third = page.locator("#write .token").nth(2)
    expect(third).to_be_focused()
    press("Enter")
    expect(third).to_have_class("token mask")
    press("Enter")
    page.keyboard.insert_text("Moses")
    press("Enter")
    expect(page.locator("#write .text")).to_contain_text("Moses")
    for key in ("Enter", "Enter", "Escape"):  # masked again, and no word for it
        press(key)
    expect(page.locator("#typing")).to_be_hidden()


def test_words_fall_as_their_moments_pass(page):
    put(page, "#destroy [name=sentence]", "And the children of Israel did evil.")
    masks, counts = page.locator("#destroy .mask"), []
    for t in (0, 0.3, 0.6, 1):
        put(page, "#destroy [name=t]", t)
        counts.append(masks.count())
        facts = page.text_content("#destroy .facts")
        assert facts.startswith(f"{counts[-1]} of 8 tokens are masked")
    assert counts[0] == 0 and counts[-1] == 8 and counts == sorted(counts)
    page.dispatch_event("#destroy [name=t]", "change")  # the slider is let go
    says(page, "Written again")
    assert masks.count() == 0
    page.click("#other-moments")


def test_how_surprised_it_is(page):
    def bound():
        return float(page.text_content("#bound").split()[0])

    put(page, "#surprise textarea", "And it came to pass in those days.")
    click(page, "#surprise .main", "At most")
    before = bound()
    assert 0.2 < before < 2 and 6 < float(page.text_content("#gzip")) < 16
    expect(page.locator("#surprise .token")).to_have_count(9)
    click(page, "#shuffle", "At most")
    assert bound() > 1.3 * before
    put(page, "#surprise textarea", "")
    page.click("#surprise .main")
    expect(page.locator("#problem")).to_contain_text("There is no text")


def test_the_cube_is_exact(page, included):
    """Its bounds are those of toy.py, with the network's own probabilities."""
    model, tokenizer = included
    sentence = "And [Saul] said unto [Samuel], I have [sinned]."
    put(page, "#cube [name=sentence]", sentence)
    x = torch.tensor(tokenizer.encode(re.sub(r"[\[\]]", "", sentence)))
    three = {tokenizer.encode(f" {word}")[0] for word in re.findall(r"\[(\w+)\]", sentence)}
    places = [i for i, token in enumerate(x.tolist()) if token in three]

    class Three:  # token i of three stands for word i
        table = {}  # noqa: RUF012

    for state in itertools.product((False, True), repeat=3):
        z = x.clone()
        z[places] = torch.where(torch.tensor(state), model.mask_id, z[places])
        with torch.no_grad():
            log_p = model(z[None])[0, places][:, x[places]]
        Three.table[tuple(MASK if masked else i for i, masked in enumerate(state))] = log_p
    expect(page.locator("#given-0 + span")).to_have_text("Saul")
    facts, walks = page.locator("#cube .facts"), page.locator("#walks li")
    expect(facts).to_contain_text("T = 1")
    for log in (0, 2, 8):
        put(page, "#cube [name=log]", log)
        exact = exact_nelbo(Three, (0, 1, 2)) / math.log(2)
        in_steps = exact_nelbo_in_steps(Three, (0, 1, 2), 2**log) / math.log(2)
        numbers = re.findall(r"([\d.]+) bits", facts.text_content())
        assert numbers == ["0.0", f"{exact:.1f}", f"{in_steps:.1f}"]
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


def test_the_race(page, included, float32):
    """The twin is loaded when asked for, and writes what it writes in Python."""
    _, tokenizer = included
    put(page, "#race [name=seed]", 3)
    click(page, "#race .main", "diffusion")
    z = mdlm.sampling.template(tokenizer, ["And God said"], 96)
    expected = sample_twin(load("kjv-twin")[0], z, noise(3)).tokens[0].tolist()
    assert page.locator("#race .text").nth(1).text_content() == tokenizer.decode(expected)
    assert "96 calls" in page.text_content("#live")


def test_sudoku(page):
    """A puzzle is made and solved; the small digits are what PyTorch's network expects."""
    model, _ = load("sudoku")
    cells, size = page.locator("#sudoku .grid button"), 6
    page.click("#puzzle")
    expect(page.locator("#sudoku .given")).to_have_count(10)
    expect(page.locator("#sudoku .grid i")).to_have_count(26 * size)
    shown = cells.evaluate_all("all => all.map((c) => c.matches('.given') ? c.textContent : '')")
    marks = cells.evaluate_all(
        "all => all.map((c) => [...c.children].map((i) => +i.style.getPropertyValue('--share')))"
    )
    z = torch.tensor([[ord(digit) if digit else model.mask_id for digit in shown]])
    with torch.no_grad():
        p = model(z).exp()[0, :, ord("1") : ord("7")]
    for digit, mark, expected in zip(shown, marks, p.tolist(), strict=True):
        assert mark == ([] if digit else pytest.approx(expected, abs=1e-4))
    click(page, "#sudoku .main", "Every rule is kept.")
    written = cells.all_text_contents()
    assert all(digit in ("", new) for digit, new in zip(shown, written, strict=True))
    grid = np.array(written).reshape(6, 6)
    boxes = grid.reshape(3, 2, 2, 3).swapaxes(1, 2).reshape(6, 6)
    assert all(sorted(unit) == list("123456") for unit in [*grid, *grid.T, *boxes])
    page.click("#clear")
    cells.first.focus()
    for key in ("3", "ArrowDown", "3"):
        page.keyboard.press(key)
    facts = "No grid has that: two 3s in one column."
    expect(page.locator("#sudoku .facts")).to_have_text(facts)
    expect(page.locator("#sudoku .wrong")).to_have_count(2)


def test_a_file_of_ones_own(page, tmp_path):
    """A damaged one is refused in a sentence, and the page goes on; a good one is used."""
    _, path = save_tiny(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    put(page, "#write [name=prompt]", "the")
    page.set_input_files("#file", path)
    expect(page.locator("#problem")).to_contain_text("damaged")
    click(page, "#write .main", "Written")
    expect(page.locator("#problem")).to_be_hidden()
    page.evaluate("document.querySelector('#live').textContent = ''")
    drop = """
        const files = new DataTransfer();
        files.items.add(new File([Uint8Array.fromBase64(data)], "mine"));
        dispatchEvent(new DragEvent("drop", { dataTransfer: files, cancelable: true }));
    """
    run(page, drop, data=base64.b64encode(whole).decode())
    says(page, "Written")
    expect(page.locator("#status")).to_contain_text("0.0 million parameters")
    expect(page.locator("[name=length]")).to_have_attribute("max", "16")
    begin_anew(page, "#write&steps=6&length=24")


@pytest.fixture
def instead(browser, address):
    """instead({name: bytes}): a tab with the page, where files are others, or missing (None)."""
    tab = open_tab(browser, "about:blank")

    def open_with(files):
        def answer(route):
            body = files[route.request.url.rpartition("/")[2]]
            kind = "text/javascript"  # which is looked at in scripts only
            route.fulfill(status=200 if body else 404, body=body or b"", content_type=kind)

        for name in files:
            tab.route(f"**/{name}", answer)
        tab.goto(address + "#write&prompt=the&steps=9&length=12&topP=1&seed=5")
        return tab

    yield open_with
    tab.close()


@pytest.mark.parametrize(
    "missing, sentence",
    [
        ("kjv.safetensors", "kjv.safetensors is not there (404)."),
        ("worker.js", "A part of the page is missing, or this browser is too old: reload it."),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_sentence(instead, missing, sentence):
    tab = instead({missing: None})
    expect(tab.locator("#problem")).to_have_text(sentence)
    expect(tab.locator("#status")).to_have_text("No model is loaded.")


def written_by(model):
    """What the page in `instead` says when all is well."""
    z = mdlm.sampling.template(TOKENIZER, ["the"], 12)
    tokens = mdlm.sampling.sample(model, z, 9, noise(5)).tokens[0]
    return f"Written: {TOKENIZER.decode(tokens.tolist())}"


def test_without_webassembly_it_calculates_in_javascript(instead, tmp_path, float32):
    model, path = save_tiny(tmp_path)
    tab = instead({"kernel.wasm": None, "kjv.safetensors": path.read_bytes()})
    says(tab, written_by(model))
    expect(tab.locator("#status")).to_contain_text("calculated in plain JavaScript")


@on_webgpu
def test_with_webgpu_it_says_so_until_the_card_is_lost(instead, device, tmp_path, float32):
    """Here a card is taken that the CPU plays, and taken away in the third call."""
    code = (ROOT / "page" / "webgpu.js").read_text(encoding="utf-8")
    submit = "device.queue.submit([encoder.finish()]);"
    later = "await new Promise((go) => setTimeout(go, 1000)); device.destroy();"
    third = f"if ((globalThis.calls = (globalThis.calls ?? 0) + 1) === 3) {{ {later} }}"
    for old, new in {"played && !software": "false", submit: submit + third}.items():
        assert code.count(old) == 1
        code = code.replace(old, new)
    model, path = save_tiny(tmp_path)
    tab = instead({"webgpu.js": code.encode(), "kjv.safetensors": path.read_bytes()})
    expect(tab.locator("#arithmetic")).to_have_text("WebGPU")
    says(tab, written_by(model))
    expect(tab.locator("#arithmetic")).to_have_text("WebAssembly with SIMD")


def test_no_script_but_its_own_can_run(instead):
    tab, troubles = instead({"main.js": None}), []
    tab.on("console", lambda message: troubles.append(message.text))
    tab.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "globalThis.foreign = 1";
        document.body.append(script);
    }""")
    assert tab.evaluate("globalThis.foreign ?? 0") == 0
    with pytest.raises(Error):
        tab.evaluate("fetch('https://example.org/')")
    assert any("Content Security Policy" in trouble for trouble in troubles)


def test_the_colors_are_the_windows(page):
    """Of which test_visual.py says that one can read them."""
    style = (ROOT / "page" / "style.css").read_text(encoding="utf-8")
    for name in ("page", "ink", "faint", "line", "mask", "accent", "card"):
        light, dark = (bytes(getattr(THEMES[t], name)).hex() for t in ("light", "dark"))
        assert f"--{name}: light-dark(#{light}, #{dark});" in style
    code = (
        "const c = await import(location.origin + '/colors.js');"
        "return [c.viridis(k), c.probabilityColor(k)]"
    )
    for k in (0, 0.2, 0.55, 1):
        light, dark = (probability_color(k, THEMES[t]) for t in ("light", "dark"))
        found, both = run(page, code, k=k)
        numbers = [int(n) for n in re.findall(r"\d+", both)]
        assert np.abs(np.subtract(found, viridis(k))).max() <= 1
        assert np.abs(np.subtract(numbers, [*light, *dark])).max() <= 1


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


RANDOM_INPUTS = """
    let state = 1;
    const random = (n) => (state = (state * 48271) % 2147483647) % n;
    const pick = (list) => list[random(list.length)];
    const texts = ["", "_", "\\\\_", "a _ b", "[x] [y] [z]", "[the] [the] [the]", "[", "]]",
        "\\ud800", "\\u0000", "👩‍👩‍👧", "สวัสดี", "<img src=x onerror=alert(1)>", "<|mask|>", " ",
        "\\n", "-1", "1e99", "NaN", "a".repeat(3000), "_".repeat(300), "The LORD said unto Moses"];
    for (let i = 0; i < 150; i++) {
        const all = (selector) => [...document.querySelectorAll(selector)];
        const field = pick(all("input:not([type=file]), select, textarea"));
        const clickable = pick(all("button, .token, [role=button]"));
        if (field.type === "radio" || field.type === "checkbox") field.click();
        else field.value = field.type === "range" ? Math.random() * field.max : pick(texts);
        field.dispatchEvent(new Event(pick(["input", "change"]), { bubbles: true }));
        const kind = pick(["click", "pointerover", "focusin"]);
        clickable.dispatchEvent(new MouseEvent(kind, { bubbles: true, cancelable: true }));
        const key = pick(["Enter", " ", "ArrowLeft", "ArrowDown", "Home", "End", "Escape", "x"]);
        clickable.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
        if (i % 20 === 0) await new Promise((resolve) => setTimeout(resolve, 20));
    }
    await new Promise((resolve) => setTimeout(resolve, 500));
"""


def test_random_inputs(page):
    run(page, RANDOM_INPUTS)
    assert page.locator("img, b").count() == 0
    begin_anew(page, "#write&prompt=And&steps=4&length=16")  # and it still writes


def test_memory_stays_flat(page):
    put(page, "#write [name=length]", 16)
    put(page, "#write [name=steps]", 4)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")

    def used_after(n):
        for _ in range(n):
            click(page, "#new-seed", "Written")
        page.request_gc()
        metrics = session.send("Performance.getMetrics")["metrics"]
        return [m["value"] for m in metrics if m["name"] in ("JSHeapUsedSize", "Nodes")]

    (nodes, heap), (nodes_then, heap_then) = used_after(5), used_after(20)
    assert heap_then < heap + 250_000 and nodes_then < nodes + 100


# -- serving it


def test_what_a_static_host_needs(tmp_path, monkeypatch):
    """All that the page loads is in the folder, and a first visit loads at most 12 MB."""
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    publish.main(["--build", str(tmp_path / "site")])
    files = {p.name: p.stat().st_size for p in (tmp_path / "site").iterdir()}
    named = set()
    for path in (tmp_path / "site").glob("*.[hjc]*"):
        text = path.read_text(encoding="utf-8")
        named |= set(re.findall(r'["(](?:\./|\.\./)?([\w.-]+\.(?:js|css|svg|md|wasm))\b', text))
        named |= set(re.findall(r"[\w-]+\.safetensors", text))
        assert not re.search(r"https?://(?!www\.w3\.org)", text)  # nothing from other hosts
    assert named - {"mdlm.safetensors"} <= set(files)
    later = ("kjv-twin.safetensors", "sudoku.safetensors", "learning_guide.md", "kernel.wat")
    assert sum(size for name, size in files.items() if name not in later) < 12e6
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/something")
    publish.build(tmp_path / "site")
    index = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "https://github.com/someone/something/blob/main/learning_guide.md#5-the-bound" in index


def test_only_the_page_is_served_and_only_here(address):
    assert address.startswith("http://127.0.0.1:")
    for path in ("README.md", "page/index.html", "../README.md", "checkpoints/", "%2e%2e/run.py"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address + path)


def test_the_pages_code_is_short():
    """At most 1,800 lines of JavaScript and shaders, not counting comments and empty lines."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "page").glob("*.js")]
    lines = [line for text in texts for line in text.splitlines()]
    assert max(map(len, lines)) <= 100
    assert len([line for line in lines if re.match(r" *(?!//|/\*|\* )\S", line)]) <= 1800
