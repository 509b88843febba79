"""The model in a page: what its JavaScript calculates is what Python calculates."""

import base64
import contextlib
import itertools
import math
import random
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

import mdlm.sampling
import publish
from bpe_tokenizer import BPETokenizer
from conftest import make_model
from corpus import load_text, split_text
from mdlm.diffusion import nelbo, spread_mask_counts
from mdlm.model import DiffusionTransformer
from mdlm.twin import sample_twin
from saving import load_checkpoint, save_checkpoint
from tests import chromium
from toy import MASK, exact_nelbo, exact_nelbo_in_steps
from visual.colors import THEMES, probability_color, viridis

ROOT = Path(__file__).parent.parent
INCLUDED = ROOT / "checkpoints" / "kjv.safetensors"


@pytest.fixture(scope="module")
def address():
    """Where the page is served."""
    with publish.server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if chromium.find() is None:
        pytest.skip("no Chromium here")
    with chromium.chromium(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def tab(browser, address):
    """A tab in which the page's modules can be imported, and nothing else goes on."""
    tab = browser()
    tab.open(address + "kernel.wat")
    tab.run("""
        globalThis.page = {
            ...await import("/model.js"), ...await import("/sampling.js"),
            ...await import("/tokenizer.js"), ...await import("/webgpu.js"),
        };
        page.wasm = new Uint8Array(await (await fetch("/kernel.wasm")).arrayBuffer());
        page.bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt());
        page.text = (array) => {
            const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
            let text = "";
            for (let i = 0; i < bytes.length; i += 30000)
                text += String.fromCharCode(...bytes.subarray(i, i + 30000));
            return btoa(text);
        };
        page.last = async (states) => {
            let last;
            for await (last of states);
            return last;
        };
    """)
    return tab


@pytest.fixture(scope="module")
def included(tab):
    """The included model in Python; in the page it is `page.model`, its tokenizer page.tokens."""
    tab.run("""
        page.file = new Uint8Array(await (await fetch("/kjv.safetensors")).arrayBuffer());
        page.model = await page.DiffusionTransformer.load(page.file, page.wasm);
        page.tokens = new page.Tokenizer(page.model.header.tokenizer);
    """)
    model, tokenizer, _ = load_checkpoint(INCLUDED, DiffusionTransformer, "cpu")
    return model, tokenizer


@pytest.fixture(scope="module", params=["null", "page.device"], ids=["WebAssembly", "WebGPU"])
def device(request, tab):
    """What stands for the graphics card in the page: none, or one that the CPU plays."""
    if request.param == "page.device":
        tab.run("page.device ??= await page.openDevice(true)")
        if not tab.run("return Boolean(page.device)"):
            pytest.skip("this Chromium has no WebGPU")
    return request.param


on_webgpu = pytest.mark.parametrize("device", ["page.device"], indirect=True, ids=["WebGPU"])


@pytest.fixture
def float32(monkeypatch):
    """No bfloat16, whatever this CPU has."""
    for module in ("mdlm.sampling", "mdlm.twin"):
        monkeypatch.setattr(f"{module}.autocast", lambda device: contextlib.nullcontext())


def load_tiny(tab, tmp_path, wasm="page.wasm", device="null", **changes):
    """A tiny network, as `page.tiny` in the page, too."""
    model = make_model(**changes)
    tokenizer = BPETokenizer.train("the end of the beginning, " * 20, model.config.vocab_size)
    model = make_model(**{**changes, "vocab_size": tokenizer.vocab_size})
    save_checkpoint(tmp_path / "tiny.safetensors", model, tokenizer, {})
    data = base64.b64encode((tmp_path / "tiny.safetensors").read_bytes()).decode()
    tab.run(
        f"page.tiny = await page.DiffusionTransformer.load(page.bytes(data), {wasm}, {device});",
        data=data,
    )
    return model


def logits_in_page(tab, name, z, t=0.0):
    """Logits of all places of a text z (L,), from the page: float32 (L, V - 1)."""
    text = tab.run(
        "const model = page[name], V = model.maskId;"
        "const rows = await model.predict(z, z.map((_, l) => l), t);"
        "const all = new Float32Array(rows.length * V);"
        "rows.forEach((row, l) => all.set(row, l * V)); return page.text(all);",
        name=name, z=z.tolist(), t=t,
    )  # fmt: skip
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float32).view(len(z), -1)


@torch.no_grad()
def logits_here(model, z, t=0.0):
    return model.head(model.features(z[None], torch.tensor([t])))[0]


def some_masked_text(model, length, share, seed):
    noise = torch.Generator().manual_seed(seed)
    z = torch.randint(model.mask_id, (length,), generator=noise)
    z[torch.rand(length, generator=noise) < share] = model.mask_id
    return z


# -- the network


@pytest.mark.parametrize("seed", range(10))
def test_logits_are_pytorchs(tab, included, device, seed):
    model, _ = included
    name = {"null": "model", "page.device": "played"}[device]
    if name == "played":
        tab.run(
            "page.played ??= await page.DiffusionTransformer.load("
            "page.file, page.wasm, page.device)"
        )
        assert tab.run("return page.played.arithmetic") == "WebGPU"
    length, share = [1, 17, model.config.context, 5, 96][seed % 5], [0.3, 1.0][seed // 5]
    z = some_masked_text(model, length, share, seed)
    difference = (logits_in_page(tab, name, z) - logits_here(model, z)).abs().max().item()
    assert difference < 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(time_conditioning=True),
        dict(qk_norm=False, n_heads=1, n_layers=3),
        dict(causal=True),
        dict(d_model=48, n_heads=3, context=23),
    ],
    ids=str,
)
def test_other_networks_can_be_opened(tab, tmp_path, device, changes):
    model = load_tiny(tab, tmp_path, device=device, **changes)
    special = changes.keys() & {"causal", "time_conditioning"}  # no program for the card
    on_card = device == "page.device" and not special
    assert (tab.run("return page.tiny.arithmetic") == "WebGPU") == on_card
    for length in (1, 7, model.config.context):
        z = some_masked_text(model, length, 0.5, 1)
        difference = logits_in_page(tab, "tiny", z, 0.3) - logits_here(model, z, 0.3)
        assert difference.abs().max() < 1e-4


def test_several_parts_of_the_page_may_ask_at_once(tab, tmp_path, device):
    model = load_tiny(tab, tmp_path, device=device)
    texts = [some_masked_text(model, length, 0.5, length) for length in (9, 16, 2)]
    found = tab.run(
        "const rows = await Promise.all(texts.map((z) => page.tiny.predict(z, [1, 0])));"
        "return rows.map((two) => two.map((row) => [...row]))",
        texts=[z.tolist() for z in texts],
    )
    for z, rows in zip(texts, found, strict=True):
        assert (torch.tensor(rows) - logits_here(model, z)[[1, 0]]).abs().max() < 1e-4


def test_plain_javascript_gives_the_same_bits(tab, tmp_path):
    """So a seed gives the same text with WebAssembly and without."""
    model = load_tiny(tab, tmp_path)
    z = some_masked_text(model, 13, 0.5, 1)
    fast = logits_in_page(tab, "tiny", z)
    assert tab.run("return page.tiny.arithmetic") == "WebAssembly with SIMD"
    load_tiny(tab, tmp_path, wasm="null")
    assert tab.run("return page.tiny.arithmetic") == "plain JavaScript"
    assert torch.equal(logits_in_page(tab, "tiny", z), fast)


@on_webgpu
def test_a_graphics_card_that_the_cpu_plays_is_not_used(tab, device):
    assert tab.run("return await page.openDevice()") is None


@on_webgpu
@pytest.mark.parametrize(
    "program, arithmetic",
    [
        ("value / sum", "WebGPU"),  # as it is
        ("value", "WebAssembly with SIMD"),  # wrong numbers
        ("value / sums", "WebAssembly with SIMD"),  # refused by the compiler
    ],
)
def test_a_graphics_card_that_is_wrong_is_not_used(tab, tmp_path, device, program, arithmetic):
    tab.run(
        "page.other = await page.openDevice(true);"
        "const compile = page.other.createShaderModule.bind(page.other);"
        "page.other.createShaderModule = ({ code }) =>"
        "    compile({ code: code.replace('value / sum', program) });",
        program=program,
    )
    model = load_tiny(tab, tmp_path, device="page.other")
    assert tab.run("return page.tiny.arithmetic") == arithmetic
    z = some_masked_text(model, 9, 0.5, 1)
    assert (logits_in_page(tab, "tiny", z) - logits_here(model, z)).abs().max() < 1e-4


@on_webgpu
def test_a_graphics_card_can_be_lost(tab, tmp_path, device):
    """While it calculates, and before: the answer is right all the same."""
    model = load_tiny(tab, tmp_path, device="await page.openDevice(true)")
    assert tab.run("return page.tiny.arithmetic") == "WebGPU"
    z = some_masked_text(model, 9, 0.5, 1)
    row = tab.run(
        "const asked = page.tiny.predict(z, [0]); page.tiny.onDevice.device.destroy();"
        "return [...(await asked)[0]]",
        z=z.tolist(),
    )
    assert (torch.tensor(row) - logits_here(model, z)[0]).abs().max() < 1e-4
    assert (logits_in_page(tab, "tiny", z) - logits_here(model, z)).abs().max() < 1e-4
    assert tab.run("return page.tiny.arithmetic") == "WebAssembly with SIMD"


def test_the_kernel_is_what_its_source_says():
    wasmtime = pytest.importorskip("wasmtime")
    source = (ROOT / "page" / "kernel.wat").read_text(encoding="utf-8")
    assert wasmtime.wat2wasm(source) == (ROOT / "page" / "kernel.wasm").read_bytes()


# -- the file


@pytest.mark.parametrize("damage", ["flipped", "short", "header", "other network", "empty"])
def test_what_is_no_checkpoint_is_refused_in_one_sentence(tab, tmp_path, damage):
    model = make_model()
    tokenizer = BPETokenizer.train("the end of the beginning, " * 20, model.config.vocab_size)
    model = make_model(vocab_size=tokenizer.vocab_size)
    path = tmp_path / "model.safetensors"
    if damage == "other network":
        model.blocks[0].norm1.forward = lambda x: x  # the same weights, used otherwise
    save_checkpoint(path, model, tokenizer, {"é": "ü\x7f"})
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[-100] ^= 1
    if damage == "short":
        del data[-100:]
    if damage == "header":
        data[5] = 9
    if damage == "empty":
        data = b""
    with pytest.raises(RuntimeError, match=r"damaged|another network"):
        tab.run(
            "await page.DiffusionTransformer.load(page.bytes(data), page.wasm)",
            data=base64.b64encode(data).decode(),
        )


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


def test_the_tokenizer_is_pythons(tab, included):
    """On 200 texts: scripts, emoji, line ends, half characters, the letters of the mask."""
    _, tokenizer = included
    choose = random.Random(1)
    texts = [*PIECES, *("".join(choose.choices(PIECES, k=6)) for _ in range(200 - len(PIECES)))]
    found = tab.run(
        "return texts.map((text) => { const ids = page.tokens.encode(text);"
        "return [ids, page.tokens.decode(ids)]; })",
        texts=texts,
    )
    assert found == [[ids := tokenizer.encode(text), tokenizer.decode(ids)] for text in texts]
    # and what is not valid UTF-8
    several = [choose.choices(range(tokenizer.vocab_size), k=9) for _ in range(100)]
    decoded = tab.run("return texts.map((ids) => page.tokens.decode(ids))", texts=several)
    assert decoded == [tokenizer.decode(ids) for ids in several]


# -- sampling


def test_random_numbers_are_pytorchs(tab):
    for seed in (0, 1, 2**32 - 1, 2**40 + 5):
        expected = torch.rand(
            700, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        ).tolist()
        code = "const u = page.generator(seed); return Array.from({length: 700}, u)"
        assert tab.run(code, seed=seed) == expected


SAMPLERS = {
    "ancestral": mdlm.sampling.sample,
    "first-hitting": mdlm.sampling.sample_first_hitting,
    "confident": mdlm.sampling.sample_confident,
    "remask": mdlm.sampling.sample_remask,
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps, more", [(1, {}), (7, {}), (40, dict(temperature=0.7, top_p=0.8))])
def test_a_seed_gives_pythons_text(tab, tmp_path, float32, sampler, steps, more):
    model = load_tiny(tab, tmp_path)
    for seed in range(4):
        z = torch.full((1, 16), model.mask_id)
        z[0, 3:6] = torch.tensor([5, 6, 7])
        expected = SAMPLERS[sampler](model, z, steps, torch.Generator().manual_seed(seed), **more)
        found = tab.run(
            "const end = await page.last(page.sample(page.tiny, z, options));"
            "return [[...end.z], [...end.when], [...end.probability], end.calls]",
            z=z[0].tolist(),
            options=dict(
                sampler=sampler, steps=steps, seed=seed,
                temperature=more.get("temperature", 1), topP=more.get("top_p", 1),
            ),
        )  # fmt: skip
        assert found[0] == expected.tokens[0].tolist()
        assert found[1] == expected.step[0].tolist()
        assert np.allclose(found[2], expected.probability[0], atol=1e-5)
        assert found[3] == expected.network_calls


def test_the_included_model_writes_pythons_text(tab, included, float32):
    model, tokenizer = included
    z = mdlm.sampling.template(tokenizer, ["And God said"], 96)
    expected = mdlm.sampling.sample(model, z, 24, torch.Generator().manual_seed(7))
    found = tab.run(
        "return [...(await page.last(page.sample(page.model, z, { steps: 24, seed: 7 }))).z]",
        z=z[0].tolist(),
    )
    assert found == expected.tokens[0].tolist()


def test_the_twin_writes_pythons_text(tab, tmp_path, float32):
    model = load_tiny(tab, tmp_path, causal=True, n_layers=2)
    z = torch.full((1, 16), model.mask_id)
    z[0, :3] = torch.tensor([5, 6, 7])
    expected = sample_twin(model, z, torch.Generator().manual_seed(3))
    found = tab.run(
        "return [...(await page.last(page.sampleTwin(page.tiny, z, { seed: 3 }))).z]",
        z=z[0].tolist(),
    )
    assert found == expected.tokens[0].tolist()


def test_draws_follow_the_distribution(tab):
    """Chi-square of 10,000 draws from a distribution with a thin tail."""
    p = [0.5, 0.25, 0.125, 0.1, 0.02, 0.005, 0.0]
    counts = tab.run(
        "const u = page.generator(1), n = p.map(() => 0);"
        "for (let i = 0; i < 10000; i++) n[page.draw(Float64Array.from(p), u())]++;"
        "return n",
        p=p,
    )
    expected = [10_000 * q for q in p]
    chi_square = sum((n - e) ** 2 / e for n, e in zip(counts, expected, strict=True) if e)
    assert chi_square < 15.1 and counts[-1] == 0  # 1 % of all seeds are above


# -- the bound


def test_one_sample_of_the_bound_is_pythons(tab, included):
    model, tokenizer = included
    x = torch.tensor([tokenizer.encode("In the beginning God created the heaven and the earth.")])
    for k in (1, 5, x.shape[1]):
        with torch.no_grad():
            expected = nelbo(model, x, torch.tensor([k]), torch.Generator().manual_seed(k)).item()
        code = "return (await page.nelbo(page.model, x, k, page.generator(k))).nats"
        assert math.isclose(tab.run(code, x=x[0].tolist(), k=k), expected, rel_tol=1e-4)


def test_the_bound_of_a_validation_page_is_pythons(live, included, tmp_path):
    """Within the errors that both report. 256 tokens that the model has not been trained on."""
    model, tokenizer = included
    _, text, _ = split_text(load_text("kjv", tmp_path))
    x = tokenizer.encode(text[:5000])[: model.config.context]
    found = live.run(
        "const { oneAtATime } = await import(location.origin + '/client.js'); let last;"
        "await oneAtATime()('bound', { windows: [x], seed: 1, most: 32 }, (s) => last = s);"
        "return last",
        x=x,
    )
    x = torch.tensor([x] * 32)
    k = spread_mask_counts(*x.shape, torch.Generator().manual_seed(0))
    with torch.no_grad():
        nats = nelbo(model, x, k, torch.Generator().manual_seed(2))
    error = nats[k.argsort()].diff().pow(2).mean().div(2 * len(nats)).sqrt().item()
    assert abs(found["nats"] - nats.mean().item()) < 4 * math.hypot(error, found["error"])
    assert 0.3 < found["error"] / error < 3
    assert len(found["each"]) == model.config.context


# -- the page itself


@pytest.fixture(scope="module")
def live(browser, address):
    """The page, after it has written its first text."""
    tab = browser()
    tab.size(1000, 900)
    tab.open(address + "#write&prompt=And+God+said&steps=6&length=24", WRITTEN)
    return tab


@pytest.fixture(autouse=True)
def nothing_goes_wrong(request):
    """No uncaught error and no refused resource, in any test of the page."""
    yield
    if "live" in request.fixturenames:
        tab = request.getfixturevalue("live")
        tab.send("Runtime.evaluate", expression="1")  # what has gone wrong has been told by now
        troubles, tab.troubles = tab.troubles, []
        assert troubles == []


WRITTEN = "document.querySelector('#live').textContent.startsWith('Written')"


def text_of(tab, selector):
    return tab.run("return document.querySelector(selector).textContent", selector=selector)


def click(tab, selector, then=None):
    """Click on something, and wait until the live region begins with `then`."""
    tab.run(
        "document.querySelector('#live').textContent = '';"
        "const e = document.querySelector(selector);"
        "e.dispatchEvent(new MouseEvent('click', { bubbles: true }));",
        selector=selector,
    )
    if then:
        tab.wait(f"document.querySelector('#live').textContent.startsWith({then!r})")


def put(tab, selector, value, event="input"):
    """Put a value into a field, as a hand would."""
    tab.run(
        "const e = document.querySelector(selector);"
        "e.value = value; e.dispatchEvent(new Event(event, { bubbles: true }));",
        selector=selector, value=value, event=event,
    )  # fmt: skip


def test_it_says_what_it_calculates_with(live):
    assert "calculated in WebAssembly with SIMD" in text_of(live, "#status")


def test_an_address_gives_pythons_text(live, included, float32):
    """What one reader shares, another sees: here, and in Python."""
    model, tokenizer = included
    live.run(
        "history.replaceState(null, '', '#write&prompt=The+LORD_said&seed=4294967294&steps=12"
        "&length=40&temperature=0.8&topP=0.9&sampler=remask'); location.reload();"
    )
    live.wait(WRITTEN)
    z = mdlm.sampling.template(tokenizer, ["The LORD", 1, "said"], 40)
    noise = torch.Generator().manual_seed(4294967294)
    expected = mdlm.sampling.sample_remask(model, z, 12, noise, temperature=0.8, top_p=0.9)
    text = tokenizer.decode(expected.tokens[0].tolist())
    assert text_of(live, "#live") == f"Written: {text}"
    assert "seed=4294967294" in live.run("return location.hash")
    assert text_of(live, "#write .text") == text


def test_back_and_forth_mask_again_type_and_fill(live):
    put(live, "#write [name=prompt]", "And God said")
    put(live, "#write [name=length]", 24)
    put(live, "#write [name=sampler]", "ancestral")
    click(live, "#write .main", "Written")
    before = text_of(live, "#write .text")
    press = "for (let i = 0; i < 99; i++) document.querySelector(button).click()"
    live.run(press, button="#back")
    assert text_of(live, "#write .facts") == "0 network calls, 21 masked"
    live.run(press, button="#forth")
    assert text_of(live, "#write .text") == before
    for view in ("order", "prediction", "text"):
        click(live, f"[value={view}]")
    click(live, "#play")
    assert text_of(live, "#play") == "Pause"
    live.run(press, button="#forth")
    assert text_of(live, "#play") == "Play"
    click(live, "#write .token:nth-of-type(20)", "Masked")
    assert text_of(live, "#write .facts") == "0 network calls, 1 masked"
    click(live, "#write .mask")
    put(live, "#typing input", "<b>heaven</b>")
    click(live, "#typing button")
    assert "<b>heaven</b>" in text_of(live, "#write .text")  # letters, no element
    assert live.run("return document.querySelector('#write b')") is None
    click(live, "#write .token:nth-of-type(5)", "Masked")
    click(live, "#fill", "Written")
    assert "<b>heaven</b>" in text_of(live, "#write .text")


def test_what_the_model_expects_at_a_mask(live, included):
    """Ten tokens with their probabilities, those of PyTorch."""
    model, tokenizer = included
    put(live, "#write [name=prompt]", "In the beginning God_the heaven and the earth.")
    put(live, "#write [name=length]", 12)
    click(live, "#write .main", "Written")
    live.run("document.querySelector('#timeline').valueAsNumber = 0")
    put(live, "#timeline", 0)
    live.run(
        "document.querySelector('#write .mask').dispatchEvent("
        "new PointerEvent('pointerover', { bubbles: true }))"
    )
    live.wait("document.querySelectorAll('#card p').length === 10")
    z = mdlm.sampling.template(
        tokenizer, ["In the beginning God", 1, "the heaven and the earth."], 12
    )
    with torch.no_grad():
        place = (z[0] == model.mask_id).nonzero()[0, 0]
        best = model(z)[0, place].exp().topk(10)
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    expected = [f"“{tokenizer.decode([i])}”{p:.1%}".replace("%", " %") for i, p in rows]
    shown = live.run("return [...document.querySelectorAll('#card p')].map((p) => p.textContent)")
    assert shown == expected


def test_it_works_by_keyboard_alone(live):
    live.run("document.querySelector('#write [name=prompt]').focus()")
    live.run("document.querySelector('#live').textContent = ''")
    live.key("Enter", "\r")
    live.wait(WRITTEN)
    focused = "return document.activeElement.closest('.text') !== null"
    for _ in range(20):
        live.key("Tab")
        if live.run(focused):
            break
    assert live.run(focused)
    live.key("Home")
    live.key("ArrowRight")
    live.key("ArrowRight")
    assert live.run("return [...document.querySelectorAll('#write .token')].indexOf("
                    "document.activeElement)") == 2  # fmt: skip
    live.key("Enter", "\r")
    assert "mask" in live.run("return document.activeElement.className")
    live.key("Enter", "\r")
    live.send("Input.insertText", text="Moses")
    live.key("Enter", "\r")
    assert "Moses" in text_of(live, "#write .text")
    live.key("Enter", "\r")  # masked again
    live.key("Enter", "\r")
    live.key("Escape")
    assert live.run("return document.querySelector('#typing').hidden")


def test_words_fall_as_their_moments_pass(live):
    put(live, "#destroy [name=sentence]", "And the children of Israel did evil.")
    counts = []
    for t in (0, 0.3, 0.6, 1):
        put(live, "#destroy [name=t]", t)
        counts.append(live.run("return document.querySelectorAll('#destroy .mask').length"))
        assert text_of(live, "#destroy .facts").startswith(f"{counts[-1]} of 8 tokens are masked")
    assert counts[0] == 0 and counts[-1] == 8 and counts == sorted(counts)
    put(live, "#destroy [name=t]", 1, "change")
    live.wait("document.querySelector('#live').textContent.startsWith('Written again')")
    assert live.run("return document.querySelectorAll('#destroy .mask').length") == 0
    click(live, "#other-moments")


@pytest.mark.slow
def test_words_that_do_not_know_of_each_other_surprise(live):
    """The same seed with 1 call, and with 96: the model's own bound on the result."""
    click(live, "#many .main", "1 call:")
    figures = re.findall(r"surprise: ([\d.]+) ± [\d.]+ bits", text_of(live, "#live"))
    assert len(figures) == 4 and float(figures[0]) > 1.2 * float(figures[3])


def test_how_surprised_it_is(live):
    put(live, "#surprise textarea", "And it came to pass in those days.")
    click(live, "#surprise .main", "At most")
    bound = float(text_of(live, "#bound").split()[0])
    assert 0.2 < bound < 2 and 6 < float(text_of(live, "#gzip")) < 16
    assert live.run("return document.querySelectorAll('#surprise .token').length") == 9
    click(live, "#shuffle", "At most")
    assert float(text_of(live, "#bound").split()[0]) > 1.3 * bound
    put(live, "#surprise textarea", "")
    click(live, "#surprise .main")
    live.wait("!document.querySelector('#problem').hidden")
    assert text_of(live, "#problem").startswith("There is no text")


def test_the_cube_is_exact(live, included):
    """Its bounds are those of toy.py, with the network's own probabilities."""
    model, tokenizer = included
    sentence = "And [Saul] said unto [Samuel], I have [sinned]."
    put(live, "#cube [name=sentence]", sentence)
    x = torch.tensor(tokenizer.encode(re.sub(r"[\[\]]", "", sentence)))
    three = {tokenizer.encode(f" {word}")[0] for word in re.findall(r"\[(\w+)\]", sentence)}
    places = [i for i, token in enumerate(x.tolist()) if token in three]
    table = {}
    for state in itertools.product((False, True), repeat=3):
        z = x.clone()
        for place, masked in zip(places, state, strict=True):
            z[place] = model.mask_id if masked else z[place]
        with torch.no_grad():
            log_p = model(z[None])[0]
        key = tuple(MASK if masked else i for i, masked in enumerate(state))
        table[key] = torch.stack([log_p[p, x[places]] for p in places])

    class Three:  # token i of three stands for word i
        pass

    Three.table = table
    live.wait("document.querySelector('#given-0 + span').textContent === 'Saul'")
    live.wait("document.querySelector('#cube .facts').textContent.includes('T = 1')")
    for log, steps in ((0, 1), (2, 4), (8, 256)):
        put(live, "#cube [name=log]", log)
        numbers = re.findall(r"([\d.]+) bits", text_of(live, "#cube .facts"))
        exact = exact_nelbo(Three, (0, 1, 2)) / math.log(2)
        in_steps = exact_nelbo_in_steps(Three, (0, 1, 2), steps) / math.log(2)
        assert numbers == ["0.0", f"{exact:.1f}", f"{in_steps:.1f}"]
    assert live.run("return document.querySelectorAll('#walks li').length") == 6
    click(live, "#walks button")
    assert live.run("return document.querySelectorAll('.edge.walked').length") == 3
    live.run("document.querySelector('#given-1').click()")  # a prompt: a face of the cube
    assert live.run("return document.querySelectorAll('#walks li').length") == 2
    corners = "document.querySelectorAll('#cube-picture [role=button]')"
    live.run(f"{corners}[1].dispatchEvent(new MouseEvent('click'))")  # 0 is the top, a leap
    assert live.run("return document.querySelectorAll('.edge.walked').length") == 1
    assert live.run(f"return {corners}.length") == 2  # on to the top, or back to the beginning
    put(live, "#cube [name=sentence]", "no brackets")
    assert text_of(live, "#cube .facts").startswith("Put three words")


def test_the_race(live, included, float32):
    """The twin is loaded when asked for, and writes what it writes in Python."""
    _, tokenizer = included
    twin, _, _ = load_checkpoint(
        INCLUDED.with_name("kjv-twin.safetensors"), DiffusionTransformer, "cpu"
    )
    put(live, "#race [name=seed]", 3)
    click(live, "#race .main", "diffusion")
    z = mdlm.sampling.template(tokenizer, ["And God said"], 96)
    expected = sample_twin(twin, z, torch.Generator().manual_seed(3)).tokens[0].tolist()
    shown = live.run("return document.querySelectorAll('#race .text')[1].textContent")
    assert shown == tokenizer.decode(expected)
    assert "96 calls" in text_of(live, "#live")


def test_sudoku(live):
    """A puzzle is made and solved; the small digits are what PyTorch's network expects."""
    sudoku = INCLUDED.with_name("sudoku.safetensors")
    model, _, _ = load_checkpoint(sudoku, DiffusionTransformer, "cpu")
    cells = "[...document.querySelectorAll('#sudoku .grid button')]"
    click(live, "#puzzle")
    live.wait(f"{cells}.filter((c) => c.matches('.given')).length === 10")
    live.wait(f"{cells}.some((c) => c.querySelector('i'))")
    shown, marks = live.run(
        "const share = (mark) => Number(mark.style.getPropertyValue('--share'));"
        f"return [{cells}.map((c) => c.matches('.given') ? c.textContent : ''),"
        f"{cells}.map((c) => [...c.children].map(share))]"
    )
    z = torch.tensor([[ord(digit) if digit else model.mask_id for digit in shown]])
    with torch.no_grad():
        p = model(z).exp()[0, :, ord("1") : ord("7")]
    for digit, mark, expected in zip(shown, marks, p.tolist(), strict=True):
        assert mark == ([] if digit else pytest.approx(expected, abs=1e-4))
    click(live, "#sudoku .main", "Every rule is kept.")
    written = live.run(f"return {cells}.map((c) => c.textContent)")
    assert all(digit in ("", new) for digit, new in zip(shown, written, strict=True))
    grid = np.array(written).reshape(6, 6)
    boxes = grid.reshape(3, 2, 2, 3).swapaxes(1, 2).reshape(6, 6)
    assert all(sorted(unit) == list("123456") for unit in [*grid, *grid.T, *boxes])
    click(live, "#clear")
    live.run(f"{cells}[0].focus()")
    for key in ("3", "ArrowDown", "3"):
        live.key(key, key if key == "3" else "")
    assert text_of(live, "#sudoku .facts") == "No grid has that: two 3s in one column."
    assert live.run("return document.querySelectorAll('#sudoku .wrong').length") == 2


def test_a_file_of_ones_own(live, tmp_path):
    """A damaged one is refused in a sentence, and the page goes on; a good one is used."""
    model = make_model()
    tokenizer = BPETokenizer.train("the end of the beginning, " * 20, model.config.vocab_size)
    model = make_model(vocab_size=tokenizer.vocab_size)
    save_checkpoint(tmp_path / "tiny.safetensors", model, tokenizer, {})
    data = (tmp_path / "tiny.safetensors").read_bytes()
    put(live, "#write [name=prompt]", "the")
    drop = """
        const files = new DataTransfer();
        files.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt())], "mine"));
        dispatchEvent(new DragEvent("drop", { dataTransfer: files, cancelable: true }));
    """
    live.run(drop, data=base64.b64encode(data[:-9]).decode())
    live.wait("document.querySelector('#problem').textContent.includes('damaged')")
    click(live, "#write .main", "Written")
    assert text_of(live, "#problem") == ""
    live.run("document.querySelector('#live').textContent = ''")
    live.run(drop, data=base64.b64encode(data).decode())
    live.wait(WRITTEN)
    assert text_of(live, "#status").startswith("0.0 million parameters")
    assert live.run("return document.querySelector('[name=length]').max") == "16"
    live.run("history.replaceState(null, '', '#write&steps=6&length=24'); location.reload()")
    live.wait(f"document.body.classList.contains('ready') && {WRITTEN}")


def open_with(browser, file, name, until):
    """The page from a host on which another file has this name, or, with None, none; a tab."""

    class Handler(publish.Handler):
        def translate_path(self, path):
            return str(file) if path == f"/{name}" else super().translate_path(path)

    with publish.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tab = browser()
        tab.open(f"http://127.0.0.1:{server.server_port}/#write&steps=2&length=4", until)
        server.shutdown()
    return tab


@pytest.mark.parametrize(
    "missing, sentence",
    [
        ("kjv.safetensors", "kjv.safetensors is not there (404)."),
        (
            "worker.js",
            "A part of the page is missing, or this browser is too old: reload it.",
        ),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_sentence(browser, missing, sentence):
    tab = open_with(browser, None, missing, "!document.querySelector('#problem').hidden")
    assert text_of(tab, "#problem") == sentence
    assert text_of(tab, "#status") == "No model is loaded."


def test_without_webassembly_it_calculates_in_javascript(browser):
    tab = open_with(browser, None, "kernel.wasm", WRITTEN)
    assert "calculated in plain JavaScript" in text_of(tab, "#status")


@on_webgpu
def test_with_webgpu_it_says_so_until_the_card_is_lost(browser, device, tmp_path):
    """Here a card is taken that the CPU plays, and taken away after two calls, one the check's."""
    code = (ROOT / "page" / "webgpu.js").read_text(encoding="utf-8")
    for old, new in {
        "played && !software": "false",
        "answer.destroy();": "if ((globalThis.calls = (globalThis.calls ?? 0) + 1) === 2)"
        " device.destroy();",
    }.items():
        assert old in code
        code = code.replace(old, new)
    (tmp_path / "webgpu.js").write_text(code, encoding="utf-8")
    said = "document.querySelector('#arithmetic')?.textContent === 'WebGPU'"
    tab = open_with(browser, tmp_path / "webgpu.js", "webgpu.js", said)
    tab.wait(WRITTEN)
    assert "calculated in WebAssembly with SIMD" in text_of(tab, "#status")


def test_no_script_but_its_own_can_run(browser, address):
    tab = browser()
    tab.open(address)
    tab.run(
        "const s = document.createElement('script'); s.textContent = 'globalThis.foreign = 1';"
        "document.body.append(s);"
    )
    assert tab.run("return globalThis.foreign ?? 0") == 0
    with pytest.raises(RuntimeError):
        tab.run("await fetch('https://example.org/')")
    assert any("Content Security Policy" in trouble for trouble in tab.troubles)


CONTRASTS = """
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const probe = document.body.appendChild(document.createElement("i"));
    const luminance = (color) => {
        probe.style.color = ""; probe.style.color = color;
        canvas.fillStyle = getComputedStyle(probe).color;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((c) =>
            c > 10 ? ((c / 255 + 0.055) / 1.055) ** 2.4 : c / 255 / 12.92);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const contrast = (one, other) => {
        const [a, b] = [luminance(one), luminance(other)].sort((a, b) => b - a);
        return (a + 0.05) / (b + 0.05);
    };
    const colors = await import(location.origin + "/colors.js");
    const pairs = [];
    for (const paper of ["--page", "--card"])
        for (const ink of ["--ink", "--faint", "--accent"])
            pairs.push([`var(${ink})`, `var(${paper})`]);
    pairs.push(["var(--page)", "var(--ink)"]);
    pairs.push(["var(--ink)", "color-mix(in srgb, var(--accent) 45%, var(--page))"]);
    for (let p = 0; p <= 1; p += 0.02) {
        pairs.push([colors.probabilityColor(p), "var(--page)"]);
        pairs.push([colors.certaintyColor(p), "var(--mask)"]);
        pairs.push([colors.orderColors(p).ink, colors.orderColors(p).paper]);
    }
    const low = pairs.map(([a, b]) => [a, b, contrast(a, b)]).filter(([, , c]) => c < 4.5);
    probe.remove();
    return low;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read(live, scheme):
    live.size(1000, 900, prefers_color_scheme=scheme)
    assert live.run(CONTRASTS) == []


def test_the_colors_are_the_windows(live):
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
        found, both = live.run(code, k=k)
        numbers = [int(n) for n in re.findall(r"\d+", both)]
        assert np.abs(np.subtract(found, viridis(k))).max() <= 1
        assert np.abs(np.subtract(numbers, [*light, *dark])).max() <= 1


def test_every_control_has_a_name(live):
    """What a screen reader says of it."""
    roles = {"button", "textbox", "slider", "spinbutton", "radio", "checkbox", "combobox", "link"}
    live.send("Accessibility.enable")
    nodes = live.send("Accessibility.getFullAXTree")["nodes"]
    controls = [n for n in nodes if not n["ignored"] and n["role"].get("value") in roles]
    assert len(controls) > 60
    assert [n["role"] for n in controls if not n.get("name", {}).get("value", "").strip()] == []


def test_it_fits_a_telephone_and_keeps_still_if_asked_to(live):
    live.size(360, 740, prefers_reduced_motion="reduce")
    assert live.run("return document.documentElement.scrollWidth") <= 360
    put(live, "#destroy [name=t]", 0.9)
    assert live.run("return document.getAnimations().length") == 0
    live.size(1000, 900)


RANDOM_INPUTS = """
    let state = 1;
    const random = (n) => (state = (state * 48271) % 2147483647) % n;
    const pick = (list) => list[random(list.length)];
    const texts = ["", "_", "\\\\_", "a _ b", "[x] [y] [z]", "[the] [the] [the]", "[", "]]",
        "\\ud800", "\\u0000", "👩‍👩‍👧", "สวัสดี", "<img src=x onerror=alert(1)>", "<|mask|>", " ",
        "\\n", "-1", "1e99", "NaN", "a".repeat(3000), "_".repeat(300), "The LORD said unto Moses"];
    for (let i = 0; i < most; i++) {
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
"""


@pytest.mark.parametrize("most", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_random_inputs(live, most):
    live.run(RANDOM_INPUTS, most=most)
    live.run("await new Promise((resolve) => setTimeout(resolve, 500))")
    assert live.run("return document.querySelector('img, b')") is None
    live.run(
        "history.replaceState(null, '', '#write&prompt=And&steps=4&length=16');location.reload()"
    )
    live.wait(f"document.body.classList.contains('ready') && {WRITTEN}")  # and it still writes


def test_memory_stays_flat(live):
    put(live, "#write [name=length]", 16)
    put(live, "#write [name=steps]", 4)

    def used():
        live.send("HeapProfiler.collectGarbage")
        metrics = {m["name"]: m["value"] for m in live.send("Performance.getMetrics")["metrics"]}
        return metrics["JSHeapUsedSize"], metrics["Nodes"]

    for _ in range(5):
        click(live, "#new-seed", "Written")
    heap, nodes = used()
    for _ in range(50):
        click(live, "#new-seed", "Written")
    heap_then, nodes_then = used()
    assert heap_then < heap + 500_000 and nodes_then < nodes + 200


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


def test_links_into_the_guide_lead_somewhere():
    guide = (ROOT / "learning_guide.md").read_text(encoding="utf-8")
    index = (ROOT / "page" / "index.html").read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.+)$", guide, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
    links = re.findall(r"learning_guide\.md#([\w-]+)", index)
    assert len(links) >= 5 and set(links) <= anchors


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
