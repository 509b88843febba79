// One call or many: the same seed, and how much the words of one call may know of each other.

import { $, ask, complain, make, say, settings } from "./client.js";
import { TextView } from "./text.js";
import { bitsPerByte } from "./surprise.js";
import { template } from "./write.js";

const form = $("#many form");
const CALLS = [1, 4, 16, 96];
let model;
let job;
const lanes = CALLS.map((steps) => {
  const text = make("div", { class: "text small" });
  const facts = make("p", { class: "facts" }, "\u00a0");
  const title = make("h3", {}, `${steps} ${steps === 1 ? "call" : "calls"}`);
  $("#many .lanes").append(make("div", {}, title, text, facts));
  return { steps, facts, view: new TextView(text) };
});

async function run() {
  job?.stop();
  complain("");
  const { prompt, seed } = settings(form);
  const mine = (job = { stop: () => (job = null) });
  const length = Math.min(96, model.config.context);
  try {
    const z = template(model.tokens, prompt, length);
    for (const { facts } of lanes) facts.textContent = "\u00a0";
    for (const { steps, view, facts } of lanes) {
      let last;
      const options = { sampler: "first-hitting", steps, seed };
      const writing = ask("sample", { z, options }, (state) => {
        last = state;
        const pieces = model.tokens.pieces(state.z);
        view.draw(Array.from(state.z, (id, l) => {
          return id === model.tokens.maskId ? { piece: "", kind: "mask" } : { piece: pieces[l] };
        }));
      });
      mine.stop = writing.stop;
      await writing.done;
      if (job !== mine) return;
      const measuring = ask("bound", { windows: [[...last.z]], seed, most: 24 }, ({ nats, error }) => {
        const [bits, plusMinus] = bitsPerByte(model, [...last.z], nats, error);
        facts.textContent = `surprise: ${bits} ± ${plusMinus} bits per byte`;
      });
      mine.stop = measuring.stop;
      await measuring.done;
      if (job !== mine) return;
    }
    say(lanes.map(({ steps, facts }) => `${steps} calls, ${facts.textContent}`).join("; "));
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
