// Snapshots of rows, and what stands out in them.

import { get, list } from "./api.js";
import { ago, chip, count, empty, facts, h, link, plural, table } from "./dom.js";

const KINDS = { error: ["can't be trained on", "bad"], warning: ["teach what one may not want", "warn"], note: ["good to know", ""] };

let root;

export function mount(place) { root = place; }

export async function show([dataset, snapshot]) {
  if (dataset && snapshot) { root.replaceChildren(await snapshotView(dataset, snapshot)); return; }
  const place = h("div", { class: "cards" }, h("p", { class: "soft" }, "Reading…"));
  root.replaceChildren(h("div", { class: "head" }, h("h1", {}, "Data")), place);
  let all;
  try { all = await list("v1/datasets"); } catch (error) {
    place.replaceChildren(empty("Snapshots can't be listed.", error.isAbsent ? "This gateway has no data-prep." : error.message));
    return;
  }
  place.replaceChildren(...(all.length ? all.toReversed().map(card)
    : [empty("No rows have been prepared yet.", "A job prepares its own. To see what is wrong with rows before:", "firn lint --data rows.csv --text-column text")]));
}

const parts = (name) => { const [, dataset, , snapshot] = name.split("/"); return { dataset, snapshot }; };

const stateChip = (state) => chip(String(state).toLowerCase(), { READY: "good", FAILED: "bad" }[state] ?? "busy");

function card(of) {
  const { dataset, snapshot } = parts(of.name);
  return h("article", { class: "card job" },
    h("header", {}, h("h2", {}, link(dataset, `#/data/${encodeURIComponent(dataset)}/${encodeURIComponent(snapshot)}`)), h("code", { class: "hash" }, snapshot.slice(0, 12)),
      stateChip(of.state), h("span", { class: "gap" }), ago(of.create_time)),
    of.error && h("p", { class: "error" }, of.error),
    split(of),
    h("p", { class: "soft stats" }, h("span", {}, plural(of.train_rows, "row") + " to train on"), h("span", {}, `${count(of.held_out_rows)} held out`), h("span", {}, `${count(of.train_tokens)} tokens`),
      of.truncated_rows > 0 && h("span", { class: "warn" }, `${count(of.truncated_rows)} cut`), of.duplicate_rows > 0 && h("span", { class: "warn" }, `${count(of.duplicate_rows)} more than once`)));
}

/** The two sides of a snapshot as a bar. */
function split({ train_rows: train, held_out_rows: held }) {
  if (!train && !held) return null;
  const one = h("i", { class: "train" }), other = h("i", { class: "held" });
  one.style.flexGrow = train;
  other.style.flexGrow = held;
  return h("div", { class: "split", role: "img", "aria-label": `${count(train)} rows to train on, ${count(held)} held out` }, one, other);
}

async function snapshotView(dataset, snapshot) {
  const path = `v1/datasets/${encodeURIComponent(dataset)}/${encodeURIComponent(snapshot)}`;
  const crumbs = h("p", { class: "crumbs" }, link("Data", "#/data"), " / ", dataset, " / ", snapshot.slice(0, 12));
  const of = await get(path).catch(async () => (await list("v1/datasets").catch(() => [])).find((each) => each.name === `datasets/${dataset}/snapshots/${snapshot}`));
  const report = of && of.state !== "READY" ? new Error("What stands out is known once the snapshot is ready")
    : await get(`${path}/report`, { isQuiet: true }).catch((error) => error);
  if (!of && report instanceof Error) return h("div", { class: "page" }, crumbs, empty("There is no such snapshot.", report.message, "firn datasets list"));
  const isRead = !(report instanceof Error);
  return h("div", { class: "page" }, crumbs,
    h("div", { class: "head" }, h("h1", {}, dataset), of && stateChip(of.state), h("span", { class: "gap" }), of && ago(of.create_time)),
    of?.error && h("p", { class: "error card" }, of.error),
    h("section", { class: "card" }, h("h2", {}, "Rows"), split(isRead ? report : of), numbers(of ?? {}, isRead ? report : {}), isRead && report.tokens && spread(report.tokens)),
    isRead ? findings(report) : h("section", { class: "card" }, h("h2", {}, "Findings"),
      h("p", { class: "soft" }, report.isAbsent ? "This gateway does not show findings. From a shell: " : `${report.message}. `, report.isAbsent && h("code", {}, "firn lint --data rows.csv"))));
}

function numbers(of, report) {
  const pick = (key) => report[key] ?? of[key];
  const share = report.train_tokens ? ` (${Math.round((report.completion_tokens / report.train_tokens) * 100)} %)` : "";
  return facts([["rows read", count(pick("rows"))], ["to train on", count(pick("train_rows"))], ["held out", count(pick("held_out_rows"))], ["tokens to train on", count(pick("train_tokens"))],
    ["of these, with loss", pick("completion_tokens") === undefined ? null : count(pick("completion_tokens")) + share],
    ["chat template, sha256", of.template_sha256 && h("code", { class: "hash" }, of.template_sha256)], ["folder on the stage", of.path && h("code", {}, of.path)]]);
}

/** Lengths of rows: from the shortest to the longest, with the middle and where 95 of 100 end. */
function spread({ min, median, p95, max }) {
  const at = (value) => `${max ? (value / max) * 100 : 0}%`;
  const whole = h("i", { class: "whole" }), most = h("i", { class: "most" }), middle = h("i", { class: "middle" });
  whole.style.left = at(min);
  most.style.left = at(min);
  most.style.width = `${max ? ((p95 - min) / max) * 100 : 0}%`;
  middle.style.left = at(median);
  const words = `Tokens of a row: shortest ${min}, half up to ${median}, 95 of 100 up to ${p95}, longest ${max}`;
  return h("div", { class: "spread" }, h("p", { class: "soft" }, "Tokens of a row"),
    h("div", { class: "band", role: "img", "aria-label": words }, whole, most, middle),
    h("p", { class: "stats soft" }, [["shortest", min], ["half up to", median], ["95 of 100 up to", p95], ["longest", max]].map(([name, value]) => h("span", {}, `${name} `, h("b", {}, count(value))))));
}

function findings({ findings: all = [], rows }) {
  if (!all.length) return h("section", { class: "card" }, h("h2", {}, "Findings"), h("p", { class: "good-words" }, `Nothing stands out in ${plural(rows, "row")}.`));
  return h("section", { class: "card" }, h("h2", {}, plural(all.length, "finding")),
    h("ul", { class: "findings" }, all.map(({ severity, code, count: number, share, advice, examples = [] }) => {
      const [words, kind] = KINDS[severity] ?? ["", ""];
      const bar = h("i", {});
      bar.style.width = `${Math.max(1, Math.min(100, share * 100))}%`;
      return h("li", { class: kind },
        h("header", {}, chip(severity, kind, { title: `these rows ${words}` }), h("h3", {}, code.replaceAll("-", " ")), h("span", { class: "gap" }),
          h("span", { class: "soft" }, `${plural(number, "row")}, ${share * 100 < 1 && share > 0 ? "under 1" : Math.round(share * 100)} %`)),
        h("div", { class: "share", "aria-hidden": "true" }, bar),
        h("p", {}, advice[0].toUpperCase() + advice.slice(1) + "."),
        examples.length > 0 && h("details", {}, h("summary", {}, plural(examples.length, "example")),
          table(`Examples of ${code}`, ["file", "n:row", "what is there"], examples.map((example) => [example.file, count(example.row), h("code", { class: "wrap" }, example.detail)]))));
    })));
}
