// From masks to text, and how surprised the model is by one: mdlm/sampling.py and `nelbo`.
//
// With the same seed the samplers draw what PyTorch's draw, so a text is the same here and there
// (where the two networks' last digits do not decide a draw).

import { logSumExp } from "./model.js";

/** torch.rand(..., dtype=torch.float64) of a seeded generator: the Mersenne Twister, MT19937. */
export function generator(seed) {
  const state = new Uint32Array(624);
  state[0] = seed % 2 ** 32;
  for (let i = 1; i < 624; i++) {
    state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
  }
  let at = 624;
  const next = () => {
    if (at === 624) {
      for (let i = 0; i < 624; i++) {
        const y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
        state[i] = state[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      at = 0;
    }
    let y = state[at++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  };
  return () => ((next() & 0x1fffff) * 2 ** 32 + next()) / 2 ** 53; // uniform on [0, 1)
}

const rand = (n, uniform) => Float64Array.from({ length: n }, uniform);
const range = (n) => Array.from({ length: n }, (_, i) => i);

/** A row of logits -> float64 probabilities: the softmax, unless told otherwise. */
export function adjust(logits, { temperature = 1, topP = 1 } = {}) {
  const p = Float64Array.from(logits, (a) => a / temperature);
  const log = logSumExp(p);
  for (let v = 0; v < p.length; v++) p[v] = Math.exp(p[v] - log);
  if (topP < 1) {
    let before = 0; // the probability of all that are likelier
    for (const v of best(p, p.length)) {
      const now = p[v];
      if (before >= topP) p[v] = 0;
      before += now;
    }
    const sum = p.reduce((a, b) => a + b);
    for (let v = 0; v < p.length; v++) p[v] /= sum;
  }
  return p;
}

/** The ids of the k likeliest tokens, the likeliest first. */
export function best(p, k) {
  const floor = k < 100 ? Float64Array.from(p).sort()[Math.max(0, p.length - k)] : 0;
  const ids = Array.from(p.keys()).filter((v) => p[v] >= floor);
  return ids.sort((a, b) => p[b] - p[a] || a - b).slice(0, k);
}

/** One token of a distribution p (V), at the random point u of [0, 1). */
export function draw(p, u) {
  const point = u * p.reduce((a, b) => a + b);
  let cumulative = 0;
  let last = 0;
  for (let v = 0; v < p.length; v++) {
    if (p[v] === 0) continue;
    cumulative += p[(last = v)];
    if (cumulative > point) break;
  }
  return last;
}

/** A text on its way, which all samplers change and yield after each network call. */
class Run {
  constructor(model, z, options) {
    const { maskId } = model;
    Object.assign(this, { model, options, z: Int32Array.from(z), step: 0, calls: 0 });
    this.masked = () => range(z.length).filter((l) => this.z[l] === maskId);
    this.when = new Int32Array(z.length); // the step in which each was unmasked (given tokens: 0)
    this.probability = new Float64Array(z.length).fill(1); // that each had when it was drawn
  }

  /** A token drawn at each of the places, [place, token, probability]; u: a random point for each.
   *
   * alpha: the share of visible tokens. */
  async draw(places, alpha, u) {
    this.calls++;
    const rows = await this.model.predict(this.z, places, 1 - alpha);
    return rows.map((logits, i) => {
      const p = adjust(logits, this.options);
      const token = draw(p, u[i]);
      return [places[i], token, p[token]];
    });
  }

  write(l, token, p) {
    [this.z[l], this.when[l], this.probability[l]] = [token, this.step, p];
  }

  /** Write a token at each of the places; u: a random point for every place of the text. */
  async fill(places, alpha, u) {
    const drawn = await this.draw(places, alpha, places.map((l) => u[l]));
    for (const each of drawn) this.write(...each);
  }

  state() {
    const { z, when, probability, step, calls } = this;
    return { z: z.slice(), when: when.slice(), probability: probability.slice(), step, calls };
  }
}

/** Fill every mask in the step that the plan gives it; alpha (L): just before that. */
async function* runPlan(run, plan, alpha, u) {
  const masked = run.masked();
  for (const step of [...new Set(masked.map((l) => plan[l]))].sort((a, b) => a - b)) {
    const due = masked.filter((l) => plan[l] === step);
    run.step = step;
    await run.fill(due, Math.min(...due.map((l) => alpha[l])), u);
    yield run.state();
  }
}

export const SAMPLERS = {
  /** Ancestral sampling: each token is unmasked at its own random moment, on a grid of steps. */
  async *ancestral(run, steps, uniform) {
    const L = run.z.length;
    const [moment, u] = [rand(L, uniform), rand(L, uniform)];
    const plan = Int32Array.from(moment, (a) => {
      let i = Math.floor(a * steps); // the last step that begins before the moment, nearly
      while (gridAlpha(i, steps) > a) i--;
      while (gridAlpha(i + 1, steps) <= a) i++;
      return i + 1;
    });
    yield* runPlan(run, plan, Float64Array.from(plan, (i) => gridAlpha(i - 1, steps)), u);
  },

  /** Tokens are unmasked in random order, shared out evenly over the steps. */
  async *"first-hitting"(run, steps, uniform) {
    const L = run.z.length;
    const [moment, u] = [rand(L, uniform), rand(L, uniform)];
    const order = run.masked().sort((a, b) => moment[a] - moment[b]);
    const plan = new Int32Array(L);
    order.forEach((l, i) => (plan[l] = 1 + Math.floor((i * steps) / order.length)));
    yield* runPlan(run, plan, moment, u);
  },

  /** In each step keep the predictions that are surest. */
  async *confident(run, steps, uniform) {
    const n = run.masked().length;
    for (let i = 1; i <= steps; i++) {
      const places = run.masked();
      const quota = places.length - Math.floor((n * (steps - i)) / steps);
      if (quota === 0) continue;
      run.step = i;
      const u = rand(places.length, uniform);
      const drawn = await run.draw(places, gridAlpha(i - 1, steps), u);
      drawn.sort(([, , p], [, , q]) => q - p);
      for (const surest of drawn.slice(0, quota)) run.write(...surest);
      yield run.state();
    }
  },

  /** Ancestral sampling that may mask again what it wrote (ReMDM, with sigma capped at eta). */
  async *remask(run, steps, uniform, eta = 0.02) {
    const L = run.z.length;
    for (let i = 1; i <= steps; i++) {
      const [alphaT, alphaS] = [gridAlpha(i - 1, steps), gridAlpha(i, steps)];
      const sigma = alphaT > 0 ? Math.min(eta, (1 - alphaS) / alphaT) : 0;
      const chance = (alphaS - (1 - sigma) * alphaT) / (1 - alphaT);
      const [coin, u] = [rand(L, uniform), rand(L, uniform)];
      const masked = run.masked();
      const again = range(L).filter((l) => run.when[l] > 0 && coin[l] < sigma);
      run.step = i;
      await run.fill(masked.filter((l) => coin[l] < chance), alphaT, u);
      for (const l of again) if (!masked.includes(l)) run.z[l] = run.model.maskId;
      yield run.state();
    }
  },
};

/** alpha after i of the steps, from 0 to 1: torch.linspace(1, 0, steps + 1) to the last bit. */
function gridAlpha(i, steps) {
  if (i <= 0) return 0;
  if (i >= steps) return 1;
  const step = -1 / steps;
  const t = i < Math.floor((steps + 1) / 2) ? 1 + step * i : 0 - step * (steps - i);
  return 1 - t;
}

/** Yields the states of a text z (L ids) while its masks are filled, a network call each. */
export async function* sample(model, z, { sampler = "ancestral", steps, seed, ...options }) {
  const run = new Run(model, z, options);
  yield run.state();
  yield* SAMPLERS[sampler](run, steps, generator(seed));
}

/** The twin writes from left to right; yields its states. A prompt must come first. */
export function* sampleTwin(model, z, { seed, ...options }) {
  const run = new Run(model, z, options);
  const u = rand(z.length, generator(seed));
  const cache = [];
  yield run.state();
  for (let l = 0; l < z.length; l++) {
    run.step = ++run.calls;
    const logits = model.stepWithCache(l ? run.z[l - 1] : model.maskId, l, cache);
    if (run.z[l] !== model.maskId) continue;
    const p = adjust(logits, options);
    const token = draw(p, u[l]);
    run.write(l, token, p[token]);
    yield run.state();
  }
}

/** -log p of the tokens of x at `places`, which are masked in z, in nats. */
export async function maskedNats(model, x, z, places, t) {
  const rows = await model.predict(z, places, t);
  return rows.map((logits, i) => logSumExp(logits) - logits[x[places[i]]]);
}

/** An unbiased estimate of the NELBO of a text x, in nats, from k masked tokens.
 *
 * Returns {nats, places, each}: each token at `places` was masked, and costs each[i] nats there. */
export async function nelbo(model, x, k, uniform) {
  const moment = rand(x.length, uniform); // of being masked
  const places = range(x.length).sort((a, b) => moment[a] - moment[b]).slice(0, k);
  const z = Int32Array.from(x);
  for (const l of places) z[l] = model.maskId;
  const each = await maskedNats(model, x, z, places, moment[places[k - 1]]);
  return { nats: (each.reduce((a, b) => a + b) * x.length) / k, places, each };
}
