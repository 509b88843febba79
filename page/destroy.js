// Destroy: each word of a sentence has a moment at which it is masked. Then the model writes again.

import { $, ask, complain, make, say, settings } from "./client.js";
import { generator } from "./sampling.js";
import { TextView } from "./text.js";

const form = $("#destroy form");
const view = new TextView($("#destroy .text"));
let model;
let x = []; // the sentence
let moments = []; // of being masked, one for each token
let job;

/** Another sentence, or other moments. */
function begin() {
  job?.stop();
  const { sentence, seed } = settings(form);
  x = model.tokens.encode(sentence).slice(0, model.config.context);
  const uniform = generator(seed);
  moments = x.map(() => uniform());
  $("#moments").replaceChildren(...moments.map((moment) => {
    const tick = make("i");
    tick.style.left = `${100 * moment}%`;
    return tick;
  }));
  fall();
}

/** What is left of the sentence at time t. */
function fall() {
  job?.stop();
  const { t } = settings(form);
  const pieces = model.tokens.pieces(x);
  view.draw(x.map((_, l) => {
    const masked = moments[l] <= t;
    return { piece: masked ? "" : pieces[l], ghost: pieces[l], kind: masked ? "mask" : "" };
  }));
  const n = moments.filter((moment) => moment <= t).length;
  $("#destroy .facts").textContent = `${n} of ${x.length} tokens are masked; on average ${(t * x.length).toFixed(1)} would be`;
}

/** Write the masks again, one after the other, the last that fell first. */
async function rewrite() {
  job?.stop();
  const { t, seed } = settings(form);
  const z = x.map((id, l) => (moments[l] <= t ? model.tokens.maskId : id));
  if (!z.includes(model.tokens.maskId)) return;
  const options = { sampler: "first-hitting", steps: z.length, seed: seed + Math.round(1000 * t) };
  job = ask("sample", { z, options }, (state) => {
    const pieces = model.tokens.pieces(state.z);
    view.draw(Array.from(state.z, (id, l) => {
      if (id === model.tokens.maskId) return { piece: "", kind: "mask" };
      const kind = state.when[l] === 0 ? "" : id === x[l] ? "right" : "other";
      return { piece: pieces[l], kind };
    }));
    const written = state.when.filter((step) => step > 0).length;
    const right = x.filter((id, l) => state.when[l] > 0 && state.z[l] === id).length;
    $("#destroy .facts").textContent = `${right} of ${written} tokens are again what they were`;
    if (!state.z.includes(model.tokens.maskId)) say(`Written again: ${model.tokens.decode(state.z)}`);
  });
  await job.done.catch((error) => complain(error.message));
}

form.addEventListener("submit", (event) => event.preventDefault());
form.sentence.addEventListener("input", begin);
form.t.addEventListener("input", fall);
form.t.addEventListener("change", rewrite);
$("#other-moments").addEventListener("click", () => {
  form.seed.value = (settings(form).seed + 1) % 2 ** 32;
  begin();
});

export function start(loaded) {
  model = loaded;
  begin();
}
