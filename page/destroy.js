// Destroy: each word of a sentence has a moment at which it is masked. Then the model writes again.

import { $, attempt, make, nextSeed, oneAtATime, say, settings } from "./client.js";
import { generator } from "./sampling.js";
import { TextView } from "./text.js";

const form = $("#destroy form");
const view = new TextView($("#destroy .text"));
const facts = $("#destroy .facts");
const ask = oneAtATime();
let model;
let x = []; // the sentence
let moments = []; // of being masked, one for each token

/** Another sentence, or other moments. */
function begin() {
  const { sentence, seed } = settings(form);
  x = model.tokens.encode(sentence).slice(0, model.config.context);
  const uniform = generator(seed);
  moments = x.map(uniform);
  const ticks = moments.map(() => make("i"));
  ticks.forEach((tick, l) => (tick.style.left = `${100 * moments[l]}%`));
  $("#moments").replaceChildren(...ticks);
  fall();
}

/** What is left of the sentence at time t. */
function fall() {
  ask.stop();
  const { t } = settings(form);
  const pieces = model.tokens.pieces(x);
  const kind = (l) => (moments[l] <= t ? "mask" : "");
  view.draw(pieces.map((piece, l) => ({ piece, ghost: piece, kind: kind(l) })));
  const masked = moments.filter((moment) => moment <= t).length;
  const average = (t * x.length).toFixed(1);
  facts.textContent = `${masked} of ${x.length} tokens are masked; ${average} on average`;
}

/** Write the masks again, one call each, in random order. */
async function rewrite() {
  const { t, seed } = settings(form);
  const { maskId } = model.tokens;
  const z = x.map((id, l) => (moments[l] <= t ? maskId : id));
  if (!z.includes(maskId)) return;
  const options = { sampler: "first-hitting", steps: z.length, seed: seed + Math.round(1000 * t) };
  await ask("sample", { z, options }, (state) => {
    const pieces = model.tokens.pieces(state.z);
    const kind = (id, l) => (state.when[l] === 0 ? "" : id === x[l] ? "right" : "other");
    view.draw(Array.from(state.z, (id, l) => {
      return { piece: pieces[l], kind: id === maskId ? "mask" : kind(id, l) };
    }));
    const right = x.filter((id, l) => state.when[l] > 0 && state.z[l] === id).length;
    const written = state.when.filter((step) => step > 0).length;
    facts.textContent = `${right} of ${written} tokens are again what they were`;
    if (!state.z.includes(maskId)) say(`Written again: ${model.tokens.decode(state.z)}`);
  });
}

form.addEventListener("submit", (event) => event.preventDefault());
form.sentence.addEventListener("input", begin);
form.t.addEventListener("input", fall);
form.t.addEventListener("change", () => attempt(rewrite));
$("#other-moments").addEventListener("click", () => {
  nextSeed(form);
  begin();
});

export function start(loaded) {
  model = loaded;
  begin();
}
