// The network of model.js on the graphics card: six small programs, and the order they run in.
//
// Each reads `a` and what has been learned or looked up, `b`, and writes `y`; a row is a token.
// All is float32. What is said of shapes in model.js holds here, too.

const programs = ({ config, D, hidden }) => `
const C = ${config.d_model}u; // all loops count in unsigned integers
const D = ${D}u;
const HEADS = ${config.n_heads}u;
const HIDDEN = ${hidden}u;

@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(1) var<storage, read> rows: array<u32>; // the same places, read otherwise:
@group(0) @binding(0) var<storage, read> a4: array<vec4f>;
@group(0) @binding(1) var<storage, read> b4: array<vec4f>;

/** y = some rows of a: embedding vectors of tokens, or the places that were asked for */
@compute @workgroup_size(64)
fn pick(@builtin(workgroup_id) at: vec3u, @builtin(local_invocation_index) me: u32) {
  for (var i = me; i < C; i += 64) { y[C * at.x + i] = a[C * rows[at.x] + i]; }
}

/** y = a / RMS(a) * b */
@compute @workgroup_size(64)
fn norm(@builtin(workgroup_id) at: vec3u, @builtin(local_invocation_index) me: u32) {
  var sum = 0.0; // each thread adds it up for itself: that is quicker than to wait for others
  for (var i = 0u; i < C; i++) { sum += a[C * at.x + i] * a[C * at.x + i]; }
  let factor = inverseSqrt(sum / f32(C) + 1e-6);
  for (var i = me; i < C; i += 64) { y[C * at.x + i] = a[C * at.x + i] * factor * b[i]; }
}

override N: u32;
override K: u32;
override ADD: bool; // to what is in y, the residual stream
var<workgroup> a_tile: array<vec4f, 256>; // 8 times 4 columns of 32 rows
var<workgroup> b_tile: array<vec4f, 256>;

/** y (L, N) = a (L, K) b^T, with b (N, K): in tiles of 32 x 32, of which a thread has 4 x 4 */
@compute @workgroup_size(8, 8)
fn matmul(@builtin(workgroup_id) tile: vec3u, @builtin(local_invocation_id) me: vec3u) {
  var sums: array<vec4f, 4>;
  for (var first = 0u; first < K / 4; first += 8) {
    let k = first + me.x;
    for (var i = me.y; i < 32; i += 8) {
      let n = 32 * tile.y + i;
      let there = k < K / 4; // 0 beyond the edge
      a_tile[32 * me.x + i] = select(vec4f(), a4[(32 * tile.x + i) * (K / 4) + k], there);
      b_tile[32 * me.x + i] = select(vec4f(), b4[n * (K / 4) + k], there && n < N);
    }
    workgroupBarrier();
    for (var p = 0u; p < 256; p += 32) {
      let q = p + me.x;
      let columns = mat4x4f(b_tile[q], b_tile[q + 8], b_tile[q + 16], b_tile[q + 24]);
      for (var r = 0u; r < 4; r++) { sums[r] += a_tile[p + me.y + 8 * r] * columns; }
    }
    workgroupBarrier();
  }
  for (var i = 0u; i < 16; i++) {
    let n = 32 * tile.y + me.x + 8 * (i % 4);
    let at = (32 * tile.x + me.y + 8 * (i / 4)) * N + n;
    if (n < N) { y[at] = sums[i / 4][i % 4] + select(0.0, y[at], ADD); }
  }
}

/** The queries and keys in y are normalised and turned to their positions; b: cosines, sines */
@compute @workgroup_size(2 * HEADS)
fn turn(@builtin(workgroup_id) at: vec3u, @builtin(local_invocation_index) me: u32) {
  let first = 3 * C * at.x + D * me;
  var sum = 0.0;
  for (var i = first; i < first + D; i++) { sum += y[i] * y[i]; }
  let factor = select(1.0, inverseSqrt(sum / f32(D) + ${2 ** -23}), ${Boolean(config.qk_norm)});
  for (var i = 0u; i < D / 2; i++) {
    let pair = factor * vec2f(y[first + i], y[first + D / 2 + i]);
    let angle = D / 2 * at.x + i;
    let turned = vec2f(b[angle], b[angle + arrayLength(&b) / 2]);
    y[first + i] = pair.x * turned.x - pair.y * turned.y;
    y[first + D / 2 + i] = pair.x * turned.y + pair.y * turned.x;
  }
}

var<workgroup> weights: array<f32, ${config.context}>;

/** y = attention of query at.x in head at.y; a: queries, keys and values of all */
@compute @workgroup_size(64)
fn attention(@builtin(workgroup_id) at: vec3u, @builtin(num_workgroups) size: vec3u,
             @builtin(local_invocation_index) me: u32) {
  let query = 3 * C * at.x + D * at.y;
  for (var l = me; l < size.x; l += 64) {
    let key = 3 * C * l + C + D * at.y;
    var score = 0.0;
    for (var i = 0u; i < D; i++) { score += a[query + i] * a[key + i]; }
    weights[l] = score * ${D ** -0.5};
  }
  workgroupBarrier();
  var largest = weights[0];
  for (var l = 1u; l < size.x; l++) { largest = max(largest, weights[l]); }
  for (var i = me; i < D; i += 64) {
    var sum = 0.0;
    var value = 0.0;
    for (var l = 0u; l < size.x; l++) {
      let weight = exp(weights[l] - largest);
      sum += weight;
      value += weight * a[3 * C * l + 2 * C + D * at.y + i];
    }
    y[C * at.x + D * at.y + i] = value / sum;
  }
}

/** y = silu(gate) * up, which are the two halves of a row of a */
@compute @workgroup_size(64)
fn gate(@builtin(workgroup_id) at: vec3u, @builtin(local_invocation_index) me: u32) {
  for (var i = me; i < HIDDEN; i += 64) {
    let g = a[2 * HIDDEN * at.x + i];
    y[HIDDEN * at.x + i] = g / (1.0 + exp(-g)) * a[2 * HIDDEN * at.x + HIDDEN + i];
  }
}`;

/** The graphics card, or null. software: a card that the CPU plays, slowly, will do (for tests). */
export async function openDevice(software = false) {
  try {
    const adapter = await navigator.gpu.requestAdapter();
    const played = adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter;
    return played && !software ? null : await adapter.requestDevice();
  } catch {
    return null;
  }
}

export class NetworkOnDevice {
  /** Takes the weights of a DiffusionTransformer to the card: bidirectional, not told the time. */
  constructor(device, model) {
    const { config, shapes, hidden, maskId } = model;
    const { context, d_model: C, n_heads, n_layers } = config;
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST | GPUBufferUsage.COPY_SRC;
    const make = (size) => device.createBuffer({ size: 4 * size, usage });
    const load = (array) => {
      const buffer = make(array.length);
      device.queue.writeBuffer(buffer, 0, array);
      return buffer;
    };
    const learned = {};
    for (const name in shapes) learned[name] = load(model[name]);
    const angles = load(Float32Array.from([...model.cos, ...model.sin]));
    const room = (columns) => make(32 * Math.ceil(context / 32) * columns); // in whole tiles
    const [z, places, x, h, qkv] = [1, 1, C, C, 3 * C].map(room);
    const [halves, gated, answers] = [2 * hidden, hidden, maskId].map(room);
    Object.assign(this, { device, maskId, z, places, answers });

    const module = device.createShaderModule({ code: programs(model) });
    const pipelines = {}; // by their names and constants
    const step = (entryPoint, buffers, width = 1, constants = {}) => {
      const compute = { module, entryPoint, constants };
      const pipeline = (pipelines[entryPoint + JSON.stringify(constants)] ??=
        device.createComputePipeline({ layout: "auto", compute }));
      const entries = buffers.map((buffer, binding) => buffer && { binding, resource: { buffer } });
      const layout = pipeline.getBindGroupLayout(0);
      const group = device.createBindGroup({ layout, entries: entries.filter(Boolean) });
      return { pipeline, group, width, height: constants.N ? 32 : 1 };
    };
    const norm = (name) => step("norm", [x, learned[name + ".scale"], h]);
    const linear = (name, a, y, { ADD = false, N = shapes[name + ".weight"][0] } = {}) => {
      const K = shapes[name + ".weight"][1];
      return step("matmul", [a, learned[name + ".weight"], y], Math.ceil(N / 32), { N, K, ADD });
    };
    const block = (_, i) => [
      norm(`blocks.${i}.norm1`),
      linear(`blocks.${i}.attention.qkv`, h, qkv),
      step("turn", [null, angles, qkv]),
      step("attention", [qkv, null, h], n_heads),
      linear(`blocks.${i}.attention.out`, h, x, { ADD: true }),
      norm(`blocks.${i}.norm2`),
      linear(`blocks.${i}.feed_forward.gate_up`, h, halves),
      step("gate", [halves, null, gated]),
      linear(`blocks.${i}.feed_forward.down`, gated, x, { ADD: true }),
    ];
    const blocks = Array.from({ length: n_layers }, block).flat();
    this.features = [step("pick", [learned["embedding.weight"], z, x]), ...blocks, norm("norm")];
    this.head = [step("pick", [h, places, x]), linear("embedding", x, answers, { N: maskId })];
  }

  /** As that of DiffusionTransformer. */
  async predict(z, places) {
    const { device, maskId } = this;
    device.queue.writeBuffer(this.z, 0, Uint32Array.from(z));
    device.queue.writeBuffer(this.places, 0, Uint32Array.from(places));
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    const run = (steps, rows) => {
      for (const { pipeline, group, width, height } of steps) {
        pass.setPipeline(pipeline);
        pass.setBindGroup(0, group);
        pass.dispatchWorkgroups(Math.ceil(rows / height), width);
      }
    };
    run(this.features, z.length);
    run(this.head, places.length);
    pass.end();
    const size = 4 * maskId * places.length;
    const usage = GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST;
    const answer = device.createBuffer({ size, usage }); // its own, for others may ask meanwhile
    encoder.copyBufferToBuffer(this.answers, 0, answer, 0, size);
    device.queue.submit([encoder.finish()]);
    await answer.mapAsync(GPUMapMode.READ);
    const all = new Float32Array(answer.getMappedRange().slice());
    answer.destroy();
    return Array.from(places, (_, i) => all.subarray(maskId * i, maskId * (i + 1)));
  }
}
