// What can be asked for by name now, and the way to have more served.

import { call, get, list } from "./api.js";
import { attempt, button, dialog, fresh, h, last, link, toast } from "./dom.js";

const EVERY = 15_000;

/** The list of served models; tells of changes. */
class Served extends EventTarget {
  models = [];
  problem = "";
  isKnown = false;
  #running = null;

  async refresh(isQuiet = false) {
    this.#running ??= (async () => {
      try {
        this.models = (await get("v1/models", { isQuiet })).data ?? [];
        this.problem = "";
        this.isKnown = true;
      } catch (error) { this.problem = error.message; }
      this.#running = null;
      this.dispatchEvent(new Event("change"));
    })();
    await this.#running;
  }

  watch() {
    this.refresh();
    setInterval(() => { if (document.visibilityState === "visible") this.refresh(true); }, EVERY);
  }

  find(id) { return this.models.find((model) => model.id === id); }

  /** The base's id, and the first tuned one's. */
  get base() { return this.models[0]?.id ?? "base"; }
  get tuned() { return this.models.find((model) => model.parent)?.id ?? this.base; }

  async load(id) {
    await call("v1/load_lora_adapter", { json: { lora_name: id } }).catch(explain);
    await this.refresh();
    toast(`${id} is served`);
  }

  async unload(id) {
    await call("v1/unload_lora_adapter", { json: { lora_name: id } }).catch(explain);
    await this.refresh();
    toast(`${id} is served no more`);
  }
}

function explain(error) {
  throw error.isAbsent ? new Error("this gateway can't load versions: it serves what aliases name") : error;
}

export const served = new Served();

/** Where the base and a model are side by side. */
export const compareLink = (id) => `#/compare?models=${encodeURIComponent(`${served.base},${id}`)}`;

const MORE = "\u0000more";

/** A list to choose a served model from; keeps its choice while the list changes. */
export function picker(label, initial) {
  const id = fresh("model");
  const select = h("select", { id });
  let wanted = initial;
  const group = (name, models) => models.length && h("optgroup", { label: name },
    models.map((model) => h("option", { value: model.id }, model.id)));
  const draw = () => {
    if (!served.isKnown) { select.replaceChildren(h("option", { value: "" }, "…")); return; }
    const models = served.models;
    const now = typeof wanted === "function" ? wanted() : wanted;
    select.replaceChildren(...[
      group("Base", models.filter((model) => !model.parent)),
      group("Tuned", models.filter((model) => model.parent && !model.loaded)),
      group("Loaded by hand", models.filter((model) => model.parent && model.loaded)),
      h("option", { value: MORE }, "Serve another…"),
    ].filter(Boolean));
    select.value = served.find(now) ? now : served.base;
  };
  select.addEventListener("change", async () => {
    if (select.value === MORE) {
      draw();
      const loaded = await serveAnother();
      if (loaded) { wanted = loaded; draw(); }
      return;
    }
    wanted = select.value;
  });
  served.addEventListener("change", draw);
  draw();
  return {
    element: h("label", { class: "field", for: id }, label, select),
    get value() { return select.value || served.base; },
    set value(model) { wanted = model; draw(); },
    drop() { served.removeEventListener("change", draw); },
  };
}

/** Names of versions and checkpoints that could be loaded. */
async function suggestions() {
  const names = [];
  const models = await list("v1/registry/models").catch(() => []);
  for (const model of models) {
    for (let version = model.versions; version > Math.max(0, model.versions - 20); version--) names.push(`${last(model.name)}@${version}`);
  }
  const jobs = (await list("v1/jobs").catch(() => [])).slice(-5);
  await Promise.all(jobs.map(async (job) => {
    const found = await get(`v1/jobs/${encodeURIComponent(last(job.name))}/checkpoints`).catch(() => null);
    for (const checkpoint of found?.data ?? []) names.push(checkpoint.id);
  }));
  return names;
}

/** Asks which version or checkpoint to serve and loads it; returns its id, or "" if that did not come about. */
export function serveAnother() {
  return dialog("Serve a version or checkpoint", (close) => {
    const listId = fresh("names"), options = h("datalist", { id: listId });
    const input = h("input", { list: listId, required: true, spellcheck: "false", autocomplete: "off", placeholder: "offers@3 or job-…@50" });
    suggestions().then((names) => options.append(...names.map((name) => h("option", { value: name }))));
    const go = h("button", { class: "main" }, "Serve");
    const submit = async (event) => {
      event.preventDefault();
      go.disabled = true;
      const id = input.value.trim();
      if (await attempt(async () => { await served.load(id); return true; })) close(id);
      go.disabled = false;
    };
    return h("form", { on: { submit } },
      h("p", {}, "A version of the registry by its number, or what a job has saved at a step. Base weights are shared, so this takes little memory. ",
        link("Versions", "#/models", { on: { click: () => close("") } }), " and ", link("jobs", "#/jobs", { on: { click: () => close("") } }), " have their names."),
      h("label", { class: "field" }, "Name", input), options,
      h("div", { class: "actions" }, go, button("Cancel", () => close(""))));
  });
}
