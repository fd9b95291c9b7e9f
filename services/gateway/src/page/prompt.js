// The prompt as the model reads it: the template's text, its tokens, and how much of the context they take.

import { send } from "./api.js";
import { button, copy, count, h } from "./dom.js";
import { visible } from "./tokens.js";

/** Looks like a token that ends or begins something, in the notation of any family. */
const SPECIAL = /(<\|[^|<>\s]+\|>|<\/?s>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>|\[\/?INST\]|<<\/?SYS>>)/;

function tokenSpans({ text, token_strs: strings, tokens }) {
  if (strings?.length && strings.join("") === text) {
    return strings.map((token, at) => {
      const isSpecial = SPECIAL.test(token);
      const title = `${visible(token)}${tokens?.[at] === undefined ? "" : `, id ${tokens[at]}`}`;
      return isSpecial ? h("mark", { title }, token) : h("span", { class: "piece", title }, token);
    });
  }
  return text.split(SPECIAL).filter(Boolean).map((part) => SPECIAL.test(part) ? h("mark", {}, part) : part);
}

/** A button and the panel it opens; `messages` says what would be sent. */
export function promptPanel(messages) {
  const panel = h("section", { class: "prompt-panel", "aria-label": "Prompt as the model reads it", hidden: true });
  const toggle = button("Show prompt", () => panel.hidden ? refresh() : close(), { "aria-expanded": "false", class: "quiet" });

  function close() {
    panel.hidden = true;
    toggle.setAttribute("aria-expanded", "false");
    toggle.textContent = "Show prompt";
  }

  async function refresh() {
    const isNew = panel.hidden;
    panel.hidden = false;
    toggle.setAttribute("aria-expanded", "true");
    toggle.textContent = "Hide prompt";
    const turns = messages();
    if (!turns.length) { panel.replaceChildren(h("p", { class: "soft" }, "Write something first: the prompt is made of it.")); return; }
    try {
      const read = await send("tokenize", { messages: turns, add_generation_prompt: true });
      const tokens = read.count ?? read.tokens?.length ?? 0, most = read.max_model_len;
      const hash = read.template_sha256;
      panel.replaceChildren(
        h("header", {},
          h("strong", {}, most ? `${count(tokens)} of ${count(most)} tokens` : `${count(tokens)} tokens`),
          most && h("meter", { min: 0, max: most, high: most * 0.85, value: Math.min(tokens, most), "aria-label": "Share of the context" }),
          hash && h("span", { class: "soft", title: hash }, "template ", h("code", {}, hash.slice(0, 12))),
          button("Copy", () => copy(read.text), { class: "quiet" }),
          button("Renew", refresh, { class: "quiet" })),
        h("pre", { class: "template", tabindex: "0" }, tokenSpans(read)));
      if (isNew) panel.scrollIntoView({ block: "nearest" });
    } catch (error) {
      panel.replaceChildren(h("p", { class: "soft" }, error.isAbsent
        ? "This gateway can't show prompts. On a checkpoint: firn template --model DIR --input rows.jsonl" : error.message));
    }
  }
  return { toggle, panel, refreshIfOpen() { if (!panel.hidden) refresh(); } };
}
