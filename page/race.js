// The race: the diffusion model and a GPT of the same size write, with the same time for both.

import { $, ask, complain, make, say, settings } from "./client.js";
import { TextView } from "./text.js";
import { template } from "./write.js";

const form = $("#race form");
let model;
let job;
const lanes = ["diffusion, 48 steps", "GPT, from left to right"].map((name) => {
  const text = make("div", { class: "text small" });
  const facts = make("p", { class: "facts" }, "\u00a0");
  $("#race .lanes").append(make("div", {}, make("h3", {}, name), text, facts));
  return { name, facts, view: new TextView(text) };
});

async function run() {
  job?.stop();
  complain("");
  const { prompt, seed } = settings(form);
  try {
    const z = template(model.tokens, prompt, Math.min(96, model.config.context));
    const options = { steps: 48, seed };
    const what = { z, options, address: "kjv-twin.safetensors" };
    job = ask("race", what, ({ done, total, lane, state, seconds }) => {
      if (total) {
        const megabytes = [done, total].map((n) => (n / 1e6).toFixed(1));
        lanes[1].facts.textContent = `${megabytes.join(" of ")} MB`;
        return;
      }
      const { view, facts } = lanes[lane];
      const pieces = model.tokens.pieces(state.z);
      view.draw(Array.from(state.z, (id, l) => {
        return id === model.tokens.maskId ? { piece: "", kind: "mask" } : { piece: pieces[l] };
      }));
      facts.textContent = `${state.calls} calls, ${seconds.toFixed(2)} seconds`;
    });
    await job.done;
    say(lanes.map(({ name, facts }) => `${name}: ${facts.textContent}`).join("; "));
  } catch (error) {
    complain(error.message);
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});

export function start(loaded) {
  model = loaded;
}
