// The cube: three words, masked or not, are its eight corners; to write them is to walk along it.

import { $, attempt, make, oneAtATime, say, settings } from "./client.js";
import { bare } from "./text.js";

const form = $("#cube form");
const ask = oneAtATime();
// Corner 0b101: the first and the third word are masked. Where each is drawn:
const [LEFT, MIDDLE, RIGHT, ROWS] = [120, 300, 480, [24, 120, 230, 326]];
const COLUMNS = [MIDDLE, LEFT, MIDDLE, LEFT, RIGHT, MIDDLE, RIGHT, MIDDLE];
let model;
let words = []; // the three
let nats = null; // [corner][word]: -log p of a masked word there
let walked = []; // the corners where the reader has been

const PLACES = COLUMNS.map((x, corner) => [x, ROWS[masked(corner).length]]);

function masked(corner) {
  return [0, 1, 2].filter((i) => (corner >> i) & 1);
}
const without = (corner, i) => corner & ~(1 << i);
const bits = (nats) => (nats / Math.LN2).toFixed(1);
/** Where walks begin: all is masked but what is given as a prompt. */
const bottom = () => [0, 1, 2].reduce((sum, i) => sum + (!$(`#given-${i}`).checked << i), 0);
/** What a step costs, or a leap over several edges at once, in nats. */
const price = (from, to) => masked(from & ~to).reduce((sum, i) => sum + nats[from][i], 0);
const cost = (path) => path.slice(1).reduce((sum, to, n) => sum + price(path[n], to), 0);

/** All walks from a corner to the top, word by word. */
function walks(corner) {
  const on = masked(corner).flatMap((i) => walks(without(corner, i)));
  return on.length ? on.map((walk) => [corner, ...walk]) : [[corner]];
}

/** The bound for a sampler with T steps, in nats: toy.py's exact_nelbo_in_steps. */
function bound(T) {
  let sum = 0;
  const all = bottom();
  for (let step = 1; step <= T; step++) {
    for (let corner = 1; corner < 8; corner++) {
      if (corner & ~all) continue;
      const [k, n] = [masked(corner).length, masked(all).length];
      const chance = (step / T) ** k * (1 - step / T) ** (n - k); // of being at this corner
      sum += (chance * price(corner, 0)) / step; // 1 / step: the share of masks that it unmasks
    }
  }
  return sum;
}

/** Another sentence. The words in [brackets] are the three. */
async function begin() {
  const [ids, places] = [[], []];
  for (const part of settings(form).sentence.split(/( ?\[[^\]]*\])/)) {
    const [, word] = part.match(/^( ?\[.*)\]$/) ?? [];
    const some = model.tokens.encode(word ? word.replace("[", "") : part);
    if (word && some.length === 1) places.push(ids.length);
    ids.push(...some);
  }
  if (places.length !== 3 || ids.length > model.config.context) {
    ask.stop();
    $("#cube .facts").textContent = "Put three words into [brackets], each of them one token.";
    return;
  }
  await ask("corners", { x: ids, places }, (state) => {
    words = places.map((l) => bare(model.tokens.decode([ids[l]])));
    [nats, walked] = [state, [bottom()]];
    draw();
  });
}

function edge(from, i) {
  const to = without(from, i);
  const [[x1, y1], [x2, y2]] = [PLACES[from], PLACES[to]];
  const taken = walked.some((corner, n) => corner === from && walked[n + 1] === to);
  const outside = from & ~bottom();
  const group = make("g", { class: `edge ${taken ? "walked" : ""} ${outside ? "outside" : ""}` });
  const at = { x: x1 + (x2 - x1) * 0.36, y: y1 + (y2 - y1) * 0.36 + 4 };
  group.append(make("line", { x1, y1, x2, y2 }), make("text", at, bits(nats[from][i])));
  return group;
}

function cornerOf(corner) {
  const [x, y] = PLACES[corner];
  const here = walked.at(-1);
  const label = words.map((word, i) => ((corner >> i) & 1 ? "▢" : word)).join(" ");
  const outside = corner & ~bottom();
  const kind = corner === here ? "here" : outside ? "outside" : "";
  const group = make("g", { class: `corner ${kind}` });
  group.append(make("circle", { cx: x, cy: y, r: corner === here ? 8 : 5 }));
  group.append(make("text", { x, y: y + (corner === 0 ? -13 : 23) }, label));
  const back = corner === bottom();
  if (corner === here || outside || (!back && corner & ~here)) return group;
  const name = back ? "begin again" : `go to ${label}: ${bits(price(here, corner))} bits`;
  for (const [key, value] of Object.entries({ role: "button", tabindex: 0, "aria-label": name })) {
    group.setAttribute(key, value);
  }
  const go = () => {
    walked = back ? [corner] : [...walked, corner];
    draw();
    say($("#cube .facts").textContent);
    $("#cube-picture [tabindex]").focus({ preventScroll: true });
  };
  group.addEventListener("click", go);
  group.addEventListener("keydown", ({ key }) => ["Enter", " "].includes(key) && go());
  return group;
}

function draw() {
  const corners = PLACES.map((_, corner) => corner);
  const edges = corners.flatMap((corner) => masked(corner).map((i) => edge(corner, i)));
  $("#cube-picture").replaceChildren(...edges, ...corners.map(cornerOf));
  words.forEach((word, i) => ($(`#given-${i} + span`).textContent = word));
  const T = ($("#cube-steps").textContent = 2 ** settings(form).log);
  const all = walks(bottom());
  $("#walks").replaceChildren(...all.map((walk) => {
    const order = walk.slice(1).map((corner, n) => words[masked(walk[n] & ~corner)[0]]);
    const button = make("button", { type: "button" }, order.join(" → ") || "nothing to write");
    button.addEventListener("click", () => {
      walked = walk;
      draw();
    });
    return make("li", {}, button, `${bits(cost(walk))} bits`);
  }));
  const mean = all.reduce((sum, walk) => sum + cost(walk), 0) / all.length;
  const yours = `Your walk so far: ${bits(cost(walked))} bits.`;
  const average = `The bound, the average over all walks: ${bits(mean)} bits`;
  const inSteps = `for a sampler with T = ${T}: ${bits(bound(T))} bits`;
  $("#cube .facts").textContent = `${yours} ${average}; ${inSteps}.`;
}

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", ({ target }) => {
  if (target === form.sentence) return attempt(begin);
  if (!nats) return;
  if (target.type === "checkbox") walked = [bottom()];
  draw();
});

export function start(loaded) {
  [model, nats] = [loaded, null];
  attempt(begin);
}
