// How surprised is it? The bound on a text's likelihood, beside the browser's own gzip.

import { $, make, oneAtATime, onSubmit, say } from "./client.js";
import { probabilityColor } from "./colors.js";
import { TextView } from "./text.js";

const WINDOWS = 16; // a text is cut into at most so many, and each is measured so often:
const SAMPLES = 128;
const form = $("#surprise form");
const view = new TextView($("#surprise .text"), { point });
const ask = oneAtATime();
let model;
let ids = []; // of the text
let each = []; // the nats of each token

/** So many nats, and their error, for the ids of a text: in bits per byte, as texts. */
export function bitsPerByte(model, ids, nats, error) {
  const bytes = ids.reduce((sum, id) => sum + model.tokens.tokenBytes[id].length, 0);
  return [nats, error].map((n) => (Number.isFinite(n) ? (n / Math.LN2 / bytes).toFixed(2) : "?"));
}

/** The size of a text in gzip's form, in bits per byte. */
async function gzip(text) {
  const bytes = new TextEncoder().encode(text);
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("gzip"));
  return (8 * (await new Response(stream).arrayBuffer()).byteLength) / bytes.length;
}

async function measure() {
  ask.stop();
  const L = model.config.context;
  ids = model.tokens.encode(form.words.value).slice(0, WINDOWS * L);
  each = [];
  drawText();
  if (!ids.length) throw new Error("There is no text to measure: write or paste one.");
  const windows = [];
  for (let l = 0; l < ids.length; l += L) windows.push(ids.slice(l, l + L));
  const zipped = await gzip(model.tokens.decode(ids));
  $("#gzip").textContent = zipped.toFixed(2);
  const curve = [];
  const finished = await ask("bound", { windows, seed: 1, most: SAMPLES }, (state) => {
    each = state.each;
    const figures = bitsPerByte(model, ids, state.nats, state.error);
    $("#bound").textContent = figures.join(" ± ");
    $("#surprise .facts").textContent = `${state.n} of ${SAMPLES} samples`;
    curve.push(figures.map(Number));
    drawCurve(curve);
    drawText();
  });
  const found = `At most ${$("#bound").textContent} bits per byte`;
  if (finished) say(`${found}, and ${zipped.toFixed(2)} with gzip.`);
}

const inBits = (l) => (each[l] >= 0 ? `${(each[l] / Math.LN2).toFixed(1)} bits` : "");

function drawText() {
  view.draw(model.tokens.pieces(ids).map((piece, l) => {
    const ink = each[l] >= 0 ? probabilityColor(Math.exp(-each[l])) : "";
    return { piece, ink, label: `${piece} ${inBits(l)}` };
  }));
}

function point(l) {
  const known = l !== null && inBits(l);
  const name = known && `“${model.tokens.decode([ids[l]])}”`;
  $("#word").textContent = known ? `${name}: ${inBits(l)}` : "\u00a0";
}

/** The mean and its error, against the number of samples. */
function drawCurve(curve) {
  const top = 1.6 * curve.at(-1)[0] || 1;
  const points = (height) => curve.map(([bits, error], i) => {
    const y = 1 - Math.min(Math.max(height(bits, error || 0) / top, 0), 1);
    return `${(600 * (i + 1)) / SAMPLES},${90 * y}`;
  });
  const [low, high] = [-1, 1].map((sign) => points((bits, error) => bits + sign * error));
  const band = make("path", { class: "band", d: `M${[...low, ...high.reverse()].join("L")}Z` });
  const line = make("path", { class: "curve", d: `M${points((bits) => bits).join("L")}` });
  $("#curve").replaceChildren(band, line);
}

onSubmit(form, measure);
$("#shuffle").addEventListener("click", () => {
  const words = form.words.value.split(/\s+/).map((word) => [Math.random(), word]);
  form.words.value = words.sort(([a], [b]) => a - b).map(([, word]) => word).join(" ");
  form.requestSubmit();
});

export function start(loaded) {
  model = loaded;
  ask.stop();
}
