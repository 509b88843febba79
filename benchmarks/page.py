"""How fast the included model is in the page: WebAssembly, plain JavaScript, and PyTorch.

    python benchmarks/page.py            needs Chromium; prints a table

All three compute the same network call on 96 tokens, with its output layer at two masks, as a
sampler with 48 steps does. They take turns, on one thread each, and the shortest of the calls
counts, so that other programs disturb the comparison little.
"""

import os
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import publish  # noqa: E402
from mdlm.model import DiffusionTransformer  # noqa: E402
from saving import load_checkpoint  # noqa: E402
from tests import chromium  # noqa: E402

LENGTH, MASKS, TURNS = 96, 2, 12
LOAD = """
    const { DiffusionTransformer } = await import(location.origin + "/model.js");
    const bytes = async (name) => new Uint8Array(await (await fetch(name)).arrayBuffer());
    const file = await bytes("/kjv.safetensors");
    globalThis.models = {
        wasm: await DiffusionTransformer.load(file, await bytes("/kernel.wasm")),
        plain: await DiffusionTransformer.load(file, null),
    };
"""
CALL = """
    const model = models[name], z = Array(length).fill(5).fill(model.maskId, 0, masks);
    const start = performance.now();
    model.features(z);
    model.head(z.slice(0, masks).keys().toArray());
    return performance.now() - start;
"""
FRAMES = """
    const z = Array(96).fill(models.wasm.maskId), gaps = [];
    let last = performance.now(), on = true;
    const frame = (now) => {
        gaps.push(now - last);
        last = now;
        if (on) requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
    const { oneAtATime } = await import(location.origin + "/client.js");
    const start = performance.now();
    await oneAtATime()("sample", { z, options: { steps: 48, seed: 1 } }, () => {});
    on = false;
    return [(performance.now() - start) / 1000, gaps.sort((a, b) => a - b)[gaps.length >> 1]];
"""


def main():
    model, _, _ = load_checkpoint(
        ROOT / "checkpoints" / "kjv.safetensors", DiffusionTransformer, "cpu"
    )
    z = torch.full((1, LENGTH), 5)
    z[0, :MASKS] = model.mask_id
    times = {"wasm": [], "plain": [], "torch": []}
    with publish.server() as server, tempfile.TemporaryDirectory() as folder:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with chromium.chromium(Path(folder)) as new_tab:
            tab = new_tab()
            tab.open(
                f"http://127.0.0.1:{server.server_port}/",
                "document.querySelector('#live').textContent.startsWith('Written')", 300,
            )  # fmt: skip
            tab.run(LOAD)
            for _ in range(TURNS):
                for name in ("wasm", "plain"):
                    took = tab.run(CALL, name=name, length=LENGTH, masks=MASKS)
                    times[name].append(took)
                with torch.no_grad():
                    start = time.perf_counter()
                    model.head(model.features(z)[0, :MASKS])
                    times["torch"].append(1000 * (time.perf_counter() - start))
            seconds, gap = tab.run(FRAMES)
        server.shutdown()
    best = {name: min(each) for name, each in times.items()}
    names = {"wasm": "WebAssembly with SIMD", "plain": "plain JavaScript", "torch": "PyTorch"}
    print("| | ms a call | of PyTorch's time |\n|---|---:|---:|")
    for name, title in names.items():
        print(f"| {title} | {best[name]:.1f} | {best[name] / best['torch']:.1f} |")
    print(
        f"\n96 tokens in 48 steps: {seconds:.1f} s, a frame every {gap:.0f} ms meanwhile (median)"
    )


if __name__ == "__main__":
    main()
