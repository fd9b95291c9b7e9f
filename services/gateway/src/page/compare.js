// One prompt, two or three models at once; the better answer becomes a row of preferences.

import { Answer, legend } from "./answer.js";
import { get, send } from "./api.js";
import { composer, follower } from "./composer.js";
import { attempt, button, dialog, empty, h, last, plural, toast } from "./dom.js";
import { promptPanel } from "./prompt.js";
import { sampleButton } from "./sample.js";
import { picker, served } from "./served.js";
import { controls, sampling, systemField, withSystem } from "./settings.js";

const LETTERS = ["A", "B", "C"];
let columns = [];
let running = null;
let input, log, pickers, add, isBlind, prompt, votes;
let hasVotes = true;
let asked = [];
const end = follower();

const hint = () => h("div", { class: "hint" }, empty("One prompt, answered by all of them at once.",
  served.models.length > 1 ? "Vote for the better answer: votes are rows to train on."
    : "Only the base is served so far, so there is nothing to compare it with. Fine-tune first:",
  served.models.length > 1 ? null : "firn quickstart"), sampleButton((row) => { input.draft = row; input.area.focus(); }));

export function mount(root) {
  pickers = h("div", { class: "pickers" });
  add = button("+ third model", () => column(() => served.base), { class: "quiet" });
  isBlind = h("input", { type: "checkbox", role: "switch" });
  log = h("div", { class: "log wide", role: "log", "aria-label": "Answers side by side" }, hint());
  prompt = promptPanel(() => input.draft ? withSystem([{ role: "user", content: input.draft }]) : asked);
  votes = h("div", { class: "votes", hidden: true });
  input = composer({
    label: "Prompt for all models", placeholder: "Prompt for all models", send: ask, stop,
    extra: [prompt.toggle, h("label", { class: "switch" }, isBlind, "Hide names until I vote")],
  });
  root.append(h("h1", { class: "offscreen" }, "Compare"),
    h("div", { class: "bar" }, pickers, add),
    h("details", { class: "side across" }, h("summary", {}, "Settings"), h("div", { class: "card" }, systemField(), controls())),
    votes, log, prompt.panel, input.element);
  column(() => served.base);
  column(() => served.tuned);
  let known = served.models.length;
  served.addEventListener("change", () => {
    if (log.querySelector(".empty") && known !== served.models.length) log.replaceChildren(hint());
    known = served.models.length;
  });
  end.watch(log);
  countVotes();
}

export function show(_, query) {
  const wanted = query.get("models")?.split(",") ?? [];
  wanted.slice(0, columns.length).forEach((id, at) => { columns[at].value = id; });
}

export const focusPrompt = () => input.area.focus();
export function stop() { running?.abort(); }

function column(initial) {
  const choice = picker(`Model ${LETTERS[columns.length]}`, initial);
  const place = h("div", { class: "picker" }, choice.element);
  if (columns.length === 2) {
    place.append(button("×", () => {
      choice.drop();
      place.remove();
      columns = columns.filter((other) => other !== choice);
      add.hidden = false;
      add.focus();
    }, { class: "quiet icon", "aria-label": "Without the third model" }));
  }
  columns.push(choice);
  pickers.append(place);
  add.hidden = columns.length >= 3;
}

function ask(text) {
  if (running) return false;
  const messages = withSystem([{ role: "user", content: text }]);
  let body;
  try { body = { messages, ...sampling() }; } catch (error) { toast(error.message, true); return false; }
  const models = columns.map((choice) => choice.value);
  if (isBlind.checked) shuffle(models);
  run(text, messages, models, body, isBlind.checked);
  return true;
}

function shuffle(list) {
  for (let at = list.length - 1; at > 0; at--) {
    const other = Math.floor(Math.random() * (at + 1));
    [list[at], list[other]] = [list[other], list[at]];
  }
}

async function run(text, messages, models, body, isHidden) {
  running = new AbortController();
  input.isBusy = true;
  asked = messages;
  log.querySelector(".hint")?.remove();
  const answers = models.map((model, at) => new Answer(isHidden ? `Answer ${LETTERS[at]}` : model));
  if (isHidden) answers.forEach((answer) => { answer.element.dataset.blind = ""; });
  const verdict = h("div", { class: "verdict" });
  const meaning = legend();
  const round = h("section", { class: "round", "aria-label": `Answers to: ${text.slice(0, 60)}` },
    h("article", { class: "question", "aria-label": "You" }, h("p", {}, text)),
    h("div", { class: "answers", "data-count": models.length }, answers.map((answer) => answer.element)), meaning, verdict);
  log.append(round);
  end.begin();
  await Promise.all(answers.map((answer, at) =>
    answer.run({ ...body, model: models[at] }, running.signal, served.find(models[at])?.context_length)));
  running = null;
  input.isBusy = false;
  const reveal = () => answers.forEach((answer, at) => {
    delete answer.element.dataset.blind;
    answer.title.textContent = isHidden ? `${LETTERS[at]}: ${models[at]}` : models[at];
  });
  verdict.append(...ballot(answers, models, messages, reveal, isHidden),
    button("Ask again", () => { if (!running) { round.remove(); ask(text); } }, { class: "quiet" }));
  prompt.refreshIfOpen();
}

function ballot(answers, models, messages, reveal, isHidden) {
  const texts = answers.map((answer) => answer.text.trim());
  if (!answers.every((answer) => answer.isWhole && answer.text)) return [];
  if (new Set(texts).size === 1) { reveal(); return [h("p", { class: "soft" }, "The answers are the same: there is nothing to vote on.")]; }
  const place = h("div", { class: "ballot", role: "group", "aria-label": "Which answer is better?" });
  // On a phone they stand one below the other.
  const isWide = matchMedia("(min-width: 44rem)").matches;
  const names = answers.length === 2 ? (isWide ? ["← Left is better", "Right is better →"] : ["First is better", "Second is better"]) : LETTERS.map((letter) => `${letter} is better`);
  const vote = async (winner) => {
    const byKeyboard = place.querySelector(":focus-visible") !== null;
    place.querySelectorAll("button").forEach((each) => { each.disabled = true; });
    const losers = answers.map((_, at) => at).filter((at) => at !== winner && texts[at] !== texts[winner]);
    let done = "A tie: nothing is kept, since it prefers nothing.";
    if (winner !== null) {
      const kept = await attempt(async () => {
        let result;
        for (const at of losers) {
          result = await send("v1/votes", {
            messages, chosen: answers[winner].text, rejected: answers[at].text,
            chosen_model: models[winner], rejected_model: models[at],
          });
        }
        return result ?? {};
      });
      if (!kept) { place.querySelectorAll("button").forEach((each) => { each.disabled = false; }); return; }
      done = isHidden ? `Kept: ${LETTERS[winner]} is better, which was ${models[winner]}.` : `Kept: ${models[winner]} is better.`;
      answers[winner].element.classList.add("chosen");
      if (kept.rows !== undefined) drawVotes(kept.rows);
    }
    reveal();
    place.replaceChildren(h("p", { class: "soft", role: "status" }, done));
    // Whoever votes by keyboard goes on with the next prompt.
    if (byKeyboard) input.area.focus();
  };
  if (!hasVotes && !isHidden) return [];
  if (!hasVotes) { place.append(button("Show names", () => { reveal(); place.remove(); })); return [place]; }
  const buttons = answers.map((_, at) => button(names[at], () => vote(at)));
  buttons.splice(answers.length === 2 ? 1 : buttons.length, 0, button("Tie", () => vote(null)));
  place.append(...buttons);
  return [place];
}

async function countVotes() {
  try {
    const kept = await get("v1/votes", { isQuiet: true });
    drawVotes(kept.rows);
  } catch (error) { hasVotes = !error.isAbsent; }
}

function drawVotes(rows) {
  votes.hidden = !rows;
  votes.replaceChildren(h("span", {}, `${plural(rows, "vote")} kept.`),
    button(`Train on ${plural(rows, "vote")}`, () => train(rows), { class: "small" }));
}

async function train(rows) {
  const model = await name(rows);
  if (!model) return;
  const job = await attempt(() => send("v1/votes/train", { model }));
  if (!job) return;
  toast("The job is queued");
  location.hash = `#/jobs/${encodeURIComponent(last(job.name ?? job.id ?? ""))}`;
}

/** Asks for the name of the model that the votes make. */
async function name(rows) {
  const input = h("input", { value: "voted", required: true, pattern: "[a-z]([a-z0-9\\-]{0,61}[a-z0-9])?", spellcheck: "false" });
  const answer = await dialog("Train on votes", (close) => h("form", { on: { submit: (event) => { event.preventDefault(); close(input.value.trim()); } } },
    h("p", {}, `${plural(rows, "preference")} become a job: it raises what was chosen over what was not (DPO), from the base.`),
    h("label", { class: "field" }, "Name of the model", input, h("small", {}, "small letters, digits and hyphens")),
    h("div", { class: "actions" }, h("button", { class: "main" }, "Train"), button("Cancel", () => close("")))));
  return answer;
}
