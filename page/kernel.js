// Matrices, and their product: in WebAssembly, four numbers at a time, or else in JavaScript.

/** n, rounded up to a multiple of 4. */
export const fours = (n) => 4 * Math.ceil(n / 4);

/** Room for matrices: {name: [rows, columns]} -> {arrays: {name: Float32Array}, matmul, name}.
 *
 * Each has up to three rows more than asked for, so that `matmul` may take four at a time.
 * wasm: the bytes of kernel.wasm; null, or a browser without SIMD: plain JavaScript. */
export async function allocate(shapes, wasm) {
  const sizes = Object.entries(shapes).map(([name, [m, n = 1]]) => [name, m * n, fours(m) * n]);
  const total = sizes.reduce((sum, [, , padded]) => sum + fours(padded), 0);
  let buffer;
  let matmul = multiply;
  if (wasm && globalThis.WebAssembly?.validate(wasm)) {
    const memory = new WebAssembly.Memory({ initial: Math.ceil((4 * total) / 65536) });
    const { instance } = await WebAssembly.instantiate(wasm, { page: { memory } });
    buffer = memory.buffer;
    matmul = (x, w, y, m, n, k) =>
      instance.exports.matmul(x.byteOffset, w.byteOffset, y.byteOffset, m, n, k);
  }
  buffer ??= new ArrayBuffer(4 * total);
  const arrays = {};
  let at = 0;
  for (const [name, size, padded] of sizes) {
    arrays[name] = new Float32Array(buffer, 4 * at, size);
    at += fours(padded); // vectors of four begin at a multiple of 16 bytes
  }
  const name = matmul === multiply ? "plain JavaScript" : "WebAssembly with SIMD";
  return { arrays, name, matmul: (x, w, y, m, n, k) => matmul(x, w, y, fours(m), n, k) };
}

/** What kernel.wat calculates, to the last bit: y (m, n) = x (m, k) w^T, with w (n, k). */
function multiply({ buffer, byteOffset: x }, { byteOffset: w }, { byteOffset: y }, m, n, k) {
  const all = new Float32Array(buffer);
  const { fround } = Math; // a float32 after each operation
  for (let i = 0; i < m; i++) {
    for (let j = 0; j < n; j++) {
      let a = fround(0), b = fround(0), c = fround(0), d = fround(0);
      for (let p = x / 4 + i * k, q = w / 4 + j * k, end = p + k; p < end; p += 4, q += 4) {
        a = fround(a + fround(all[p] * all[q]));
        b = fround(b + fround(all[p + 1] * all[q + 1]));
        c = fround(c + fround(all[p + 2] * all[q + 2]));
        d = fround(d + fround(all[p + 3] * all[q + 3]));
      }
      all[y / 4 + i * n + j] = fround(fround(a + b) + fround(c + d));
    }
  }
}
