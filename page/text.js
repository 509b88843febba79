// A text with masks in it, as it stands on the page: one element for each token.

/** A token's piece as it looks in a text: without its leading space. */
export const bare = (piece) => (/^ \S/.test(piece) ? piece.slice(1) : piece);

export class TextView {
  /** choose(l): a click or Return on token l; point(l): where the reader points, or null. */
  constructor(element, { choose, point } = {}) {
    Object.assign(this, { element, tokens: [], current: 0 });
    this.interactive = Boolean(choose || point);
    if (!this.interactive) return;
    const index = ({ target }) => this.tokens.indexOf(target.closest(".token"));
    const enter = (event) => point(index(event) < 0 ? null : index(event));
    for (const kind of ["pointerover", "focusin"]) element.addEventListener(kind, enter);
    const leave = () => point(null);
    for (const kind of ["pointerleave", "focusout"]) element.addEventListener(kind, leave);
    element.addEventListener("click", (event) => index(event) >= 0 && choose?.(index(event)));
    element.addEventListener("keydown", (event) => {
      const l = index(event);
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -8, ArrowDown: 8 }[event.key];
      const to = { Home: 0, End: Infinity }[event.key] ?? l + step;
      if (to >= 0) this.focus(to);
      else if (["Enter", " "].includes(event.key)) choose?.(l);
      else return;
      event.preventDefault();
    });
  }

  /** One token of the text can be reached with Tab; arrows go on from there. */
  reach(l) {
    this.current = Math.min(l, this.tokens.length - 1);
    for (const [i, token] of this.tokens.entries()) token.tabIndex = i === this.current ? 0 : -1;
  }

  focus(l) {
    this.reach(l);
    this.tokens[this.current]?.focus();
  }

  /** looks: for each token {piece, kind, ghost, ink, paper, label}. A mask is as wide as its
   * `ghost`, the piece that will stand there, if that is known; its own piece is a guess. */
  draw(looks) {
    for (const token of this.tokens.splice(looks.length)) {
      token.previousSibling.remove(); // what stands between two tokens
      token.remove();
    }
    while (this.tokens.length < looks.length) {
      const token = document.createElement("span");
      if (this.interactive) token.setAttribute("role", "button");
      this.element.append("", token);
      this.tokens.push(token);
    }
    if (this.interactive) this.reach(Math.max(0, this.current));
    looks.forEach(({ piece, kind = "", ghost, ink = "", paper = "", label }, l) => {
      const token = this.tokens[l];
      const masked = kind === "mask";
      const gap = l > 0 && (masked && ghost === undefined ? true : /^ \S/.test(ghost ?? piece));
      const look = [piece, kind, ghost, ink, paper, label, gap].join("\0");
      if (token.look === look) return;
      token.look = look;
      token.previousSibling.data = gap ? " " : "";
      token.className = `token ${kind}`;
      token.textContent = masked ? bare(ghost ?? "") || "\u2003\u2002" : bare(piece);
      token.dataset.guess = masked ? bare(piece) : "";
      token.style.setProperty("--token-ink", ink);
      token.style.setProperty("--paper", paper);
      if (this.interactive) token.setAttribute("aria-label", label ?? (piece.trim() || "new line"));
    });
  }

  /** A text of which nothing is to be seen but its tokens and masks. */
  show(tokens, z) {
    const pieces = tokens.pieces(z);
    const kind = (id) => (id === tokens.maskId ? "mask" : "");
    this.draw(Array.from(z, (id, l) => ({ piece: pieces[l], kind: kind(id) })));
  }
}
