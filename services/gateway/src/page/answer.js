// One answer as it comes: its text, its times, and what can be done with it.

import { answer as stream } from "./api.js";
import { button, chip, copy, h, plural, seconds, svg } from "./dom.js";
import { set, settings } from "./settings.js";
import { TokenText } from "./tokens.js";

const BARS = 80;
/** Nearer in time than this is at once. */
const TOGETHER_MS = 1;

/** Times between pieces, a bar each; of a long answer the slowest of several. */
function sparkline(gaps) {
  const stride = Math.max(1, Math.ceil(gaps.length / BARS));
  const bars = [];
  for (let at = 0; at < gaps.length; at += stride) bars.push(Math.max(...gaps.slice(at, at + stride)));
  const sorted = [...gaps].sort((a, b) => a - b);
  const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
  const high = Math.max(at(0.98), 1);
  const words = `Time a token: half within ${Math.round(at(0.5))} ms, 95 of 100 within ${Math.round(at(0.95))} ms, slowest ${Math.round(sorted.at(-1))} ms`;
  return svg("svg", { class: "spark", role: "img", "aria-label": words, viewBox: `0 0 ${BARS * 3} 24`, preserveAspectRatio: "none" },
    svg("title", {}, words),
    bars.map((gap, index) => {
      const height = Math.max(1, Math.min(1, gap / high) * 23);
      return svg("rect", { x: index * 3, y: 24 - height, width: 2, height, class: gap > high ? "slow" : undefined });
    }));
}

export class Answer {
  #text = new TokenText();
  #meta = h("div", { class: "meta" });
  #problem = h("p", { class: "error", role: "alert", hidden: true });
  #spark = h("div", { class: "spark-place" });
  #actions = h("div", { class: "actions small", hidden: true });
  #gaps = [];
  #burst = { gap: 0, count: 0 };
  #drawn = 0;
  text = "";
  /** Ended by itself, without an error. */
  isWhole = false;

  constructor(title) {
    this.title = h("h2", {}, title);
    this.element = h("article", { class: "answer", "aria-busy": "true" },
      h("header", {}, this.title), this.#text.element, this.#problem, h("footer", {}, this.#meta, this.#spark, this.#actions));
    this.#actions.append(button("Copy", () => copy(this.text)));
  }

  /** Adds a button to what can be done with the answer. */
  action(label, click) { this.#actions.append(button(label, click)); }

  async run(body, signal, contextLength) {
    this.#text.element.classList.add("busy");
    const begin = performance.now();
    let before = begin, first = null, done = null;
    try {
      for await (const piece of this.#pieces(body, signal)) {
        done = piece.done ?? done;
        if (piece.done) continue;
        const now = performance.now();
        if (first === null) first = now - begin;
        else this.#count(now - before, Math.max(1, piece.tokens?.length ?? 1));
        before = now;
        this.text += piece.text;
        this.#text.add(piece.text, piece.tokens);
        this.#progress(begin, first, now);
      }
      this.isWhole = true;
    } catch (error) {
      if (error.name === "AbortError") this.#problem.textContent = "Stopped.";
      else this.#problem.textContent = error.message;
      this.#problem.classList.toggle("calm", error.name === "AbortError");
      this.#problem.hidden = false;
    }
    this.#text.settle(this.text);
    this.#text.element.classList.remove("busy");
    this.element.removeAttribute("aria-busy");
    this.#actions.hidden = false;
    this.#result(done, begin, first, before, body.seed, contextLength);
    return this;
  }

  /** Notes when tokens came. Those that came in one piece of the network share its time. */
  #count(gap, tokens) {
    const isNew = gap >= TOGETHER_MS || this.#burst.count === 0;
    this.#burst = isNew ? { gap, count: tokens } : { gap: this.#burst.gap + gap, count: this.#burst.count + tokens };
    const { gap: whole, count } = this.#burst;
    this.#gaps.length -= isNew ? 0 : count - tokens;
    for (let each = 0; each < count; each++) this.#gaps.push(whole / count);
  }

  /** Asks, and once more without log-probabilities if the gateway does not know them. */
  async *#pieces(body, signal) {
    try { yield* stream(body, signal); } catch (error) {
      if (!body.logprobs || !["logprobs", "top_logprobs"].includes(error.param)) throw error;
      set("colour", false);
      const { logprobs, top_logprobs, ...rest } = body;
      this.title.append(chip("this gateway gives no log-probabilities", "warn"));
      yield* stream(rest, signal);
    }
  }

  #progress(begin, first, now) {
    if (now - this.#drawn < 120) return;
    this.#drawn = now;
    const speed = this.#gaps.length / Math.max(1e-3, (now - begin - first) / 1000);
    this.#meta.replaceChildren(stat("first token", seconds(first / 1000)), stat("speed", `${speed.toFixed(0)} tokens/s`));
    if (this.#gaps.length > 2) this.#spark.replaceChildren(sparkline(this.#gaps));
  }

  #result(done, begin, first, end, seed, contextLength) {
    if (this.#gaps.length > 2) this.#spark.replaceChildren(sparkline(this.#gaps));
    if (first === null && !done) { this.#meta.replaceChildren(); return; }
    const { firn, usage, reason } = done ?? {};
    const tokens = usage?.completion_tokens ?? this.#gaps.length + 1;
    const start = firn?.first_token_seconds ?? first / 1000, whole = firn?.seconds ?? (end - begin) / 1000;
    const speed = tokens > 1 && whole > start ? (tokens - 1) / (whole - start) : null;
    const used = usage?.total_tokens;
    this.#meta.replaceChildren(...[
      stat("first token", seconds(start)),
      speed && stat("speed", `${speed >= 100 ? speed.toFixed(0) : speed.toFixed(1)} tokens/s`),
      stat("length", `${plural(tokens, "token")} in ${seconds(whole)}`),
      used && stat("context", contextLength ? `${used} of ${contextLength}` : `${used}`),
      firn?.cached_tokens > 0 && stat("reused", plural(firn.cached_tokens, "token")),
      stat("seed", button(String(seed), () => set("seed", seed), { class: "textual", title: "Use this seed again" })),
      firn?.version && h("span", { class: "stat names" }, h("span", {}, "version"), " ", h("b", {}, firn.version)),
      reason === "length" && chip("cut at its limit", "warn"),
      reason === null || done ? null : chip("not whole", "warn"),
    ].filter(Boolean));
  }
}

const stat = (name, value) => h("span", { class: "stat" }, h("span", {}, name), " ", h("b", {}, value));

/** Whether coloured tokens were asked for, with what the colours mean. */
export const legend = () => settings.colour && h("p", { class: "legend" }, "probability ",
  ["< 5 %", "5", "20", "50", "80", "> 95 %"].map((words, at) => h("span", { class: `token p${at}` }, words)));
