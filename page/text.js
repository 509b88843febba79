// A text with masks in it, as it stands on the page: one element for each token.

/** A token's name as it looks in a text: without its leading space. */
export const bare = (piece) => (/^ \S/.test(piece) ? piece.slice(1) : piece);

export class TextView {
  /** choose(l): a click or Return on token l; point(l, element): where the reader is, or null. */
  constructor(element, { choose, point } = {}) {
    Object.assign(this, { element, choose, point, tokens: [] });
    if (!choose && !point) return;
    const index = (event) => this.tokens.indexOf(event.target.closest(".token"));
    const tell = (event) => {
      const l = index(event);
      point?.(l < 0 ? null : l, this.tokens[l]);
    };
    element.addEventListener("pointerover", tell);
    element.addEventListener("pointerleave", () => point?.(null));
    element.addEventListener("focusin", tell);
    element.addEventListener("focusout", () => point?.(null));
    element.addEventListener("click", (event) => index(event) >= 0 && choose?.(index(event)));
    element.addEventListener("keydown", (event) => {
      const l = index(event);
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -8, ArrowDown: 8 }[event.key];
      const to = { Home: 0, End: this.tokens.length - 1 }[event.key] ?? l + step;
      if (l < 0) return;
      if (["Enter", " "].includes(event.key)) choose?.(l);
      else if (to >= 0) this.focus(Math.min(to, this.tokens.length - 1));
      else return;
      event.preventDefault();
    });
  }

  /** One token of the text can be reached with Tab; arrows go on from there. */
  focus(l) {
    for (const [i, token] of this.tokens.entries()) token.tabIndex = i === l ? 0 : -1;
    this.tokens[l]?.focus();
  }

  /** looks: for each token {piece, kind, ink, paper, label}; kind: "mask", "given", "fresh", "".
   *
   * A mask is as wide as `ghost`, the piece that will stand there, if that is known. */
  draw(looks) {
    while (this.tokens.length > looks.length) this.tokens.pop().remove();
    const interactive = Boolean(this.choose || this.point);
    while (this.tokens.length < looks.length) {
      const token = document.createElement("span");
      if (interactive) token.setAttribute("role", "button");
      if (interactive) token.tabIndex = this.tokens.length ? -1 : 0;
      this.element.append("", token);
      this.tokens.push(token);
    }
    looks.forEach(({ piece, kind = "", ghost, ink = "", paper = "", label }, l) => {
      const token = this.tokens[l];
      const gap = /^ \S/.test(ghost ?? piece) || (kind === "mask" && ghost === undefined && l > 0);
      const look = [piece, kind, ghost, ink, paper, label, gap].join("\0");
      if (token.look === look) return;
      token.look = look;
      token.previousSibling.data = gap && l > 0 ? " " : "";
      token.className = `token ${kind}`;
      token.textContent = kind === "mask" ? bare(ghost ?? "") || "\u2003\u2002" : bare(piece);
      if (kind === "mask") token.dataset.guess = bare(piece);
      else delete token.dataset.guess;
      token.style.setProperty("--token-ink", ink);
      token.style.setProperty("--paper", paper);
      if (interactive) token.setAttribute("aria-label", label ?? bare(piece));
    });
  }
}
