// Training jobs: the list, and the way to a new one. One job is job.js's.

import { list } from "./api.js";
import { ago, button, chip, count, empty, h, last, link, plural, seconds, short } from "./dom.js";
import { jobView } from "./job.js";
import { newJob } from "./new_job.js";

const EVERY = 4_000;
const GOING = new Set(["QUEUED", "VALIDATING", "PREPARING", "RUNNING", "EVALUATING", "REGISTERING"]);

export const isGoing = (state) => GOING.has(state);

/** A job's state in its colour. */
export function stateChip(state) {
  const kind = { SUCCEEDED: "good", FAILED: "bad", CANCELLED: "", PAUSED: "warn" }[state] ?? "busy";
  return chip(String(state ?? "unknown").toLowerCase(), kind);
}

export function progress(step, steps) {
  const words = steps ? `${count(step)} of ${plural(steps, "step")}` : "no step yet";
  return h("progress", { max: steps || 1, value: step ?? 0, "aria-label": words, title: words });
}

/** What a measurement was and what it became. */
export function fromTo(before, after) {
  if (before === undefined && after === undefined) return "–";
  return h("span", { class: "from-to" }, short(before), " → ", h("b", {}, short(after)));
}

let root, timer, one;

export function mount(place) { root = place; }

export function show([id]) {
  hide();
  if (id) {
    one = jobView(id);
    root.replaceChildren(one.element);
    return;
  }
  const rows = h("div", { class: "cards" }, h("p", { class: "soft" }, "Reading…"));
  root.replaceChildren(
    h("div", { class: "head" }, h("h1", {}, "Jobs"), h("span", { class: "gap" }), button("New job", () => newJob(), { class: "main" })), rows);
  refresh(rows);
  timer = setInterval(() => { if (document.visibilityState === "visible") refresh(rows); }, EVERY);
}

export function hide() {
  clearInterval(timer);
  one?.close();
  one = null;
}

async function refresh(place) {
  let jobs;
  try { jobs = await list("v1/jobs", { isQuiet: Boolean(place.dataset.isDrawn) }); } catch (error) {
    if (!place.dataset.isDrawn) place.replaceChildren(empty("Jobs can't be listed.", error.isAbsent ? "This gateway has no trainer." : error.message));
    return;
  }
  const text = JSON.stringify(jobs);
  // What did not change is left alone, and with it the focus.
  if (place.dataset.isDrawn && place.text === text) return;
  place.text = text;
  place.dataset.isDrawn = "yes";
  const focused = place.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  jobs.sort((a, b) => String(b.create_time).localeCompare(String(a.create_time)));
  place.replaceChildren(...(jobs.length ? jobs.map(row)
    : [empty("No job has run yet.", "Start one here, or from a shell:", "firn llm --train --project-name offers --data-path rows.csv --text-column text")]));
  if (focused) [...place.querySelectorAll("a")].find((each) => each.getAttribute("href") === focused)?.focus();
}

function row(job) {
  const id = last(job.name);
  const { base_evaluation: base, tuned_evaluation: tuned } = job;
  return h("article", { class: "card job" },
    h("header", {}, h("h2", {}, link(job.model || id, `#/jobs/${encodeURIComponent(id)}`)), stateChip(job.state), h("span", { class: "gap" }), ago(job.create_time)),
    isGoing(job.state) || job.state === "PAUSED" ? progress(job.step, job.steps) : null,
    job.error && h("p", { class: "error" }, job.error),
    h("p", { class: "soft stats" },
      h("span", {}, job.base), job.steps > 0 && h("span", {}, `${count(job.step)} of ${plural(job.steps, "step")}`),
      job.train_tokens > 0 && h("span", {}, `${count(job.train_tokens)} tokens in ${seconds(job.train_seconds)}`),
      tuned && h("span", {}, "held-out loss ", fromTo(base?.loss, tuned.loss)),
      job.version && h("span", {}, link(job.version.replace("models/", "").replace("/versions/", " "), versionLink(job.version)))));
}

export const versionLink = (name) => {
  const [, model, , version] = name.split("/");
  return `#/models/${encodeURIComponent(model)}/${version}`;
};
