// How answers are sampled: one set of values, shown by each panel that has controls for it.

import { fresh, h } from "./dom.js";

const KEY = "firn-settings";
const bus = new EventTarget();

const BASIC = [
  { key: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, value: 0, hint: "0 always takes the most probable token" },
  { key: "top_p", label: "Top-p", min: 0.05, max: 1, step: 0.05, value: 1, hint: "tokens that make up this share of probability" },
  { key: "max_tokens", label: "Most tokens", min: 1, max: 1024, step: 1, value: 256 },
  { key: "seed", label: "Seed", kind: "number", min: 0, step: 1, value: "", placeholder: "any", hint: "the same seed gives the same answer" },
];
const ADVANCED = [
  { key: "top_k", label: "Top-k", kind: "number", min: 0, step: 1, value: 0, hint: "0: all tokens" },
  { key: "min_p", label: "Min-p", min: 0, max: 1, step: 0.01, value: 0, hint: "least probability, as a share of the best token's" },
  { key: "presence_penalty", label: "Presence penalty", min: -2, max: 2, step: 0.1, value: 0 },
  { key: "frequency_penalty", label: "Frequency penalty", min: -2, max: 2, step: 0.1, value: 0 },
  { key: "stop", label: "Stop at", kind: "lines", value: "", placeholder: "one text a line, at most 4" },
  { key: "schema", label: "JSON Schema of the answer", kind: "lines", value: "", placeholder: '{"type": "object", …}' },
];
const ALL = [...BASIC, ...ADVANCED, { key: "system", value: "" }, { key: "colour", value: false }];

const values = Object.fromEntries(ALL.map(({ key, value }) => [key, value]));
try { Object.assign(values, JSON.parse(sessionStorage.getItem(KEY) ?? "{}")); } catch { /* Values of another version. */ }

export const settings = values;

export function set(key, value) {
  values[key] = value;
  sessionStorage.setItem(KEY, JSON.stringify(values));
  bus.dispatchEvent(new CustomEvent("change", { detail: key }));
}

const follow = (key, update) => {
  bus.addEventListener("change", (event) => { if (event.detail === key) update(values[key]); });
  update(values[key]);
};

/** The fields of a request. What was left alone is left out. */
export function sampling() {
  const number = (key) => Number(values[key]);
  const fields = { temperature: number("temperature"), max_tokens: Math.max(1, Math.round(number("max_tokens")) || 256) };
  if (number("top_p") < 1) fields.top_p = number("top_p");
  // Drawn here rather than by the server: compared models get the same one, and it is short enough to be read.
  fields.seed = values.seed === "" ? crypto.getRandomValues(new Uint32Array(1))[0] : number("seed");
  for (const key of ["top_k", "min_p", "presence_penalty", "frequency_penalty"]) if (number(key)) fields[key] = number(key);
  const stop = values.stop.split("\n").filter(Boolean);
  if (stop.length) fields.stop = stop;
  if (values.schema.trim()) {
    let schema;
    try { schema = JSON.parse(values.schema); } catch (error) { throw new Error(`the JSON Schema is not JSON: ${error.message}`); }
    fields.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  }
  if (values.colour) Object.assign(fields, { logprobs: true, top_logprobs: 5 });
  return fields;
}

/** The system message, if there is one, before the turns. */
export const withSystem = (turns) => values.system.trim() ? [{ role: "system", content: values.system.trim() }, ...turns] : turns;

function control({ key, label, kind = "range", min, max, step, placeholder, hint }) {
  const id = fresh(key), hintId = hint && fresh("hint");
  const common = { id, "aria-describedby": hintId, placeholder };
  const note = hint && h("small", { id: hintId }, hint);
  if (kind === "lines") {
    const area = h("textarea", { ...common, rows: 2, spellcheck: "false", on: { input: () => set(key, area.value) } });
    follow(key, (value) => { if (area.value !== value) area.value = value; });
    return h("div", { class: "field" }, h("label", { for: id }, label), area, note);
  }
  const number = h("input", { ...common, type: "number", min, max: kind === "number" ? undefined : key === "max_tokens" ? undefined : max, step: kind === "number" || key === "max_tokens" ? step : "any" });
  number.addEventListener("change", () => set(key, number.value === "" && key !== "seed" ? ALL.find((field) => field.key === key).value : number.value === "" ? "" : Number(number.value)));
  follow(key, (value) => { number.value = value; });
  if (kind === "number") return h("div", { class: "field inline" }, h("label", { for: id }, label), number, note);
  const range = h("input", { type: "range", min, max, step, "aria-label": label, "aria-describedby": hintId });
  range.addEventListener("input", () => set(key, Number(range.value)));
  follow(key, (value) => { range.value = value; });
  return h("div", { class: "field slider" }, h("label", { for: id }, label), number, range, note);
}

export function systemField() {
  const id = fresh("system");
  const area = h("textarea", { id, rows: 2, placeholder: "None", on: { input: () => set("system", area.value) } });
  follow("system", (value) => { if (area.value !== value) area.value = value; });
  return h("div", { class: "field" }, h("label", { for: id }, "System prompt"), area);
}

function colourSwitch() {
  const box = h("input", { type: "checkbox", role: "switch", on: { change: () => set("colour", box.checked) } });
  follow("colour", (value) => { box.checked = value; });
  return h("label", { class: "switch" }, box, "Colour tokens by probability");
}

/** All controls. */
export function controls() {
  return [
    h("div", { class: "fields" }, BASIC.map(control), colourSwitch()),
    h("details", { class: "advanced" }, h("summary", {}, "Advanced"), h("div", { class: "fields" }, ADVANCED.map(control))),
  ];
}
