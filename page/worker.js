// The model's own thread: it calculates, so that the page never waits. It knows token ids only.
//
// A message {id, job, ...} starts a job. Each state that the job yields is sent back as
// {id, state}; then {id, done} or {id, error}. Between two states other jobs have their turn.

import { DiffusionTransformer } from "./model.js";
import { download } from "./safetensors.js";
import { best, adjust, generator, maskedNats, nelbo, sample, sampleTwin } from "./sampling.js";
import { openDevice } from "./webgpu.js";

let model, wasm, device;
const others = {}; // models that are loaded when a part of the page wants them, by address
const running = new Set(); // the numbers of the jobs that somebody still wants
const pause = () => new Promise((resolve) => setTimeout(resolve));
const GOLDEN = (Math.sqrt(5) - 1) / 2; // its multiples, modulo 1, spread evenly, however many

async function open(address, bytes, tell) {
  wasm ??= await download("kernel.wasm").catch(() => null); // without it, plain JavaScript
  bytes ??= await download(address, (done, total) => tell({ done, total }));
  device ??= await openDevice();
  return DiffusionTransformer.load(bytes, wasm, device);
}

async function other(address, tell) {
  return (others[address] ??= await open(address, null, tell));
}

const jobs = {
  /** The model, from an address or from a file's bytes; yields what there is to know about it. */
  async *load({ address, bytes }, tell) {
    const loaded = await open(address, bytes, tell);
    if (loaded.config.causal) throw new Error("That is a GPT, the twin: open a diffusion model.");
    model = loaded;
    const { config, header, parameters, arithmetic } = model;
    yield { config, tokenizer: header.tokenizer, parameters, arithmetic };
  },

  async *sample({ z, options }) {
    yield* sample(model, z, options);
  },

  /** What the model predicts at each mask of z: the ten likeliest tokens. */
  async *candidates({ z }) {
    const places = Array.from(z.keys()).filter((l) => z[l] === model.maskId);
    const rows = await model.predict(z, places, places.length / z.length);
    const each = rows.map((logits) => {
      const p = adjust(logits);
      return best(p, 10).map((id) => ({ id, p: p[id] }));
    });
    yield new Map(places.map((l, i) => [l, each[i]]));
  },

  /** The bound of a text that is cut into windows, from more and more samples.
   *
   * yields {n, nats, error} of the whole text, and `each`, the share of each token. */
  async *bound({ windows, seed, most }) {
    const uniform = generator(seed);
    const start = uniform();
    const samples = [];
    const sums = windows.map((x) => x.map(() => ({ nats: 0, weight: 0 })));
    for (let n = 1; n <= most; n++) {
      const t = (start + n * GOLDEN) % 1;
      let total = 0;
      for (const [w, x] of windows.entries()) {
        const k = 1 + Math.min(x.length - 1, Math.floor(t * x.length)); // masks
        const { nats, places, each } = await nelbo(model, x, k, uniform);
        total += nats;
        places.forEach((l, i) => {
          sums[w][l].nats += (each[i] * x.length) / k;
          sums[w][l].weight += x.length / k;
        });
        await pause();
      }
      samples.push({ t, total });
      samples.sort((a, b) => a.t - b.t);
      const mean = samples.reduce((sum, { total }) => sum + total, 0) / n;
      // samples with nearly as many masks differ by chance only
      const steps = samples.slice(1).map(({ total }, i) => (total - samples[i].total) ** 2);
      const error = Math.sqrt(steps.reduce((a, b) => a + b, 0) / (n - 1) / 2 / n);
      yield { n, nats: mean, error, each: sums.flat().map(({ nats, weight }) => nats / weight) };
    }
  },

  /** -log p of each of some tokens of x, in nats, for each way to mask them: [way][token]. */
  async *corners({ x, places }) {
    const ways = Array.from({ length: 2 ** places.length }, async (_, way) => {
      const masked = places.filter((_, i) => (way >> i) & 1);
      const z = x.map((id, l) => (masked.includes(l) ? model.maskId : id));
      const nats = await maskedNats(model, x, z, masked, masked.length / x.length);
      return places.map((l) => nats[masked.indexOf(l)] ?? 0);
    });
    yield await Promise.all(ways);
  },

  /** A Sudoku is solved, or only looked at; `marks`: what is expected in each empty cell. */
  async *grid({ z, options, address, digits: [first, size] }, tell) {
    const model = await other(address, tell);
    for await (const state of options ? sample(model, z, options) : [{ z }]) {
      const places = Array.from(state.z.keys()).filter((l) => state.z[l] === model.maskId);
      const rows = await model.predict(state.z, places, places.length / z.length);
      const share = (logits) => Array.from(adjust(logits).slice(first, first + size));
      const marks = rows.map((logits, i) => [places[i], share(logits)]);
      yield { z: state.z, marks: new Map(marks) };
    }
  },

  /** Diffusion and the twin write; the turn is always of the one that has had less time. */
  async *race({ z, options, address }, tell) {
    const twin = await other(address, tell);
    const fair = Object.create(model, { onDevice: { value: null } }); // like the twin
    const runs = [sample(fair, z, options), sampleTwin(twin, z, options)];
    const lanes = runs.map((run, lane) => ({ lane, run, seconds: 0 }));
    while (lanes.length) {
      const turn = lanes.sort((a, b) => a.seconds - b.seconds)[0];
      const start = performance.now();
      const { value: state, done } = await turn.run.next();
      turn.seconds += (performance.now() - start) / 1000;
      if (done) lanes.shift();
      else yield { lane: turn.lane, state, seconds: turn.seconds };
    }
  },
};

onmessage = async ({ data: { id, job, ...what } }) => {
  if (job === "stop") return running.delete(id);
  running.add(id);
  try {
    for await (const state of jobs[job](what, (state) => postMessage({ id, state }))) {
      if (!running.has(id)) break;
      postMessage({ id, state });
      await pause();
    }
    postMessage({ id, done: true, arithmetic: model?.arithmetic });
  } catch (error) {
    postMessage({ id, error: error.message });
  }
  running.delete(id);
};
