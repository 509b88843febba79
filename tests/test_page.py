"""The model in a page: what its JavaScript calculates is what Python calculates."""

import base64
import contextlib
import math
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import mdlm.sampling
import publish
from bpe_tokenizer import BPETokenizer
from conftest import make_model
from mdlm.diffusion import nelbo
from mdlm.model import DiffusionTransformer
from mdlm.twin import sample_twin
from saving import load_checkpoint, save_checkpoint
from tests import chromium

if chromium.find() is None:
    pytest.skip("no Chromium here", allow_module_level=True)

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
            ...await import("/tokenizer.js"),
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
        page.last = (states) => { let last; for (const state of states) last = state; return last; };
    """)
    return tab


@pytest.fixture(scope="module")
def included(tab):
    """The included model in Python; in the page it is `page.model`, its tokenizer page.tokens."""
    tab.run("""
        const bytes = new Uint8Array(await (await fetch("/kjv.safetensors")).arrayBuffer());
        page.model = await page.DiffusionTransformer.load(bytes, page.wasm);
        page.tokens = new page.Tokenizer(page.model.header.tokenizer);
    """)
    model, tokenizer, _ = load_checkpoint(INCLUDED, DiffusionTransformer, "cpu")
    return model, tokenizer


@pytest.fixture
def float32(monkeypatch):
    """No bfloat16, whatever this CPU has."""
    for module in ("mdlm.sampling", "mdlm.twin"):
        monkeypatch.setattr(f"{module}.autocast", lambda device: contextlib.nullcontext())


def load_tiny(tab, tmp_path, wasm=True, **changes):
    """A tiny network, as `page.tiny` in the page, too."""
    model = make_model(**changes)
    tokenizer = BPETokenizer.train("the end of the beginning, " * 20, model.config.vocab_size)
    model = make_model(**{**changes, "vocab_size": tokenizer.vocab_size})
    save_checkpoint(tmp_path / "tiny.safetensors", model, tokenizer, {})
    data = base64.b64encode((tmp_path / "tiny.safetensors").read_bytes()).decode()
    tab.run(
        "page.tiny = await page.DiffusionTransformer.load("
        "page.bytes(data), wasm ? page.wasm : null);",
        data=data, wasm=wasm,
    )  # fmt: skip
    return model


def logits_in_page(tab, name, z, t=0.0):
    """Logits of all places of a text z (L,), from the page: float32 (L, V - 1)."""
    text = tab.run(
        "const model = page[name]; model.features(z, t);"
        "const rows = model.head(z.map((_, l) => l)), V = model.maskId;"
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
def test_logits_are_pytorchs(tab, included, seed):
    model, _ = included
    length, share = [1, 17, model.config.context, 5, 96][seed % 5], [0.3, 1.0][seed // 5]
    z = some_masked_text(model, length, share, seed)
    difference = (logits_in_page(tab, "model", z) - logits_here(model, z)).abs().max().item()
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
def test_other_networks_can_be_opened(tab, tmp_path, changes):
    model = load_tiny(tab, tmp_path, **changes)
    for length in (1, 7, model.config.context):
        z = some_masked_text(model, length, 0.5, 1)
        difference = logits_in_page(tab, "tiny", z, 0.3) - logits_here(model, z, 0.3)
        assert difference.abs().max() < 1e-4


def test_plain_javascript_gives_the_same_bits(tab, tmp_path):
    """So a seed gives the same text with WebAssembly and without."""
    model = load_tiny(tab, tmp_path)
    z = some_masked_text(model, 13, 0.5, 1)
    fast = logits_in_page(tab, "tiny", z)
    assert tab.run("return page.tiny.arithmetic") == "WebAssembly with SIMD"
    load_tiny(tab, tmp_path, wasm=False)
    assert tab.run("return page.tiny.arithmetic") == "plain JavaScript"
    assert torch.equal(logits_in_page(tab, "tiny", z), fast)


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
    with pytest.raises(RuntimeError, match="damaged|another network"):
        tab.run(
            "await page.DiffusionTransformer.load(page.bytes(data), page.wasm)",
            data=base64.b64encode(data).decode(),
        )


# -- the tokenizer

PIECES = [
    "In the beginning", " God", "  ", "\r\n", "\n\n", "\t", "\x1c", "\x85", "\u00a0", "\u3000", "\ufeff",
    "it's", "don’t", "we'll've", "'s", "'sé", "12345", "٣٤٥", "²³", "½", "Ⅷ", "〇", "x²y", "_", "__init__",
    "สวัสดี", "ชาวโลก", "नमस्ते", "שָׁלוֹם", "é", "e\u0301", "👩‍👩‍👧‍👦", "👍🏽", "🇩🇪", "❤️", "漢字", "한국어",
    "<|mask|>", "<|mask", "|>", "…", "—", "$%&", "a" * 70, "7" * 70, "é" * 70, " " * 70, "." * 70, "\0",
    "\ud800", "\udfff", "\U0001d400", "\U000e0100", "\U0010ffff", "a-b", "Mt. 5:3", "ΑΒΓ", "ß", "Ǆ",
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
            "const end = page.last(page.sample(page.tiny, z, options));"
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
        "return [...page.last(page.sample(page.model, z, { steps: 24, seed: 7 })).z]",
        z=z[0].tolist(),
    )
    assert found == expected.tokens[0].tolist()


def test_the_twin_writes_pythons_text(tab, tmp_path, float32):
    model = load_tiny(tab, tmp_path, causal=True, n_layers=2)
    z = torch.full((1, 16), model.mask_id)
    z[0, :3] = torch.tensor([5, 6, 7])
    expected = sample_twin(model, z, torch.Generator().manual_seed(3))
    found = tab.run(
        "return [...page.last(page.sampleTwin(page.tiny, z, { seed: 3 })).z]", z=z[0].tolist()
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
        code = "return page.nelbo(page.model, x, k, page.generator(k)).nats"
        assert math.isclose(tab.run(code, x=x[0].tolist(), k=k), expected, rel_tol=1e-4)
