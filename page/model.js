// The network of mdlm/model.py, with its names: a transformer with RoPE, RMSNorm and SwiGLU.
//
// Matrices are Float32Arrays, row by row, in one memory that never grows. All sizes come from the
// checkpoint. `x` is the residual stream, `h` what a layer reads from it, `y` what it adds to it:
// (L, C) each.

import { allocate, fours } from "./kernel.js";
import { read, toFloat32, verify } from "./safetensors.js";
import { NetworkOnDevice } from "./webgpu.js";

const ANOTHER = "That model was made by another network than the one in this page.";
const silu = (a) => a / (1 + Math.exp(-a));

/** What the network has learned: {name: shape}, as PyTorch stores it (out, in). */
function weightShapes({ vocab_size: V, d_model: C, n_layers, time_conditioning }) {
  const shapes = { "embedding.weight": [V, C], "norm.scale": [C] };
  const linear = (name, n, k, bias = false) => {
    shapes[name + ".weight"] = [n, k];
    if (bias) shapes[name + ".bias"] = [n];
  };
  if (time_conditioning) for (const i of [0, 2]) linear(`time_mlp.${i}`, C, C, true);
  for (let i = 0; i < n_layers; i++) {
    const block = `blocks.${i}.`;
    for (const norm of ["norm1", "norm2"]) shapes[`${block + norm}.scale`] = [C];
    linear(block + "attention.qkv", 3 * C, C);
    linear(block + "attention.out", C, C);
    linear(block + "feed_forward.gate_up", 2 * hiddenSize(C), C);
    linear(block + "feed_forward.down", C, hiddenSize(C));
    if (time_conditioning) linear(block + "modulation", 4 * C, C, true);
  }
  return shapes;
}

/** Of the feed-forward layer: 8/3 of the width, rounded up to a multiple of 64. */
const hiddenSize = (C) => 64 * Math.ceil((8 * C) / 3 / 64);

export class DiffusionTransformer {
  /** The bytes of a checkpoint -> the network.
   *
   * wasm: the bytes of kernel.wasm, or null; device: that of webgpu.js, or null. */
  static async load(bytes, wasm, device = null) {
    const { header, weights } = read(bytes);
    await verify({ header, weights });
    const config = JSON.parse(header.config);
    const { context: L, vocab_size: V, d_model: C, n_heads: H } = config;
    const model = Object.assign(new DiffusionTransformer(), { header, config, maskId: V - 1 });
    const [D, hidden, width] = [C / H, hiddenSize(C), V + (V % 2)]; // the kernel likes even numbers
    const shapes = weightShapes(config);
    const fits = ([name, { shape }]) => String(shape) === String(shapes[name]);
    const same = Object.keys(weights).length === Object.keys(shapes).length;
    if (!same || !Object.entries(weights).every(fits) || D % 4) throw new Error(ANOTHER);
    const { arrays, name, matmul } = await allocate(
      {
        ...shapes, // and room for what is calculated:
        ...{ x: [L, C], h: [L, C], y: [L, C], qkv: [L, 3 * C], gate_up: [L, 2 * hidden] },
        ...{ q: [L, D], k: [L, D], v: [D, fours(L)], scores: [L, fours(L)], mixed: [L, D] },
        ...{ rows: [L, C], logits: [L, width], c: [1, C], time: [1, C], modulation: [1, 4 * C] },
      },
      wasm,
    );
    for (const name in weights) toFloat32(weights[name], arrays[name]);
    Object.assign(model, arrays, { shapes, D, hidden, width, matmul, kernel: name });
    model.makeRopeTables();
    await model.checkAnswers();
    if (device && !config.causal && !config.time_conditioning) await model.moveTo(device);
    return model;
  }

  /** From now on the device calculates, as long as it is there: if what it says is right. */
  async moveTo(device) {
    const back = () => (this.onDevice = null);
    device.lost.then(back);
    try {
      this.onDevice = new NetworkOnDevice(device, this);
      await this.checkAnswers();
    } catch {
      back();
    }
  }

  get arithmetic() {
    return this.onDevice ? "WebGPU" : this.kernel;
  }

  get parameters() {
    return Object.values(this.shapes).reduce((sum, [m, n = 1]) => sum + m * n, 0);
  }

  /** cos and sin of the angle of each position and channel pair, (L, D / 2) each. */
  makeRopeTables() {
    const { fround } = Math;
    const [L, half] = [this.config.context, this.D / 2];
    this.cos = new Float32Array(L * half);
    this.sin = new Float32Array(L * half);
    for (let at = 0; at < L * half; at++) {
      const frequency = fround(L ** fround((-2 * (at % half)) / this.D)); // radians a position
      const angle = fround(Math.floor(at / half) * frequency);
      this.cos[at] = Math.cos(angle);
      this.sin[at] = Math.sin(angle);
    }
  }

  /** y (L, out) = W x + b for each of the L rows of x (L, in). */
  linear(name, x, y, L) {
    const [n, k] = this.shapes[name + ".weight"];
    const bias = this[name + ".bias"];
    this.matmul(x, this[name + ".weight"], y, L, n, k);
    if (bias) for (let i = 0; i < L * n; i++) y[i] += bias[i % n];
  }

  /** h = norm(x), and then scaled and shifted by what the time says, if it says anything. */
  norm(name, L, modulation) {
    const C = this.config.d_model;
    const scale = this[name + ".scale"];
    for (let at = 0; at < L * C; at += C) {
      const factor = 1 / rootMeanSquare(this.x, at, C, 1e-6);
      for (let i = 0; i < C; i++) {
        this.h[at + i] = this.x[at + i] * factor * scale[i];
        if (modulation) this.h[at + i] = this.h[at + i] * (1 + modulation[i]) + modulation[C + i];
      }
    }
  }

  /** From qkv: queries and keys of one head, (L, D), turned to their positions; values, (D, L). */
  heads(head, L, start = 0) {
    const { D, qkv } = this;
    const C = this.config.d_model;
    for (let l = 0; l < L; l++) {
      const from = 3 * C * l + head * D;
      this.turn(from, this.q, D * l, start + l);
      this.turn(from + C, this.k, D * l, start + l);
      for (let i = 0; i < D; i++) this.v[fours(L) * i + l] = qkv[from + 2 * C + i];
    }
  }

  /** The D numbers of qkv at `from`, normalised, each pair turned by its angle -> `to` at `at`. */
  turn(from, to, at, position) {
    const { D, qkv, cos, sin } = this;
    const factor = this.config.qk_norm ? 1 / rootMeanSquare(qkv, from, D, 2 ** -23) : 1;
    for (let i = 0, p = (position * D) / 2; i < D / 2; i++, p++) {
      const a = qkv[from + i] * factor; // the pairs are (a_i, b_i)
      const b = qkv[from + D / 2 + i] * factor;
      to[at + i] = a * cos[p] - b * sin[p];
      to[at + D / 2 + i] = a * sin[p] + b * cos[p];
    }
  }

  /** y = attention(h), bidirectional unless the model is a causal twin. */
  attention(name, L) {
    const { D, scores } = this;
    const { d_model: C, n_heads: H, causal } = this.config;
    const columns = fours(L);
    this.linear(name + "qkv", this.h, this.qkv, L);
    for (let head = 0; head < H; head++) {
      this.heads(head, L);
      this.matmul(this.q, this.k, scores, L, columns, D);
      for (let l = 0; l < L; l++) {
        const row = scores.subarray(columns * l, columns * (l + 1));
        softmax(row, causal ? l + 1 : L, D ** -0.5);
      }
      this.matmul(scores, this.v, this.mixed, L, D, columns);
      for (let l = 0; l < L; l++) {
        this.h.set(this.mixed.subarray(D * l, D * (l + 1)), C * l + D * head);
      }
    }
    this.linear(name + "out", this.h, this.y, L);
  }

  /** y = SwiGLU(h) */
  feedForward(name, L) {
    const { gate_up, hidden } = this;
    this.linear(name + "gate_up", this.h, gate_up, L);
    for (let l = 0; l < L; l++) {
      for (let i = 0, at = 2 * hidden * l; i < hidden; i++, at++) {
        gate_up[hidden * l + i] = silu(gate_up[at]) * gate_up[at + hidden];
      }
    }
    this.linear(name + "down", gate_up, this.y, L);
  }

  /** x = block(x); attend: what stands in for attention, for the twin with its cache. */
  block(name, L, t, attend = () => this.attention(name + "attention.", L)) {
    const { d_model: C, time_conditioning } = this.config;
    if (time_conditioning) this.linear(name + "modulation", this.c, this.modulation, 1);
    const half = (k) => time_conditioning && this.modulation.subarray(2 * C * k, 2 * C * (k + 1));
    const add = () => this.x.subarray(0, L * C).forEach((a, i, x) => (x[i] = a + this.y[i]));
    this.norm(name + "norm1", L, half(0));
    attend();
    add();
    this.norm(name + "norm2", L, half(1));
    this.feedForward(name + "feed_forward.", L);
    add();
  }

  /** c (C) = the embedded noise level t in [0, 1]. */
  embedTime(t) {
    const half = this.config.d_model / 2;
    for (let i = 0; i < half; i++) {
      const angle = Math.fround(1000 * t * 10_000 ** (-i / half));
      this.time[i] = Math.cos(angle);
      this.time[half + i] = Math.sin(angle);
    }
    this.linear("time_mlp.0", this.time, this.c, 1);
    for (let i = 0; i < 2 * half; i++) this.time[i] = silu(this.c[i]);
    this.linear("time_mlp.2", this.time, this.c, 1);
  }

  embed(id, l) {
    const C = this.config.d_model;
    this.x.set(this["embedding.weight"].subarray(C * id, C * (id + 1)), C * l);
  }

  /** z: L token ids, masks among them -> a row of V - 1 logits for each of the places.
   *
   * t: the noise level in [0, 1], needed with time conditioning only. */
  async predict(z, places, t = 0) {
    if (!places.length) return [];
    if (this.onDevice) {
      try {
        return await this.onDevice.predict(z, places);
      } catch {
        this.onDevice = null; // it was lost meanwhile
      }
    }
    this.features(z, t);
    return this.head(places).map((row) => row.slice()); // for others may ask meanwhile
  }

  /** z -> this.h (L, C). */
  features(z, t = 0) {
    const L = z.length;
    if (this.config.time_conditioning) this.embedTime(t);
    z.forEach((id, l) => this.embed(id, l));
    for (let i = 0; i < this.config.n_layers; i++) this.block(`blocks.${i}.`, L);
    this.norm("norm", L);
  }

  /** The rows of this.h at `places` -> N rows of V - 1 logits, good until the next call. */
  head(places) {
    const { d_model: C } = this.config;
    places.forEach((l, i) => this.rows.set(this.h.subarray(C * l, C * (l + 1)), C * i));
    const embedding = this["embedding.weight"];
    this.matmul(this.rows, embedding, this.logits, places.length, this.width, C);
    return Array.from(places, (_, i) => {
      return this.logits.subarray(this.width * i, this.width * i + this.maskId);
    });
  }

  /** Logits of what follows `token` at `position`, from the causal twin (see twin.ipynb).
   *
   * cache: the keys and values of each head so far; an empty list at position 0. */
  stepWithCache(token, position, cache) {
    const { D } = this;
    this.embed(token, 0);
    for (let i = 0; i < this.config.n_layers; i++) {
      const name = `blocks.${i}.attention.`;
      this.block(`blocks.${i}.`, 1, 0, () => {
        this.linear(name + "qkv", this.h, this.qkv, 1);
        for (let head = 0; head < this.config.n_heads; head++) {
          this.heads(head, 1, position);
          const past = (cache[i * this.config.n_heads + head] ??= []);
          const v = this.v.filter((_, j) => j % 4 === 0); // (D, 1), in rows of four
          past.push({ k: this.k.slice(0, D), v: v.slice(0, D) });
          const weights = past.map(({ k }) => k.reduce((sum, a, j) => sum + a * this.q[j], 0));
          softmax(weights, weights.length, D ** -0.5);
          for (let j = 0; j < D; j++) {
            this.h[D * head + j] = past.reduce((sum, { v }, l) => sum + weights[l] * v[j], 0);
          }
        }
        this.linear(name + "out", this.h, this.y, 1);
      });
    }
    this.norm("norm", 1);
    return this.head([0])[0];
  }

  /** A checkpoint holds what its network says to a fixed text; does this one say the same? */
  async checkAnswers() {
    const { context, vocab_size: V } = this.config;
    const places = Array.from({ length: Math.min(16, context) }, (_, l) => l);
    const z = places.map((l) => (l % 2 ? (l * 7919) % V : V - 1));
    const step = Math.floor(V / 8);
    const rows = await this.predict(z, places.filter((l) => l % 2 === 0), 0.5);
    const said = rows.flatMap((row) => {
      const log = logSumExp(row);
      return Array.from(row.filter((_, v) => v % step === 0), (a) => a - log);
    });
    const expected = JSON.parse(this.header.answers);
    const close = said.every((a, i) => Math.abs(a - expected[i]) < 0.01);
    if (said.length !== expected.length || !close) throw new Error(ANOTHER);
  }
}

function rootMeanSquare(x, at, n, epsilon) {
  let sum = 0;
  for (let i = at; i < at + n; i++) sum += x[i] * x[i];
  return Math.sqrt(sum / n + epsilon);
}

/** The first n numbers of a row become weights that sum to one, the others 0. */
function softmax(row, n, factor) {
  let largest = -Infinity;
  let sum = 0;
  for (let i = 0; i < n; i++) largest = Math.max(largest, row[i]);
  for (let i = 0; i < n; i++) sum += row[i] = Math.exp((row[i] - largest) * factor);
  for (let i = 0; i < row.length; i++) row[i] = i < n ? row[i] / sum : 0;
}

/** log of the sum of exp of a row of logits, in float64. */
export function logSumExp(row) {
  let largest = -Infinity;
  let sum = 0;
  for (const a of row) largest = Math.max(largest, a);
  for (const a of row) sum += Math.exp(a - largest);
  return largest + Math.log(sum);
}
