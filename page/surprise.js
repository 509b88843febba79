// How surprised is it? The bound on a text's likelihood, beside the browser's own gzip.

import { $, ask, complain, make, say } from "./client.js";
import { probabilityColor } from "./colors.js";
import { TextView } from "./text.js";

const MOST = 16; // windows; and samples of each:
const SAMPLES = 128;
const form = $("#surprise form");
const view = new TextView($("#surprise .text"), { point });
let model;
let ids = [];
let each = []; // nats of each token
let job;

/** [mean, error] of so many nats for the ids of a text, as texts in bits per byte. */
export function bitsPerByte(model, ids, nats, error) {
  const bytes = ids.reduce((sum, id) => sum + model.tokens.tokenBytes[id].length, 0);
  return [nats, error].map((n) => (Number.isFinite(n) ? (n / Math.LN2 / bytes).toFixed(2) : "?"));
}

/** The size of a text in gzip's form, in bits per byte; null where the browser has no gzip. */
async function gzip(text) {
  if (!globalThis.CompressionStream) return null;
  const bytes = new TextEncoder().encode(text);
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("gzip"));
  return (8 * (await new Response(stream).arrayBuffer()).byteLength) / bytes.length;
}

async function measure() {
  job?.stop();
  complain("");
  const { context: L } = model.config;
  ids = model.tokens.encode(form.words.value).slice(0, MOST * L);
  each = [];
  const text = model.tokens.decode(ids);
  const windows = Array.from({ length: Math.ceil(ids.length / L) }, (_, i) => ids.slice(L * i, L * (i + 1)));
  drawText();
  if (!ids.length) return complain("There is no text to measure: write or paste one.");
  const zipped = await gzip(text);
  $("#gzip").textContent = zipped === null ? "?" : zipped.toFixed(2);
  const curve = [];
  const mine = (job = ask("bound", { windows, seed: 1, most: SAMPLES }, (state) => {
    each = state.each;
    const [bits, error] = bitsPerByte(model, ids, state.nats, state.error);
    $("#bound").textContent = `${bits} ± ${error}`;
    $("#surprise .facts").textContent = `${state.n} of ${SAMPLES} samples`;
    curve.push([bits, error].map(Number));
    drawCurve(curve, zipped);
    drawText();
  }));
  try {
    await mine.done;
    if (job === mine) say(`At most ${$("#bound").textContent} bits per byte; gzip ${$("#gzip").textContent}.`);
  } catch (error) {
    complain(error.message);
  }
}

function drawText() {
  const pieces = model.tokens.pieces(ids);
  view.draw(pieces.map((piece, l) => {
    if (!(each[l] >= 0)) return { piece, label: piece };
    const bits = (each[l] / Math.LN2).toFixed(1);
    return { piece, ink: probabilityColor(Math.exp(-each[l])), label: `${piece}, ${bits} bits` };
  }));
}

function point(l) {
  const bits = each[l] >= 0 ? `“${model.tokens.decode([ids[l]])}”: ${(each[l] / Math.LN2).toFixed(1)} bits` : "\u00a0";
  $("#word").textContent = l === null ? "\u00a0" : bits;
}

/** The mean and its error, against the number of samples; gzip as a dashed line. */
function drawCurve(curve, zipped) {
  const [width, height] = [600, 90];
  const last = curve.at(-1)[0];
  const top = Math.max(last * 1.6, 0.1);
  const x = (n) => (width * n) / SAMPLES;
  const y = (bits) => height - Math.min(Math.max(bits / top, 0), 1) * height;
  const points = curve.map(([bits, error], i) => [x(i + 1), y(bits - (error || top)), y(bits + (error || top)), y(bits)]);
  const band = [...points.map(([a, low]) => `${a},${low}`), ...points.reverse().map(([a, , high]) => `${a},${high}`)];
  const line = points.reverse().map(([a, , , middle]) => `${a},${middle}`);
  $("#curve").replaceChildren(
    make("path", { d: `M${band.join("L")}Z`, class: "band" }),
    make("path", { d: `M${line.join("L")}`, class: "curve" }),
    ...(zipped && zipped < top ? [make("path", { d: `M0,${y(zipped)}H${width}`, class: "gzip" })] : []),
  );
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  measure();
});
$("#shuffle").addEventListener("click", () => {
  const words = form.words.value.split(/\s+/);
  for (let i = words.length - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1));
    [words[i], words[j]] = [words[j], words[i]];
  }
  form.words.value = words.join(" ");
  measure();
});

export function start(loaded) {
  model = loaded;
  job?.stop();
}
