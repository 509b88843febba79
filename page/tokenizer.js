// Byte-pair encoding, as in bpe_tokenizer.py: the same text gives the same ids.

// Python's classes of characters. JavaScript's \w and \d know ASCII only, and its \s is another.
const SPACE = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f" +
  "\\u205f\\u3000";
const LETTER = "[\\p{L}\\p{Nl}\\p{No}]";
const MARK = "[\\p{M}\\u200c\\u200d\\u{e0100}-\\u{e01ef}]";
const PATTERN = [
  ` ?${LETTER}(?:${LETTER}|${MARK}){0,63}`, // letters of any script
  "['’](?:ll|re|ve|[sdmt])(?![\\p{L}\\p{N}_])", // English contractions: it | 's
  " ?\\p{Nd}{1,64}", // digits
  ` ?[^${SPACE}\\p{L}\\p{N}]{1,64}`, // punctuation and symbols
  // white space, leaving the last space to the word that follows
  `[${SPACE}]{1,64}(?![^${SPACE}])|[${SPACE}]{1,64}`,
];
const WORDS = new RegExp(PATTERN.join("|"), "gu");

/** The UTF-8 bytes of a text. Half a character, which a broken paste may hold, is kept. */
function toBytes(text) {
  if (!/\p{Cs}/u.test(text)) return [...new TextEncoder().encode(text)];
  return [...text].flatMap((character) => {
    const code = character.codePointAt();
    const half = code >= 0xd800 && code < 0xe000;
    if (!half) return [...new TextEncoder().encode(character)];
    return [0xe0 | (code >> 12), 0x80 | ((code >> 6) & 63), 0x80 | (code & 63)];
  });
}

export class Tokenizer {
  /** json: what `BPETokenizer.to_json` wrote, as it stands in a checkpoint. */
  constructor(json) {
    const { merges, special_tokens: special } = JSON.parse(json);
    this.tokenBytes = Array.from({ length: 256 }, (_, byte) => Uint8Array.of(byte));
    this.mergeIds = new Map(); // "left right" -> the id that the pair becomes
    for (const [left, right, shown] of merges) {
      const bytes = [...this.tokenBytes[left], ...this.tokenBytes[right]];
      if (bytes.length > 4 * shown.length) throw new Error("The tokenizer is damaged.");
      this.mergeIds.set(`${left} ${right}`, this.tokenBytes.length);
      this.tokenBytes.push(Uint8Array.from(bytes));
    }
    for (const text of special) this.tokenBytes.push(new TextEncoder().encode(text));
    this.vocabSize = this.tokenBytes.length;
    this.maskId = this.vocabSize - 1;
  }

  /** Text -> ids. The letters "<|mask|>" in a text are just letters. */
  encode(text) {
    return (text.match(WORDS) ?? []).flatMap((word) => this.encodeWord(word));
  }

  /** Of all pairs in the word, the one that was learned first is merged, until none is known. */
  encodeWord(word) {
    const ids = toBytes(word);
    for (;;) {
      let best = Infinity;
      let at = -1;
      for (let i = 0; i + 1 < ids.length; i++) {
        const id = this.mergeIds.get(`${ids[i]} ${ids[i + 1]}`);
        if (id < best) [best, at] = [id, i];
      }
      if (at < 0) return ids;
      ids.splice(at, 2, best);
    }
  }

  /** Ids -> text. Bytes that are not valid UTF-8 become U+FFFD. */
  decode(ids) {
    const bytes = Uint8Array.from([...ids].flatMap((id) => [...this.tokenBytes[id]]));
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
  }

  /** What each token of a text shows: "" for a mask, "·" if it ends within a character. */
  pieces(ids) {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    return Array.from(ids, (id, i) => {
      const piece = decoder.decode(this.tokenBytes[id], { stream: i + 1 < ids.length });
      return id === this.maskId ? "" : piece || "·";
    });
  }
}
