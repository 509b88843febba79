// A checkpoint: fetched with its progress, read, and checked. The format is a header in JSON
// (8 bytes say how long it is) and the bytes of all weights, one after the other.

const DAMAGED = "The file of the model is damaged: reload the page, or open another file.";

/** The bytes of a file, as a Uint8Array; `progress(done, total)` is told in bytes. */
export async function download(address, progress = () => {}) {
  const response = await fetch(address).catch(() => null);
  if (!response) throw new Error(`${address} cannot be reached: look at your connection, reload.`);
  if (!response.ok) throw new Error(`${address} is not there (${response.status}).`);
  const total = Number(response.headers.get("content-length"));
  const parts = [];
  let done = 0;
  try {
    for (const reader = response.body.getReader(); ; ) {
      const { done: end, value } = await reader.read();
      if (end) break;
      parts.push(value);
      progress((done += value.length), Math.max(done, total));
    }
  } catch {
    const megabytes = (done / 1e6).toFixed(1);
    throw new Error(`The connection broke off after ${megabytes} MB: reload the page.`);
  }
  const bytes = new Uint8Array(done);
  parts.reduce((at, part) => (bytes.set(part, at), at + part.length), 0);
  return bytes;
}

/** Bytes -> {header: texts by name, weights: {name: {shape, bytes, dtype}}}. */
export function read(bytes) {
  try {
    const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
    const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(8, 8 + length));
    const { __metadata__: header, ...weights } = JSON.parse(text);
    const data = bytes.subarray(8 + length);
    for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(weights)) {
      const size = shape.reduce((a, b) => a * b, { BF16: 2, F32: 4 }[dtype]);
      if (to - from !== size || from < 0 || to > data.length) throw new Error(name);
      weights[name] = { shape, dtype, bytes: data.subarray(from, to) };
    }
    if (header.format === "mdlm") return { header, weights };
  } catch {
    throw new Error(DAMAGED);
  }
  throw new Error(DAMAGED);
}

/** Compare a checkpoint with the fingerprint in it (see saving.py): a flipped bit is found. */
export async function verify({ header, weights }) {
  if (!globalThis.crypto?.subtle) return; // only pages from https: or this machine have it
  const escape = (c) => "\\u" + c.charCodeAt().toString(16).padStart(4, "0");
  const quoted = (text) => JSON.stringify(text).replace(/[^ -~]/g, escape); // as Python writes it
  const { fingerprint, ...rest } = header;
  const names = Object.keys(rest).sort();
  const json = `{${names.map((name) => `${quoted(name)}: ${quoted(rest[name])}`).join(", ")}}`;
  const parts = [new TextEncoder().encode(json)];
  for (const name of Object.keys(weights).sort()) {
    parts.push(new TextEncoder().encode(name), weights[name].bytes);
  }
  const all = await new Blob(parts).arrayBuffer();
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", all));
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (found !== fingerprint) throw new Error(DAMAGED);
}

/** Write a weight as float32 into `to`. A bfloat16 is the upper half of a float32. */
export function toFloat32({ bytes, dtype }, to) {
  if (dtype === "F32") return new Uint8Array(to.buffer, to.byteOffset, bytes.length).set(bytes);
  const bits = new Uint32Array(to.buffer, to.byteOffset, to.length);
  for (let i = 0; i < bits.length; i++) bits[i] = (bytes[2 * i] | (bytes[2 * i + 1] << 8)) << 16;
}
