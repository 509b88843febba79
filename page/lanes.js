// Texts beside each other: one call or many, and the race against the twin.

import { $, make, oneAtATime, onSubmit, say, settings } from "./client.js";
import { bitsPerByte } from "./surprise.js";
import { TextView } from "./text.js";
import { template } from "./write.js";

const CALLS = [1, 4, 16, 96];
const four = lanes("#many", CALLS.map((n) => (n === 1 ? "1 call" : `${n} calls`)));
const two = lanes("#race", ["diffusion, in at most 48 calls", "GPT, from left to right"]);
const [askFour, askTwo] = [oneAtATime(), oneAtATime()];
let model;

/** A column for each title: {title, facts, view}. */
function lanes(section, titles) {
  return titles.map((title) => {
    const text = make("div", { class: "text small" });
    const facts = make("p", { class: "facts" }, "\u00a0");
    $(`${section} .lanes`).append(make("div", {}, make("h3", {}, title), text, facts));
    return { title, facts, view: new TextView(text) };
  });
}

/** What a form asks for: [the text with its masks, the seed]. */
function wanted(form) {
  const { prompt, seed } = settings(form);
  return [template(model.tokens, prompt, Math.min(96, model.config.context)), seed];
}

function report(lanes) {
  say(lanes.map(({ title, facts }) => `${title}: ${facts.textContent}`).join("; "));
}

/** The same seed, with more and more calls; then the model's own surprise at each result. */
async function many() {
  const [z, seed] = wanted($("#many form"));
  for (const { facts } of four) facts.textContent = "\u00a0";
  for (const [i, { view, facts }] of four.entries()) {
    let text;
    const options = { sampler: "first-hitting", steps: CALLS[i], seed };
    const written = await askFour("sample", { z, options }, (state) => {
      text = [...state.z];
      view.show(model.tokens, text);
    });
    const what = { windows: [text], seed, most: 24 };
    const measured = written && (await askFour("bound", what, ({ nats, error }) => {
      const figures = bitsPerByte(model, text, nats, error).join(" ± ");
      facts.textContent = `surprise: ${figures} bits per byte`;
    }));
    if (!measured) return;
  }
  report(four);
}

async function race() {
  const [z, seed] = wanted($("#race form"));
  const what = { z, options: { steps: 48, seed }, address: "kjv-twin.safetensors" };
  const finished = await askTwo("race", what, ({ done, total, lane, state, seconds }) => {
    const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
    if (total) two[1].facts.textContent = `${megabytes(done)} of ${megabytes(total)} MB`;
    if (total) return;
    two[lane].view.show(model.tokens, state.z);
    two[lane].facts.textContent = `${state.calls} calls, ${seconds.toFixed(2)} seconds`;
  });
  if (finished) report(two);
}

onSubmit($("#many form"), many);
onSubmit($("#race form"), race);

export function start(loaded) {
  model = loaded;
}
