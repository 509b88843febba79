// The page: loads the model, then its parts come to life one by one.

import { $, ask, complain, make, readAddress, say, showValue } from "./client.js";
import { Tokenizer } from "./tokenizer.js";
import * as cube from "./cube.js";
import * as destroy from "./destroy.js";
import * as many from "./many.js";
import * as race from "./race.js";
import * as surprise from "./surprise.js";
import * as write from "./write.js";

/** Load the model, from the site or from a file's bytes, and start all parts with it. */
async function load(what) {
  const megabytes = (n) => (n / 1e6).toFixed(1);
  try {
    complain("");
    await ask("load", what, (state) => {
      if (state.total) {
        $("#progress").value = state.done / state.total;
        $("#status").textContent = `${megabytes(state.done)} of ${megabytes(state.total)} MB`;
        return;
      }
      const millions = (state.parameters / 1e6).toFixed(1);
      $("#progress").hidden = true;
      $("#status").textContent = `${millions} million parameters, calculated in ${state.arithmetic}`;
      const model = { ...state, tokens: new Tokenizer(state.tokenizer) };
      document.body.classList.add("ready");
      for (const element of document.querySelectorAll("fieldset")) element.disabled = false;
      for (const field of document.querySelectorAll("[name=length]")) field.max = state.config.context;
      say("The model is loaded.");
      for (const part of [write, destroy, many, surprise, cube, race]) part.start(model);
    }).done;
  } catch (error) {
    complain(error.message);
    if (!document.body.classList.contains("ready")) $("#status").textContent = "No model is loaded.";
  }
}

// a checkpoint of one's own can be dropped anywhere, or chosen
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", async (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) load({ bytes: new Uint8Array(await file.arrayBuffer()) });
});
$("#file").addEventListener("change", async ({ target }) => {
  const [file] = target.files;
  target.value = "";
  if (file) load({ bytes: new Uint8Array(await file.arrayBuffer()) });
});
$("#theme").addEventListener("click", () => {
  const { style } = document.documentElement;
  const now = style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  style.colorScheme = now === "dark" ? "light" : "dark";
});
for (const field of document.querySelectorAll("input[type=range]")) {
  field.addEventListener("input", () => showValue(field));
}
for (const part of document.querySelectorAll("main section[id]")) {
  const item = make("li", {}, make("a", { href: `#${part.id}` }, $("h2", part).textContent));
  $("#parts").append(item);
}
const { part } = readAddress();
if (part) document.getElementById(part)?.scrollIntoView();
load({ address: "kjv.safetensors" });
