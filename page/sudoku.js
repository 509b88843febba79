// Sudoku: a grid is a text of 36 digits, a puzzle is a text with masks, and to solve is to sample.

import { $, attempt, make, nextSeed, oneAtATime, onSubmit, say, settings } from "./client.js";
import { generator } from "./sampling.js";

const BOXES = { 4: [2, 2], 6: [2, 3], 9: [3, 3] }; // size of the grid: height, width of a box
const size = 6;
const MASK = 256; // after the 256 bytes, as a digit's token is its byte
const ONE = "1".charCodeAt();
const form = $("#sudoku form");
const facts = $("#sudoku .facts");
const ask = oneAtATime();
let z = Array(size * size).fill(MASK);
let given = new Set(); // the cells that are not the model's

const cells = z.map((_, l) => {
  const [row, column] = [Math.floor(l / size), l % size];
  const [height, width] = BOXES[size];
  const edges = `${row % height ? "" : "top"} ${column % width ? "" : "left"}`;
  const cell = make("button", { type: "button", class: edges });
  cell.addEventListener("click", () => give(l, z[l] === MASK ? 1 : (z[l] - ONE + 2) % (size + 1)));
  cell.addEventListener("keydown", (event) => {
    const to = l + { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -size, ArrowDown: size }[event.key];
    const digit = ["Backspace", "Delete"].includes(event.key) ? 0 : Number(event.key);
    if (to >= 0) cells[to]?.focus();
    else if (digit <= size && event.key !== " ") give(l, digit);
    else return;
    event.preventDefault();
  });
  return cell;
});
$("#sudoku .grid").append(...cells);

/** The units that two cells share: "row", "column", "box". */
function shared(a, b) {
  const [height, width] = BOXES[size];
  const row = (l) => Math.floor(l / size);
  const box = (l) => `${Math.floor(row(l) / height)} ${Math.floor((l % size) / width)}`;
  const names = { row, column: (l) => l % size, box };
  return Object.keys(names).filter((name) => names[name](a) === names[name](b));
}

/** [the cells that break a rule, what is wrong]. */
function mistakes(z) {
  const wrong = new Set();
  let sentence = "";
  for (let a = 0; a < z.length; a++) {
    for (let b = a + 1; b < z.length; b++) {
      const [unit] = z[a] !== MASK && z[a] === z[b] ? shared(a, b) : [];
      if (!unit) continue;
      for (const l of [a, b]) wrong.add(l);
      sentence ||= `two ${z[a] - ONE + 1}s in one ${unit}`;
    }
  }
  return [wrong, sentence];
}

/** Show a grid; marks: for each mask the probabilities of the digits. */
function draw(marks = new Map()) {
  const [wrong] = mistakes(z);
  cells.forEach((cell, l) => {
    const masked = z[l] === MASK;
    const digit = masked ? "" : String(z[l] - ONE + 1);
    const pencil = (p, i) => {
      const mark = make("i", {}, String(i + 1));
      mark.style.setProperty("--share", p);
      return mark;
    };
    cell.replaceChildren(...(masked ? (marks.get(l) ?? []).map(pencil) : [digit]));
    cell.classList.toggle("given", given.has(l));
    cell.classList.toggle("wrong", wrong.has(l));
    const place = `row ${Math.floor(l / size) + 1}, column ${(l % size) + 1}`;
    cell.setAttribute("aria-label", `${place}: ${digit || "empty"}`);
  });
}

/** Fill the masks, or with no options say only what is expected there. False if it was ended. */
async function run(options) {
  const what = { z, options, address: "sudoku.safetensors", digits: [ONE, size] };
  return ask("grid", what, (state) => {
    if (state.total) return (facts.textContent = `${(state.done / 1e6).toFixed(1)} MB`);
    z = Array.from(state.z);
    draw(state.marks);
    const left = z.filter((id) => id === MASK).length;
    facts.textContent = `${given.size} given, ${left} empty`;
  });
}

/** Only the given digits stay; what does the model expect? */
async function expect() {
  z = z.map((id, l) => (given.has(l) ? id : MASK));
  draw();
  const [, sentence] = mistakes(z);
  if (sentence) ask.stop();
  facts.textContent = sentence && `No grid has that: ${sentence}.`;
  if (!sentence) await run();
}

function give(l, digit) {
  ask.stop();
  z[l] = digit ? ONE + digit - 1 : MASK;
  given[digit ? "add" : "delete"](l);
  attempt(expect);
}

async function solve() {
  const { sampler, seed } = settings(form);
  await expect();
  if (mistakes(z)[1] || !(await run({ sampler, seed, steps: size * size }))) return;
  const [, sentence] = mistakes(z);
  facts.textContent = sentence ? `Wrong: ${sentence}.` : "Every rule is kept.";
  say(facts.textContent);
}

/** The model writes a grid from nothing, and all but some digits are erased. */
async function puzzle() {
  const { givens, seed } = settings(form);
  [z, given] = [z.fill(MASK), new Set()];
  if (!(await run({ sampler: "first-hitting", seed, steps: size * size }))) return;
  const uniform = generator(seed);
  const order = z.map((_, l) => [uniform(), l]).sort(([a], [b]) => a - b);
  given = new Set(order.slice(0, givens).map(([, l]) => l));
  await expect();
}

onSubmit(form, solve);
$("#puzzle").addEventListener("click", () => {
  nextSeed(form);
  attempt(puzzle);
});
$("#clear").addEventListener("click", () => {
  given = new Set();
  attempt(expect);
});
draw();
