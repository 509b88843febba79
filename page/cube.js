// The cube: three words, masked or not, are its eight corners; to write them is to walk along it.

import { $, ask, complain, make, say, settings } from "./client.js";
import { bare } from "./text.js";

const form = $("#cube form");
const PLACES = { 0: [300, 24], 1: [120, 120], 2: [300, 120], 4: [480, 120] }; // what is masked: bits
Object.assign(PLACES, { 3: [120, 230], 5: [300, 230], 6: [480, 230], 7: [300, 326] });
const ORDERS = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
const bits = (nats) => (nats / Math.LN2).toFixed(1);
let model;
let words = []; // the three
let nats = null; // [corner][word]: -log p of a masked word there
let path = [7]; // corners where the reader has been
let job;

/** A new sentence: the words in [brackets] are the three. */
async function begin() {
  job?.stop();
  const [ids, places] = [[], []];
  for (const part of settings(form).sentence.match(/ ?\[[^\]]*\]|[^[]+(?=\s\[)|[^[]+|\[/g) ?? []) {
    const word = part.match(/^( ?)\[([^\]]*)\]$/);
    const some = model.tokens.encode(word ? word[1] + word[2] : part);
    if (word && some.length === 1) places.push(ids.length);
    ids.push(...some);
  }
  if (places.length !== 3 || ids.length > model.config.context) {
    $("#cube .facts").textContent = "Put exactly three words into [brackets], each of them one token.";
    return;
  }
  words = places.map((l) => bare(model.tokens.decode([ids[l]])));
  job = ask("corners", { x: ids, places }, (state) => {
    nats = state;
    path = [start7()];
    draw();
  });
  await job.done.catch((error) => complain(error.message));
}

/** Where walks begin: all is masked but what is given as a prompt. */
const start7 = () => 7 & ~given();
const given = () => [0, 1, 2].reduce((sum, i) => sum | ($(`#given-${i}`).checked << i), 0);

/** -log p of what is masked at `from` and not at `to`, in nats. */
const price = (from, to) => [0, 1, 2].reduce((sum, i) => sum + ((from & ~to) >> i) % 2 * nats[from][i], 0);

/** What a walk costs that unmasks the words one by one, in this order. */
function walk(order) {
  let [corner, sum] = [start7(), 0];
  for (const i of order.filter((i) => (corner >> i) & 1)) {
    sum += nats[corner][i];
    corner &= ~(1 << i);
  }
  return sum;
}

/** The bound for a sampler with T steps: toy.py's exact_nelbo_in_steps, for all masks of `start`. */
function bound(T) {
  const all = start7();
  const size = (corner) => [0, 1, 2].filter((i) => (corner >> i) & 1).length;
  let sum = 0;
  for (let step = 1; step <= T; step++) {
    const t = step / T;
    for (let corner = 1; corner < 8; corner++) {
      if (corner & ~all) continue;
      const chance = t ** size(corner) * (1 - t) ** (size(all) - size(corner)); // of being there
      sum += (1 / step) * chance * price(corner, 0); // 1 / step: the share that is unmasked
    }
  }
  return sum;
}

function draw() {
  const all = start7();
  const lines = [];
  const corners = [];
  for (let corner = 0; corner < 8; corner++) {
    const inside = !(corner & ~all);
    const [x, y] = PLACES[corner];
    for (const i of [0, 1, 2].filter((i) => (corner >> i) & 1)) {
      const to = corner & ~(1 << i);
      const [u, v] = PLACES[to];
      const walked = path.some((c, n) => c === corner && path[n + 1] === to);
      const group = make("g", { class: `edge${walked ? " walked" : ""}${inside ? "" : " outside"}` });
      group.append(make("line", { x1: x, y1: y, x2: u, y2: v }));
      const k = 0.36;
      if (inside) group.append(make("text", { x: x + (u - x) * k, y: y + (v - y) * k + 4 }, bits(nats[corner][i])));
      lines.push(group);
    }
    const label = words.map((word, i) => ((corner >> i) & 1 ? "▢" : word)).join(" ");
    const here = path.at(-1) === corner;
    const reachable = inside && (corner === all || (path.at(-1) & corner) === corner);
    const group = make("g", { class: `corner${here ? " here" : ""}${inside ? "" : " outside"}` });
    group.append(make("circle", { cx: x, cy: y, r: here ? 8 : 5 }));
    group.append(make("text", { x, y: y + (corner === 0 ? -12 : 22) }, label));
    if (reachable && !here) {
      group.setAttribute("role", "button");
      group.setAttribute("tabindex", 0);
      group.setAttribute("aria-label", corner === all ? "begin again" : `go to ${label}, ${bits(price(path.at(-1), corner))} bits`);
      const step = () => go(corner);
      group.addEventListener("click", step);
      group.addEventListener("keydown", ({ key }) => key === "Enter" && step());
    }
    corners.push(group);
  }
  $("#cube-picture").replaceChildren(...lines, ...corners);
  const names = words.map((word, i) => [`#given-${i}`, word]);
  for (const [id, word] of names) $(`${id} + span`).textContent = word;
  const steps = 2 ** settings(form).log;
  $("#cube-steps").textContent = steps;
  const walks = ORDERS.filter((order) => order.join() === [...order.filter((i) => (all >> i) & 1), ...order.filter((i) => !((all >> i) & 1))].join());
  const unique = [...new Map(walks.map((order) => [order.filter((i) => (all >> i) & 1).join(), order])).values()];
  const sums = unique.map(walk);
  const mean = sums.reduce((a, b) => a + b, 0) / sums.length;
  $("#walks").replaceChildren(...unique.map((order, n) => {
    const button = make("button", { type: "button" }, order.filter((i) => (all >> i) & 1).map((i) => words[i]).join(" → ") || "nothing is left to write");
    button.addEventListener("click", () => {
      path = [all];
      for (const i of order) if ((path.at(-1) >> i) & 1) path.push(path.at(-1) & ~(1 << i));
      draw();
    });
    return make("li", {}, button, make("span", {}, `${bits(sums[n])} bits`));
  }));
  const cost = path.slice(1).reduce((sum, to, n) => sum + price(path[n], to), 0);
  $("#cube .facts").textContent = `Your walk so far: ${bits(cost)} bits. All walks on average, which is the bound: ${bits(mean)} bits. With T = ${steps}: ${bits(bound(steps))} bits.`;
}

function go(corner) {
  path = corner === start7() ? [corner] : [...path, corner];
  draw();
  say($("#cube .facts").textContent);
  ($("#cube-picture [tabindex]") ?? form.sentence).focus({ preventScroll: true });
}

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", ({ target }) => {
  if (target === form.sentence) return begin();
  if (!nats) return;
  if (target.type === "checkbox") path = [start7()];
  draw();
});

export function start(loaded) {
  model = loaded;
  nats = null;
  begin();
}
