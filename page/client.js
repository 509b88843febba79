// What all parts of the page share: the model's thread, what is said aloud, the address.

const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const waiting = new Map(); // id of a job -> what to do with its messages
let jobs = 0;

worker.onmessage = ({ data: { id, state, done, error } }) => {
  const { onState, resolve, reject } = waiting.get(id);
  if (state !== undefined) return onState(state);
  waiting.delete(id);
  if (error) reject(new Error(error));
  else resolve(done);
};
worker.onerror = () => {
  for (const { reject } of waiting.values()) {
    reject(new Error("A part of the page is missing, or this browser is too old: reload the page."));
  }
};

/** Start a job of worker.js: {done: a promise, stop()}. onState gets each of its states. */
export function ask(job, what, onState) {
  const id = ++jobs;
  let wanted = true;
  const done = new Promise((resolve, reject) => {
    waiting.set(id, { onState: (state) => wanted && onState(state), resolve, reject });
    worker.postMessage({ id, job, ...what });
  });
  const stop = () => {
    wanted = false;
    worker.postMessage({ id, job: "stop" });
  };
  return { done, stop };
}

export const $ = (selector, root = document) => root.querySelector(selector);

/** An element with attributes and children; texts are inserted as texts, never as HTML. */
export function make(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "line", "circle", "text", "path"].includes(name);
  const element = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Say something to a screen reader. */
export function say(text) {
  $("#live").textContent = text;
}

/** One sentence for a reader who can do something about it; "" takes it away. */
export function complain(text) {
  $("#problem").textContent = text;
  $("#problem").hidden = !text;
}

/** The settings in a form, each as its type says, a number never out of its range. */
export function settings(form) {
  const fields = [...form.elements].filter(({ name }) => name);
  return Object.fromEntries(fields.map((field) => {
    if (!["number", "range"].includes(field.type)) return [field.name, field.value];
    const value = Number.isFinite(field.valueAsNumber) ? field.valueAsNumber : Number(field.defaultValue);
    const inside = Math.min(Math.max(value, Number(field.min)), Number(field.max));
    return [field.name, field.step === "1" ? Math.round(inside) : inside];
  }));
}

/** Beside a slider stands its value. */
export function showValue(field) {
  const output = field.closest("label")?.querySelector("output");
  if (output) output.value = field.value;
}

/** The address of the page holds its state: #write&seed=7&... */
export function readAddress() {
  const [part, ...rest] = location.hash.slice(1).split("&");
  return { part, values: Object.fromEntries(new URLSearchParams(rest.join("&"))) };
}

export function writeAddress(part, values) {
  history.replaceState(null, "", `#${part}&${new URLSearchParams(values)}`);
}
