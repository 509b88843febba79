"""How fast the included model is in the page: WebGPU, WebAssembly, plain JavaScript, and PyTorch.

    python benchmarks/page.py                    needs Chromium; prints a table
    python benchmarks/page.py --gpu              Chromium with the machine's graphics card, which
                                                 it plays on the CPU otherwise (and says so)
    python benchmarks/page.py --ort FOLDER       onnxruntime-web as well: FOLDER is its npm package,
                                                 unpacked; needs the packages onnx and onnxscript

All compute the same network call on 96 tokens, with its output layer at two masks, as a sampler
with 48 steps does. They take turns, on one thread each, and the shortest of the calls counts, so
that other programs disturb the comparison little.
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
from files import Parser  # noqa: E402
from mdlm.model import DiffusionTransformer  # noqa: E402
from saving import load_checkpoint  # noqa: E402
from tests.chromium import PLAYED, chromium, open_tab, run, says  # noqa: E402

LENGTH, MASKS, TURNS = 96, 2, 12
LOAD = """
    const { DiffusionTransformer } = await import(location.origin + "/model.js");
    const bytes = async (name) => new Uint8Array(await (await fetch(name)).arrayBuffer());
    const file = await bytes("/kjv.safetensors");
    const { openDevice } = await import(location.origin + "/webgpu.js");
    const device = await openDevice(true);
    const played = device && !(await openDevice());
    const wasm = await bytes("/kernel.wasm");
    globalThis.models = {};
    for (const way of [[wasm, device], [wasm], []]) {
        const model = await DiffusionTransformer.load(file, ...way);
        const more = model.onDevice && played ? ", played by the CPU" : "";
        models[model.arithmetic + more] = model;
    }
    return Object.keys(models);
"""
CALL = """
    const model = models[name], z = Array(length).fill(5).fill(model.maskId, 0, masks);
    const start = performance.now();
    await model.predict(z, z.slice(0, masks).keys().toArray());
    return performance.now() - start;
"""
ORT_LOAD = """
    const ort = await import(location.origin + "/ort.wasm.min.mjs");
    ort.env.wasm.numThreads = 1;
    globalThis.session = await ort.InferenceSession.create("/network.onnx");
    const z = BigInt64Array.from(ids, BigInt);
    globalThis.input = { z: new ort.Tensor("int64", z, [1, ids.length]) };
"""
ORT_CALL = """
    const start = performance.now();
    const { logits } = await session.run(input);
    return [performance.now() - start, ...logits.data.slice(0, 100)];
"""
FRAMES = """
    const z = Array(96).fill(Object.values(models)[0].maskId), gaps = [];
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


class Call(torch.nn.Module):
    """The network call as a module of its own, for the export."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, z):
        return self.model.head(self.model.features(z)[0, :MASKS])


def add_to_page(*paths):
    """Let the page's server serve these files, too."""
    usual = publish.site_files
    publish.site_files = lambda: usual() | {path.name: path for path in paths}


def main():
    parser = Parser(__doc__)
    parser.add_argument("--ort", type=Path, metavar="FOLDER", help="with onnxruntime-web")
    parser.add_argument("--gpu", action="store_true", help="with this machine's graphics card")
    arguments = parser.parse_args()
    ort, flags = arguments.ort, [] if arguments.gpu else PLAYED
    model, _, _ = load_checkpoint(
        ROOT / "checkpoints" / "kjv.safetensors", DiffusionTransformer, "cpu"
    )
    z = torch.full((1, LENGTH), 5)
    z[0, :MASKS] = model.mask_id
    call = Call(model)
    with publish.server() as server, tempfile.TemporaryDirectory() as folder, torch.no_grad():
        if ort:
            network = Path(folder) / "network.onnx"
            names = dict(input_names=["z"], output_names=["logits"])
            torch.onnx.export(call, (z,), network, dynamo=True, external_data=False, **names)
            add_to_page(network, *(ort / "dist").glob("ort*wasm*"))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with chromium(flags) as browser:
            if browser is None:
                sys.exit("page.py: no Chromium here")
            tab = open_tab(browser, f"http://127.0.0.1:{server.server_port}/")
            says(tab, "Written")
            arithmetics = run(tab, LOAD)

            def in_pytorch():
                start = time.perf_counter()
                call(z)
                return 1000 * (time.perf_counter() - start)

            def in_page(name):
                return lambda: run(tab, CALL, name=name, length=LENGTH, masks=MASKS)

            ways = {"PyTorch": in_pytorch, **{name: in_page(name) for name in arithmetics}}
            if ort:
                run(tab, ORT_LOAD, ids=z[0].tolist())
                said = torch.tensor(run(tab, ORT_CALL)[1:])
                assert (said - call(z).flatten()[:100]).abs().max() < 1e-3, "another network"
                ways["onnxruntime-web"] = lambda: run(tab, ORT_CALL)[0]
            times = {name: [] for name in ways}
            for name in list(ways) * TURNS:
                times[name].append(ways[name]())
            seconds, gap = run(tab, FRAMES)
        server.shutdown()
    best = {name: min(each) for name, each in times.items()}
    print("| | ms a call | of PyTorch's time |\n|---|---:|---:|")
    for name in sorted(best, key=best.get):
        print(f"| {name} | {best[name]:.1f} | {best[name] / best['PyTorch']:.1f} |")
    print(
        f"\n96 tokens in 48 steps: {seconds:.1f} s, a frame every {gap:.0f} ms meanwhile (median)"
    )


if __name__ == "__main__":
    main()
