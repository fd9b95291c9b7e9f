// Text of an answer, token by token: how probable each was, and what stood beside it.

import { h } from "./dom.js";

const tip = document.getElementById("tip");
const details = new WeakMap();

/** A whitespace character that can be seen. */
export const visible = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣") || "∅";

const percent = (logprob) => {
  const share = Math.exp(logprob) * 100;
  return share >= 99.95 ? "100 %" : share >= 10 ? `${share.toFixed(0)} %` : share >= 0.1 ? `${share.toFixed(1)} %` : "< 0.1 %";
};

/** From 0, hardly probable, to 5, sure. */
const level = (logprob) => [0.05, 0.2, 0.5, 0.8, 0.95].filter((bound) => Math.exp(logprob) >= bound).length;

function describe(tokens) {
  return tokens.map(({ token, logprob, top_logprobs: top = [] }) => h("div", {},
    h("p", { class: "chosen" }, h("code", {}, visible(token)), ` ${percent(logprob)}`),
    top.length > 0 && h("table", {}, h("tbody", {}, top.map((other) => {
      const bar = h("i", {});
      bar.style.width = `${Math.exp(other.logprob) * 100}%`;
      return h("tr", { class: other.token === token ? "is-chosen" : undefined },
        h("td", {}, h("code", {}, visible(other.token))), h("td", { class: "n" }, percent(other.logprob)), h("td", { class: "bar" }, bar));
    })))));
}

function point(span) {
  const tokens = details.get(span);
  if (!tokens) { tip.hidden = true; return; }
  tip.replaceChildren(...describe(tokens));
  tip.hidden = false;
  const box = span.getClientRects()[0] ?? span.getBoundingClientRect(), size = tip.getBoundingClientRect();
  const isAbove = box.bottom + size.height + 8 > innerHeight && box.top > size.height + 8;
  tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - size.width - 8))}px`;
  tip.style.top = `${isAbove ? box.top - size.height - 6 : box.bottom + 6}px`;
}

/** Shows an answer as it grows. */
export class TokenText {
  element = h("div", { class: "text" });
  #decoder = new TextDecoder();
  #waiting = [];
  #shown = "";

  constructor() {
    const leave = () => { tip.hidden = true; };
    this.element.addEventListener("pointerover", (event) => point(event.target));
    this.element.addEventListener("pointerleave", leave);
    this.element.addEventListener("focusin", (event) => { event.target.setAttribute("aria-describedby", "tip"); point(event.target); });
    this.element.addEventListener("focusout", (event) => { event.target.removeAttribute("aria-describedby"); leave(); });
    this.element.addEventListener("keydown", (event) => {
      const to = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
      const next = to && event.target[to];
      if (!next) return;
      event.preventDefault();
      event.target.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }

  add(text, tokens) {
    if (!tokens) { this.element.append(text); this.#shown += text; return; }
    for (const token of tokens) {
      this.#waiting.push(token);
      // A token may be a part of a character: it is shown with those that complete it.
      const piece = token.bytes ? this.#decoder.decode(new Uint8Array(token.bytes), { stream: true }) : token.token;
      if (!piece) continue;
      const lowest = Math.min(...this.#waiting.map(({ logprob }) => logprob));
      const span = h("span", { class: `token p${level(lowest)}`, tabindex: this.element.querySelector(".token") ? -1 : 0 }, piece);
      details.set(span, this.#waiting);
      this.#waiting = [];
      this.#shown += piece;
      this.element.append(span);
    }
  }

  /** Holds what is shown against the text itself: an end token or a stop text is a token, but no part of the answer. */
  settle(text) {
    if (this.#shown === text) return;
    while (this.#shown.length > text.length && this.#shown.startsWith(text) && this.element.lastChild) {
      const piece = this.element.lastChild.textContent;
      if (this.#shown.length - piece.length < text.length) break;
      this.element.lastChild.remove();
      this.#shown = this.#shown.slice(0, -piece.length);
    }
    if (this.#shown !== text) this.element.replaceChildren(text);
    this.#shown = text;
  }
}
