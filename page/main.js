// The page: loads the model, then all its parts come to life.

import { $, attempt, make, oneAtATime, readAddress, say, showValue } from "./client.js";
import { Tokenizer } from "./tokenizer.js";
import * as cube from "./cube.js";
import * as destroy from "./destroy.js";
import * as lanes from "./lanes.js";
import "./sudoku.js"; // it has a model of its own
import * as surprise from "./surprise.js";
import * as write from "./write.js";

const ask = oneAtATime();

/** Load a model, {address} or {bytes}, and start all parts with it. */
function load(what) {
  attempt(async () => {
    await ask("load", what, (state) => (state.total ? showProgress(state) : begin(state)));
  }).then(() => {
    if (document.body.className !== "ready") $("#status").textContent = "No model is loaded.";
  });
}

function showProgress({ done, total }) {
  $("#progress").value = done / total;
  const [a, b] = [done, total].map((bytes) => (bytes / 1e6).toFixed(1));
  $("#status").textContent = `${a} of ${b} MB`;
}

function begin({ config, tokenizer, parameters, arithmetic }) {
  const model = { config, tokens: new Tokenizer(tokenizer) };
  const millions = (parameters / 1e6).toFixed(1);
  const name = make("span", { id: "arithmetic" }, arithmetic);
  $("#status").replaceChildren(`${millions} million parameters, calculated in `, name);
  $("#progress").hidden = true;
  document.body.classList.add("ready");
  for (const fieldset of document.querySelectorAll("fieldset")) fieldset.disabled = false;
  $("[name=length]").max = config.context;
  say("The model is loaded.");
  for (const part of [write, destroy, lanes, surprise, cube]) part.start(model);
}

// a checkpoint of one's own can be chosen, or dropped anywhere
async function open([file]) {
  if (file) load({ bytes: new Uint8Array(await file.arrayBuffer()) });
}
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  open(event.dataTransfer.files);
});
$("#file").addEventListener("change", ({ target }) => open(target.files));

$("#theme").addEventListener("click", () => {
  const { style } = document.documentElement;
  const usual = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  style.colorScheme = (style.colorScheme || usual) === "dark" ? "light" : "dark";
});
for (const slider of document.querySelectorAll("input[type=range]")) {
  slider.addEventListener("input", () => showValue(slider));
}
for (const part of document.querySelectorAll("main section")) {
  const link = make("a", { href: `#${part.id}` }, $("h2", part).textContent);
  $("#parts").append(make("li", {}, link));
}
document.getElementById(readAddress().part)?.scrollIntoView();
load({ address: "kjv.safetensors" });
