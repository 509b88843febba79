// Write: a page of masks turns into text. Each state on the way is kept, to step back and forth.

import { $, ask, complain, readAddress, say, settings, showValue, writeAddress } from "./client.js";
import { certaintyColor, orderColors, probabilityColor } from "./colors.js";
import { TextView, bare } from "./text.js";

const form = $("#write form");
const timeline = $("#timeline");
const view = new TextView($("#write .text"), { choose, point });
let model;
let states = []; // of the run; each {z, when, probability, step, calls}
let at = 0; // which of them is shown
let job; // that is being done
let playing = null; // a replay: when its next state is due
let pointed = null; // the token under the pointer
const guesses = new Map(); // a text with masks -> what the model predicts there

/** Texts to keep and masks to fill -> ids. "_" is a mask, "\_" an underscore, as in the window. */
export function template(tokens, prompt, length) {
  const parts = prompt.match(/_+|(?:\\_|[^_])+/g) ?? [];
  const ids = parts.flatMap((part, i) => {
    if (part[0] === "_") return Array(part.length).fill(tokens.maskId);
    const text = part.replaceAll("\\_", "_");
    const beforeMask = i + 1 === parts.length || parts[i + 1][0] === "_"; // which brings its space
    return tokens.encode(beforeMask ? text.replace(/ $/, "") : text);
  });
  if (ids.length > length) throw new Error(`The prompt has ${ids.length} tokens, only ${length} fit.`);
  return [...ids, ...Array(length - ids.length).fill(tokens.maskId)];
}

/** Fill the masks of z, and follow the run as it goes. */
async function run(z) {
  stop();
  const { steps, sampler, temperature, topP, seed } = settings(form);
  states = [];
  $("#write .text").setAttribute("aria-busy", true);
  job = ask("sample", { z, options: { steps, sampler, temperature, topP, seed } }, (state) => {
    states.push(state);
    if (at >= states.length - 2) at = states.length - 1;
    draw();
  });
  at = 0;
  const mine = job;
  try {
    await mine.done;
    if (mine !== job) return;
    job = null;
    draw();
    say(`Written: ${model.tokens.decode(states.at(-1).z)}`);
  } catch (error) {
    complain(error.message);
  }
  $("#write .text").setAttribute("aria-busy", false);
}

function stop() {
  job?.stop();
  job = playing = null;
}

/** Write anew, from the prompt. */
function again() {
  complain("");
  const { prompt, ...rest } = settings(form);
  try {
    const z = template(model.tokens, prompt, rest.length);
    writeAddress("write", { prompt, ...rest });
    run(z);
  } catch (error) {
    complain(error.message);
  }
}

/** The text as the reader has changed it: a new beginning. */
function edit(z) {
  stop();
  const given = { when: new Int32Array(z.length), probability: new Float64Array(z.length).fill(1) };
  states = [{ z: Int32Array.from(z), step: 0, calls: 0, ...given }];
  at = 0;
  draw();
}

/** A click on a token: a word is masked again, into a mask one can type. */
function choose(l) {
  const z = [...states[at].z];
  if (z[l] !== model.tokens.maskId) {
    z[l] = model.tokens.maskId;
    edit(z);
    say("Masked.");
    return;
  }
  const typing = $("#typing");
  const box = view.tokens[l].getBoundingClientRect();
  place(typing, box);
  typing.onsubmit = (event) => {
    event.preventDefault();
    const text = typing.word.value;
    const ids = model.tokens.encode(l > 0 && /^[\p{L}\p{N}]/u.test(text) ? ` ${text}` : text);
    let room = 0; // masks from here on, as many as the word needs
    while (room < ids.length && z[l + room] === model.tokens.maskId) room++;
    z.splice(l, room, ...ids);
    typing.hidden = true;
    edit(z.slice(0, model.config.context));
    view.focus(l);
  };
  typing.hidden = false;
  typing.word.value = "";
  typing.word.focus();
}

/** Put a card below a box of the page, inside the window. */
function place(card, box) {
  card.hidden = false;
  const width = document.documentElement.clientWidth;
  card.style.left = `${scrollX + Math.max(8, Math.min(box.left, width - card.offsetWidth - 8))}px`;
  card.style.top = `${scrollY + box.bottom + 6}px`;
}

/** What the model predicts at each mask of the text that is shown; null as long as nobody knows. */
function predictions() {
  const { z } = states[at];
  const key = z.join();
  if (!guesses.has(key)) {
    if (guesses.size > 200) guesses.clear();
    guesses.set(key, null);
    ask("candidates", { z }, (found) => {
      guesses.set(key, found);
      draw();
    }).done.catch((error) => complain(error.message));
  }
  return guesses.get(key);
}

/** Where the reader points: the card says what there is to know about that token. */
function point(l) {
  pointed = l;
  drawCard();
}

function drawCard() {
  const card = $("#card");
  const state = states[at];
  if (pointed === null || !view.tokens[pointed] || !state) return (card.hidden = true);
  const id = state.z[pointed];
  const show = (id) => `“${model.tokens.decode([id])}”`;
  const percent = (p) => `${(100 * p).toFixed(1)} %`;
  card.replaceChildren();
  const row = (text, share, p) => {
    const line = card.appendChild(document.createElement("p"));
    line.append(text, share);
    line.style.setProperty("--share", p);
  };
  if (id === model.tokens.maskId) {
    const found = job && at === states.length - 1 ? null : predictions();
    for (const { id, p } of found?.get(pointed) ?? []) row(show(id), percent(p), p);
    if (!found) row("masked", "", 0);
  } else if (state.when[pointed] === 0) row(show(id), "given", 0);
  else row(show(id), `${percent(state.probability[pointed])} in step ${state.when[pointed]}`, 0);
  place(card, view.tokens[pointed].getBoundingClientRect());
}

function draw() {
  const state = states[at];
  if (!state) return;
  const { maskId } = model.tokens;
  const chosen = $("[name=view]:checked", $("#views")).value;
  const last = job ? null : states.at(-1).z; // where each token of the end stands
  const pieces = model.tokens.pieces(state.z);
  const final = last && last.every((id) => id !== maskId) ? model.tokens.pieces(last) : [];
  const found = chosen === "prediction" && !job ? predictions() : null;
  const previous = states[at - 1]?.step ?? 0;
  view.draw(Array.from(state.z, (id, l) => {
    if (id === maskId) {
      const guess = found?.get(l)?.[0];
      const piece = guess ? model.tokens.decode([guess.id]) : "";
      return { piece, kind: "mask", ghost: final[l], ink: guess ? certaintyColor(guess.p) : "", label: "mask" };
    }
    const when = state.when[l];
    const look = { piece: pieces[l], ghost: final[l] };
    if (when === 0) return { ...look, kind: "given" };
    if (when > previous && at < states.length - (job ? 0 : 1)) return { ...look, kind: "fresh" };
    if (chosen === "order") return { ...look, kind: "paper", ...orderColors(when / states.at(-1).step) };
    return chosen === "text" ? { ...look, ink: probabilityColor(state.probability[l]) } : look;
  }));
  timeline.max = Math.max(1, states.length - 1);
  timeline.value = at;
  const masked = state.z.filter((id) => id === maskId).length;
  const facts = `${state.calls} network calls, ${masked} masked`;
  timeline.setAttribute("aria-valuetext", facts);
  $("#write .facts").textContent = facts;
  $("#fill").hidden = Boolean(job) || masked === 0;
  $("#play").textContent = playing === null ? "Play" : "Pause";
  drawCard();
}

function go(to) {
  at = Math.min(Math.max(to, 0), states.length - 1);
  draw();
}

/** Show the run again, in about six seconds. */
function play(now) {
  if (playing === null) return;
  if (now >= playing) {
    playing = now + 6000 / states.length;
    go(at + 1);
    if (at === states.length - 1) playing = null;
    draw();
  }
  requestAnimationFrame(play);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  again();
});
$("#new-seed").addEventListener("click", () => {
  form.seed.value = (settings(form).seed + 1) % 2 ** 32;
  again();
});
$("#fill").addEventListener("click", () => run([...states[at].z]));
$("#back").addEventListener("click", () => go(at - 1));
$("#forth").addEventListener("click", () => go(at + 1));
$("#play").addEventListener("click", () => {
  if (at >= states.length - 1) go(0);
  playing = playing === null ? performance.now() : null;
  requestAnimationFrame(play);
  draw();
});
timeline.addEventListener("input", () => {
  playing = null;
  go(timeline.valueAsNumber);
});
$("#views").addEventListener("change", draw);
$("#typing").addEventListener("keydown", ({ key }) => key === "Escape" && ($("#typing").hidden = true));
$("#typing").addEventListener("focusout", ({ relatedTarget }) => {
  if (!$("#typing").contains(relatedTarget)) $("#typing").hidden = true;
});

export function start(loaded) {
  model = loaded;
  guesses.clear();
  const { part, values } = readAddress();
  for (const [name, value] of Object.entries(part === "write" ? values : {})) {
    const field = form.elements[name];
    if (!field) continue;
    field.value = value;
    showValue(field);
  }
  again();
}
