// The registry: models, their versions, where aliases point, and what is served now. One version is version.js's.

import { call, list } from "./api.js";
import { ago, attempt, button, chip, confirmed, dialog, empty, h, last, link, plural, table, toast } from "./dom.js";
import { fromTo } from "./jobs.js";
import { served, serveAnother } from "./served.js";
import { versionView } from "./version.js";

let root, onServed = null;

export function mount(place) { root = place; }

export function hide() { served.removeEventListener("change", onServed); }

export async function show([model, version]) {
  hide();
  if (model && version) { root.replaceChildren(await versionView(model, Number(version))); return; }
  const now = h("section", { class: "card" }), registry = h("div", { class: "cards" }, h("p", { class: "soft" }, "Reading…"));
  onServed = () => drawServed(now);
  served.addEventListener("change", onServed);
  drawServed(now);
  root.replaceChildren(h("div", { class: "head" }, h("h1", {}, "Models")), now, registry);
  await drawRegistry(registry);
  if (model) document.getElementById(`model-${model}`)?.scrollIntoView();
}

function drawServed(place) {
  const focused = place.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
  place.replaceChildren(
    h("div", { class: "head" }, h("h2", {}, "Served now"), h("span", { class: "gap" }), button("Serve another…", () => serveAnother(), { class: "small", "aria-label": "Serve another" })),
    served.problem && !served.isKnown ? h("p", { class: "error" }, served.problem)
      : h("ul", { class: "served-list" }, served.models.map((model) => h("li", {},
        h("b", {}, model.id), h("span", { class: "soft" }, model.parent ? model.version || `on ${model.parent}` : `base, ${plural(model.context_length, "token")} of context`),
        h("span", { class: "gap" }), link("Chat", `#/chat?model=${encodeURIComponent(model.id)}`, { "aria-label": `Chat with ${model.id}` }),
        model.loaded && button("Unload", () => attempt(() => served.unload(model.id)), { class: "small", "aria-label": `Unload ${model.id}` })))));
  if (focused) [...place.querySelectorAll("[aria-label]")].find((each) => each.getAttribute("aria-label") === focused)?.focus();
}

async function drawRegistry(place) {
  let models;
  try { models = await list("v1/registry/models"); } catch (error) {
    place.replaceChildren(empty("Models can't be listed.", error.isAbsent ? "This gateway has no registry." : error.message));
    return;
  }
  place.replaceChildren(...(models.length ? await Promise.all(models.map((model) => card(model, () => drawRegistry(place))))
    : [empty("Nothing is registered yet.", "A job that succeeds registers a version and moves its alias:", "firn llm --train --project-name offers --data-path rows.csv --text-column text")]));
}

async function card(model, changed) {
  const name = last(model.name);
  const versions = await list(`v1/registry/models/${encodeURIComponent(name)}/versions`, { isQuiet: true }).catch(() => null);
  const number = (version) => version.version ?? Number(last(version.name));
  const rows = versions?.toReversed().map((version) => [
    link(`Version ${number(version)}`, `#/models/${encodeURIComponent(name)}/${number(version)}`),
    h("span", { class: "chips" }, (version.aliases ?? []).map((alias) => chip(last(alias), "alias"))),
    fromTo(version.metrics?.["base.loss"], version.metrics?.["tuned.loss"]),
    fromTo(version.metrics?.["base.field_recall"], version.metrics?.["tuned.field_recall"]),
    ago(version.create_time),
    button("Promote…", () => promote(name, number(version), model.aliases, changed), { class: "small", "aria-label": `Promote version ${number(version)} of ${name}` }),
  ]);
  return h("article", { class: "card", id: `model-${name}` },
    h("header", {}, h("h2", {}, name), h("span", { class: "soft" }, plural(model.versions, "version")), h("span", { class: "gap" }),
      h("span", { class: "chips" }, (model.aliases ?? []).map((alias) => chip(`${last(alias.name)} → ${alias.version}`, "alias")))),
    rows ? table(`Versions of ${name}`, ["version", "aliases", "n:held-out loss", "n:field recall", "registered", ""], rows)
      : h("p", { class: "soft" }, "This gateway does not list versions. From a shell: ", h("code", {}, `firn models show ${name}`)));
}

/** Points an alias to a version, after saying what that changes. */
export async function promote(model, version, aliases = [], changed = () => {}) {
  const names = aliases.map((alias) => last(alias.name));
  const chosen = await dialog(`Promote version ${version} of ${model}`, (close) => {
    const input = h("input", { value: names.includes("best") || !names.length ? "best" : names[0], required: true, pattern: "[a-z]([a-z0-9\\-]{0,61}[a-z0-9])?", spellcheck: "false", autocomplete: "off" });
    const known = h("div", { class: "chips", role: "group", "aria-label": "Aliases that are there" },
      names.map((name) => button(name, () => { input.value = name; input.focus(); }, { class: "small" })));
    return h("form", { on: { submit: (event) => { event.preventDefault(); close(input.value.trim()); } } },
      h("p", {}, "An alias is a name that callers ask for, such as ", h("code", {}, `${model}@best`), ". Moving it changes who answers, at once and for all of them."),
      h("label", { class: "field" }, "Alias", input), known,
      h("div", { class: "actions" }, h("button", { class: "main" }, "Go on"), button("Cancel", () => close(""))));
  });
  if (!chosen) return;
  const before = aliases.find((alias) => last(alias.name) === chosen);
  if (before?.version === version) { toast(`${model}@${chosen} is version ${version} already`); return; }
  const is = before ? `${model}@${chosen} answers with version ${before.version} now.` : `${model}@${chosen} is new.`;
  if (!(await confirmed("Move the alias?", `${is} It will answer with version ${version}.`, "Move it"))) return;
  const moved = await attempt(() => call(`v1/registry/models/${encodeURIComponent(model)}/aliases/${encodeURIComponent(chosen)}`, { method: "PUT", json: { version } }));
  if (!moved) return;
  toast(`${model}@${chosen} is version ${version}`);
  await changed();
  // Inference follows the registry a moment later.
  setTimeout(() => served.refresh(true), 1500);
}
