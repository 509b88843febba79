// What all parts of the page share: the model's thread, messages to the reader, the address.

const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const waiting = new Map(); // number of a job -> what to do with its messages
let jobs = 0;

worker.onmessage = ({ data: { id, state, error, arithmetic } }) => {
  const { onState, resolve, reject, wanted } = waiting.get(id);
  if (state !== undefined) return wanted() && onState(state);
  waiting.delete(id);
  if (arithmetic) $("#arithmetic").textContent = arithmetic; // a graphics card can be lost
  if (error && wanted()) reject(new Error(error));
  else resolve(wanted());
};
worker.onerror = () => {
  const error = "A part of the page is missing, or this browser is too old: reload it.";
  for (const { reject } of waiting.values()) reject(new Error(error));
};

/** A part of the page does one thing at a time: each `ask(job, what, onState)` ends the one before.
 *
 * It starts a job of worker.js; onState gets each of its states. The promise is true at the end,
 * and false if the job was ended, which `ask.stop()` also does. */
export function oneAtATime() {
  let current = 0;
  const ask = (job, what, onState) => {
    ask.stop();
    const id = (current = ++jobs);
    return new Promise((resolve, reject) => {
      waiting.set(id, { onState, resolve, reject, wanted: () => current === id });
      worker.postMessage({ id, job, ...what });
    });
  };
  ask.stop = () => {
    if (current) worker.postMessage({ id: current, job: "stop" });
    current = 0;
  };
  return ask;
}

export const $ = (selector, root = document) => root.querySelector(selector);

/** An element with attributes and children; texts are inserted as texts, never as HTML. */
export function make(name, attributes = {}, ...children) {
  const svg = ["g", "line", "circle", "text", "path"].includes(name);
  const space = `http://www.w3.org/${svg ? "2000/svg" : "1999/xhtml"}`;
  const element = document.createElementNS(space, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Say something to a screen reader. */
export function say(text) {
  $("#live").textContent = text;
}

/** Do something; if it fails, the reader gets one sentence. */
export async function attempt(action) {
  let problem = "";
  try {
    await action();
  } catch (error) {
    problem = error.message;
  }
  $("#problem").textContent = problem;
  $("#problem").hidden = !problem;
}

export function onSubmit(form, action) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(action);
  });
}

/** The number in a field, never out of its range. */
function number({ valueAsNumber, defaultValue, min, max, step }) {
  const value = Number.isFinite(valueAsNumber) ? valueAsNumber : Number(defaultValue);
  const inside = Math.min(Math.max(value, Number(min)), Number(max));
  return step === "1" ? Math.round(inside) : inside;
}

document.addEventListener("change", ({ target }) => {
  if (target.type === "number") target.value = number(target); // so that one sees what is used
});

/** The settings in a form, each as its type says. */
export function settings(form) {
  const fields = [...form.elements].filter(({ name }) => name);
  const value = (field) => (/number|range/.test(field.type) ? number(field) : field.value);
  return Object.fromEntries(fields.map((field) => [field.name, value(field)]));
}

/** Beside a slider stands its value. */
export function showValue(field) {
  const value = field.closest("label")?.querySelector(".value");
  if (value) value.textContent = field.value;
}

export function nextSeed(form) {
  form.seed.value = (settings(form).seed + 1) % 2 ** 32;
}

/** The address of the page holds its state: #write&seed=7&... */
export function readAddress() {
  const [part, ...rest] = location.hash.slice(1).split("&");
  return { part, values: Object.fromEntries(new URLSearchParams(rest.join("&"))) };
}

export function writeAddress(part, values) {
  history.replaceState(null, "", `#${part}&${new URLSearchParams(values)}`);
}
