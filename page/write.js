// Write: a page of masks turns into text. Each state on the way is kept, to step back and forth.

import { $, attempt, make, nextSeed, oneAtATime, onSubmit, say } from "./client.js";
import { readAddress, settings, showValue, writeAddress } from "./client.js";
import { certaintyColor, orderColors, probabilityColor } from "./colors.js";
import { TextView } from "./text.js";

const form = $("#write form");
const timeline = $("#timeline");
const typing = $("#typing");
const view = new TextView($("#write .text"), { choose, point });
const [ask, askGuesses] = [oneAtATime(), oneAtATime()];
let model;
let states = []; // of the run; each {z, when, probability, step, calls}
let at = 0; // which of them is shown
let running = false;
let playing = 0; // a replay: when its next state is due
let pointed = null; // the token under the pointer
let guesses = {}; // {key: a text with masks, found: what the model predicts there}

/** Texts to keep and masks to fill -> ids. "_" is a mask, "\_" an underscore, as in the window. */
export function template(tokens, prompt, length) {
  const parts = prompt.match(/_+|(?:\\_|[^_])+/g) ?? [];
  const ids = parts.flatMap((part, i) => {
    if (part[0] === "_") return Array(part.length).fill(tokens.maskId);
    const text = part.replaceAll("\\_", "_");
    const beforeMask = i + 1 === parts.length || parts[i + 1][0] === "_"; // which brings its space
    return tokens.encode(beforeMask ? text.replace(/ $/, "") : text);
  });
  const n = ids.length;
  if (n > length) throw new Error(`The prompt has ${n} tokens, and only ${length} fit.`);
  return [...ids, ...Array(length - n).fill(tokens.maskId)];
}

/** Fill the masks of z, and follow the run as it goes. */
async function run(z) {
  const { steps, sampler, temperature, topP, seed } = settings(form);
  [playing, running] = [0, true];
  const options = { steps, sampler, temperature, topP, seed };
  const finished = await ask("sample", { z, options }, (state) => {
    if (state.calls === 0) [states, at] = [[], 0]; // until then the last run is shown
    states.push(state);
    if (at >= states.length - 2) at = states.length - 1; // unless the reader has gone elsewhere
    draw();
  });
  if (!finished) return;
  running = false;
  draw();
  say(`Written: ${model.tokens.decode(states.at(-1).z)}`);
}

/** Write anew, from the prompt. */
async function again() {
  const { prompt, ...rest } = settings(form);
  const z = template(model.tokens, prompt, rest.length);
  writeAddress("write", { prompt, ...rest });
  await run(z);
}

/** The text as the reader has changed it: a new beginning. */
function edit(z) {
  ask.stop();
  const given = { when: new Int32Array(z.length), probability: new Float64Array(z.length).fill(1) };
  states = [{ z: Int32Array.from(z), step: 0, calls: 0, ...given }];
  [at, playing, running] = [0, 0, false];
  draw();
}

/** A click on a token: a word is masked again, into a mask one can type. */
function choose(l) {
  const z = [...states[at].z];
  const { maskId } = model.tokens;
  if (z[l] !== maskId) {
    z[l] = maskId;
    edit(z);
    return say("Masked.");
  }
  place(typing, view.tokens[l].getBoundingClientRect());
  typing.word.value = "";
  typing.word.focus();
  typing.onsubmit = (event) => {
    event.preventDefault();
    const text = typing.word.value;
    const ids = model.tokens.encode(l > 0 && /^[\p{L}\p{N}]/u.test(text) ? ` ${text}` : text);
    let room = 0; // masks from here on, as many as the words need
    while (room < ids.length && z[l + room] === maskId) room++;
    z.splice(l, room, ...ids);
    typing.hidden = true;
    edit(z.slice(0, model.config.context));
    view.focus(l);
  };
}

/** Put a card below a box of the page, inside the window. */
function place(card, box) {
  card.hidden = false;
  const width = document.documentElement.clientWidth;
  card.style.left = `${scrollX + Math.max(8, Math.min(box.left, width - card.offsetWidth - 8))}px`;
  card.style.top = `${scrollY + box.bottom + 6}px`;
}

/** What the model predicts at each mask of the text that is shown; nothing until it is known. */
function predictions() {
  const { z } = states[at];
  const key = z.join();
  if (running) return undefined;
  if (guesses.key !== key) {
    guesses = { key };
    attempt(() => askGuesses("candidates", { z }, (found) => {
      guesses = { key, found };
      draw();
    }));
  }
  return guesses.found;
}

/** A card at the token where the reader points. */
function point(l) {
  pointed = l;
  const card = $("#card");
  const state = states[at];
  card.hidden = !state || l === null || l >= state.z.length || !typing.hidden;
  if (card.hidden) return;
  const percent = (p) => `${(100 * p).toFixed(1)} %`;
  const row = (id, text, share = 0) => {
    const name = `“${model.tokens.decode([id]).replaceAll("\n", "↵")}”`;
    const line = make("p", {}, make("span", {}, name), make("span", {}, text));
    line.style.setProperty("--share", share);
    return line;
  };
  const [id, when] = [state.z[l], state.when[l]];
  const drawn = when ? `${percent(state.probability[l])}, step ${when}` : "given";
  const found = id === model.tokens.maskId ? predictions()?.get(l) ?? [] : null;
  const rows = found ? found.map(({ id, p }) => row(id, percent(p), p)) : [row(id, drawn)];
  card.replaceChildren(...(rows.length ? rows : ["masked"]));
  place(card, view.tokens[l].getBoundingClientRect());
}

/** How token l looks in the state that is shown. */
function look(l, state, pieces, chosen, found) {
  const { maskId } = model.tokens;
  const [when, last] = [state.when[l], states.at(-1)];
  const token = { piece: pieces.now[l], ghost: pieces.end?.[l] };
  if (state.z[l] === maskId) {
    const [guess] = found?.get(l) ?? [];
    const piece = guess ? model.tokens.decode([guess.id]) : "";
    return { ...token, piece, kind: "mask", ink: guess && certaintyColor(guess.p), label: "mask" };
  }
  if (when === 0) return { ...token, kind: "given" };
  const fresh = when > (states[at - 1]?.step ?? 0) && (running || state !== last);
  if (fresh) return { ...token, kind: "fresh" };
  if (chosen === "order") return { ...token, kind: "paper", ...orderColors(when / last.step) };
  return chosen === "text" ? { ...token, ink: probabilityColor(state.probability[l]) } : token;
}

function draw() {
  const state = states[at];
  if (!state) return;
  const { maskId } = model.tokens;
  const chosen = $(":checked", $("#views")).value;
  const end = states.at(-1).z;
  const pieces = { now: model.tokens.pieces(state.z) };
  if (!running && !end.includes(maskId)) pieces.end = model.tokens.pieces(end);
  const found = chosen === "prediction" ? predictions() : undefined;
  view.draw(Array.from(state.z, (_, l) => look(l, state, pieces, chosen, found)));
  timeline.max = Math.max(1, states.length - 1);
  timeline.value = at;
  const masked = state.z.filter((id) => id === maskId).length;
  const facts = `${state.calls} network calls, ${masked} masked`;
  timeline.setAttribute("aria-valuetext", facts);
  $("#write .facts").textContent = facts;
  $("#write .text").setAttribute("aria-busy", running);
  $("#fill").hidden = running || masked === 0;
  $("#play").textContent = playing ? "Pause" : "Play";
  point(pointed);
}

/** Go to a state; a replay ends, unless it was the one that went there. */
function go(to, replay = 0) {
  at = Math.max(0, Math.min(to, states.length - 1));
  playing = at < states.length - 1 ? replay : 0;
  draw();
}

/** Show the run again, in about six seconds. */
function play(now) {
  if (playing && now >= playing) go(at + 1, now + 6000 / states.length);
  if (playing) requestAnimationFrame(play);
}

onSubmit(form, again);
$("#new-seed").addEventListener("click", () => {
  nextSeed(form);
  attempt(again);
});
$("#fill").addEventListener("click", () => attempt(() => states[at] && run([...states[at].z])));
$("#back").addEventListener("click", () => go(at - 1));
$("#forth").addEventListener("click", () => go(at + 1));
$("#play").addEventListener("click", () => {
  const from = at >= states.length - 1 ? 0 : at;
  go(from, playing ? 0 : performance.now());
  requestAnimationFrame(play);
});
timeline.addEventListener("input", () => go(timeline.valueAsNumber));
$("#views").addEventListener("change", draw);
typing.addEventListener("keydown", ({ key }) => {
  if (key === "Escape") typing.hidden = true;
});
typing.addEventListener("focusout", ({ relatedTarget }) => {
  if (!typing.contains(relatedTarget)) typing.hidden = true;
});

export function start(loaded) {
  [model, guesses] = [loaded, {}];
  const { part, values } = readAddress();
  for (const field of part === "write" ? form.elements : []) {
    if (field.name in values) field.value = values[field.name];
    showValue(field);
  }
  attempt(again);
}
