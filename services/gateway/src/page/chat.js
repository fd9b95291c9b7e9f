// A talk with one model.

import { Answer, legend } from "./answer.js";
import { composer, follower } from "./composer.js";
import { button, empty, h, toast } from "./dom.js";
import { promptPanel } from "./prompt.js";
import { sampleButton } from "./sample.js";
import { picker, served } from "./served.js";
import { controls, sampling, systemField, withSystem } from "./settings.js";

/** Turns so far. */
let turns = [];
let running = null;
let model, input, log, prompt, note;
const end = follower();

const hint = () => h("div", { class: "hint" }, empty("Ask something, or paste a row as JSON.",
  served.models.length > 1 ? "Enter sends. Compare shows the base and the tuned model side by side."
    : "Only the base is served so far. A tuned model appears here as soon as a job has registered one:",
  served.models.length > 1 ? null : "firn quickstart"), sampleButton((row) => { input.draft = row; input.area.focus(); }));

export function mount(root) {
  model = picker("Model", () => served.tuned);
  log = h("div", { class: "log", role: "log", "aria-label": "Chat", "aria-live": "polite" }, hint());
  note = h("p", { class: "offscreen", role: "status" });
  prompt = promptPanel(() => {
    const draft = input.draft;
    const all = draft ? [...turns, { role: "user", content: draft }] : turns;
    return all.length ? withSystem(all) : [];
  });
  input = composer({
    label: "Message", placeholder: "Message", send: ask, stop,
    extra: [prompt.toggle, button("New chat", fresh, { class: "quiet" })],
  });
  const isWide = matchMedia("(min-width: 60rem)");
  const side = h("details", { class: "side", open: isWide.matches },
    h("summary", {}, "Settings"), h("div", { class: "card" }, systemField(), controls()));
  isWide.addEventListener("change", () => { side.open = isWide.matches; });
  root.append(h("h1", { class: "offscreen" }, "Chat"),
    h("div", { class: "chat-grid" },
      h("div", { class: "talk" }, h("div", { class: "picker-row" }, model.element), log, note, prompt.panel, input.element), side));
  let known = served.models.length;
  served.addEventListener("change", () => {
    if (!turns.length && !running && known !== served.models.length) log.replaceChildren(hint());
    known = served.models.length;
  });
  end.watch(log);
}

export function show(_, query) {
  const wanted = query.get("model");
  if (wanted) model.value = wanted;
}

export const focusPrompt = () => input.area.focus();

export function stop() { running?.abort(); }

function fresh() {
  stop();
  turns = [];
  log.replaceChildren(hint());
  prompt.refreshIfOpen();
  input.area.focus();
}

/** What is sent for these turns; says so and returns null if the settings can't be used. */
function request(messages) {
  try { return { model: model.value, messages: withSystem(messages), ...sampling() }; } catch (error) {
    toast(error.message, true);
    return null;
  }
}

function ask(text) {
  const said = { role: "user", content: text };
  // A question that was never answered is not asked again with the next one.
  if (!running && turns.at(-1)?.role === "user") turns = turns.slice(0, -1);
  const body = running ? null : request([...turns, said]);
  if (!body) return false;
  if (!turns.length) log.replaceChildren();
  turns.push(said);
  log.append(h("article", { class: "question", "aria-label": "You" }, h("p", {}, text)));
  reply(body);
  return true;
}

async function reply(body) {
  running = new AbortController();
  input.isBusy = true;
  end.begin();
  const answer = new Answer(body.model);
  const meaning = legend();
  log.append(answer.element);
  await answer.run(body, running.signal, served.find(body.model)?.context_length);
  if (meaning && answer.element.querySelector(".token")) answer.element.querySelector("footer").prepend(meaning);
  running = null;
  input.isBusy = false;
  const isCurrent = answer.element.isConnected;
  if (!isCurrent) return;
  // An answer that was stopped is a turn, too; one that never began is none.
  if (answer.text) turns.push({ role: "assistant", content: answer.text });
  note.textContent = answer.isWhole ? "The answer is complete." : "The answer has ended.";
  log.querySelectorAll(".answer").forEach((other) => other.querySelector("[data-again]")?.remove());
  answer.action(answer.text ? "Regenerate" : "Try again", () => again(answer));
  answer.element.querySelector("footer .actions button:last-child").dataset.again = "";
  prompt.refreshIfOpen();
}

function again(answer) {
  if (running) return;
  const before = turns.at(-1)?.role === "assistant" ? turns.slice(0, -1) : turns;
  const body = request(before);
  if (!body) return;
  turns = before;
  answer.element.remove();
  reply(body);
}
