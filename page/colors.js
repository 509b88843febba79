// The colours of the window, visual/colors.py, for a light and for a dark page at once.

const VIRIDIS = "440154 472d7b 3b528b 2c728e 21918c 28ae80 5ec962 addc30 fde725"
  .split(" ")
  .map((color) => [0, 2, 4].map((at) => parseInt(color.slice(at, at + 2), 16)));
const SCALE = { light: [0.42, 0], dark: [0.5, 1] }; // what can be read there: improbable, probable
const css = (rgb) => `rgb(${rgb.join(" ")})`;

/** The colour at k in [0, 1] of the scale, as [red, green, blue]. */
export function viridis(k) {
  const position = Math.min(Math.max(k, 0), 1) * (VIRIDIS.length - 1);
  const i = Math.min(Math.floor(position), VIRIDIS.length - 2);
  return VIRIDIS[i].map((a, c) => Math.round(a + (VIRIDIS[i + 1][c] - a) * (position - i)));
}

/** Of a token that was drawn with probability p. Most draws are below 0.2: so the square root. */
export function probabilityColor(p) {
  const color = ([low, high]) => css(viridis(low + (high - low) * Math.sqrt(p)));
  return `light-dark(${color(SCALE.light)}, ${color(SCALE.dark)})`;
}

/** Of a prediction with probability p: the clearer the surer. */
export const certaintyColor = (p) => `color-mix(in srgb, var(--ink) ${66 + 34 * p}%, var(--mask))`;

/** A paper of the scale at k, and black or white, whichever is easier to read on it. */
export function orderColors(k) {
  const paper = viridis(k);
  const light = [0.2, 0.7, 0.1].reduce((sum, w, c) => sum + w * (paper[c] / 255) ** 2, 0);
  return { paper: css(paper), ink: light > 0.225 ? "#0c0c10" : "#ffffff" };
}
