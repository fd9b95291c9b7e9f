// One version: what it was made of, how it measures, and the proof that a merge changed nothing.

import { call, get, hasToken } from "./api.js";
import { chart } from "./chart.js";
import { ago, attempt, button, bytes, chip, count, empty, facts, h, last, link, plural, seconds, short, table } from "./dom.js";
import { snapshotLink } from "./job.js";
import { fromTo } from "./jobs.js";
import { promote } from "./models.js";
import { compareLink, served } from "./served.js";

const NAMES = { loss: "loss, nats", field_recall: "field recall", token_accuracy: "token accuracy", preference_accuracy: "chosen answer preferred" };
/** What the gateway hands out. */
const READABLE = ["report.html", "report.json", "README.md", "training_params.json", "loss.svg"];

export async function versionView(model, number) {
  const path = `v1/registry/models/${encodeURIComponent(model)}/versions/${number}`;
  const crumbs = h("p", { class: "crumbs" }, link("Models", "#/models"), " / ", model, ` / ${number}`);
  let version;
  try { version = await get(path); } catch (error) {
    return h("div", { class: "page" }, crumbs, empty(error.isAbsent ? "This gateway does not show versions." : error.message, "From a shell:", `firn models show ${model}`));
  }
  const hasReport = (version.files ?? []).some((file) => file.path === "report.json");
  const report = hasReport ? await get(`${path}/files/report.json`, { isQuiet: true }).catch(() => null) : null;
  const again = async () => page.replaceWith(await versionView(model, number));
  const aliases = (version.aliases ?? []).map(last);
  const page = h("div", { class: "page" }, crumbs,
    h("div", { class: "head" }, h("h1", {}, `${model} ${number}`), aliases.map((alias) => chip(alias, "alias")), h("span", { class: "gap" }),
      serveButton(model, number, aliases), button("Promote…", () => promoteHere(model, number, again), { class: "main" })),
    metrics(version, report), lineage(version, report), curves(report), proof(version, report), parameters(report), files(version, path));
  return page;
}

async function promoteHere(model, number, again) {
  const all = (await get("v1/registry/models?page_size=1000").catch(() => null))?.data ?? [];
  await promote(model, number, all.find((each) => last(each.name) === model)?.aliases, again);
}

function serveButton(model, number, aliases) {
  const place = h("span", { class: "actions" });
  const draw = () => {
    const id = [`${model}@${number}`, ...aliases.map((alias) => `${model}@${alias}`)].find((each) => served.find(each));
    place.replaceChildren(...(id ? [link("Chat", `#/chat?model=${encodeURIComponent(id)}`, { class: "button" }), link("Compare with the base", compareLink(id), { class: "button" })]
      : [ button("Serve", async (event) => { event.target.disabled = true; await attempt(() => served.load(`${model}@${number}`)); draw(); })]));
  };
  draw();
  return place;
}

function metrics(version, report) {
  const all = version.metrics ?? {};
  const keys = [...new Set(Object.keys(all).map((key) => /^(?:base|tuned)\.(.*)$/.exec(key)?.[1]).filter(Boolean))];
  if (!keys.length) return h("section", { class: "card" }, h("h2", {}, "Measured"), h("p", { class: "soft" }, "Nothing was held out, so nothing was measured. ", h("code", {}, "--held-out-rows 100")));
  const rows = report?.tuned_evaluation?.rows, sample = report?.tuned_evaluation;
  return h("section", { class: "card" }, h("h2", {}, rows ? `On ${plural(rows, "held-out row")}` : "Base and tuned, on held-out rows"),
    h("div", { class: "measures" }, keys.map((key) => {
      const before = all[`base.${key}`], after = all[`tuned.${key}`];
      const isBetter = key === "loss" ? after < before : after > before;
      return h("div", { class: "measure" }, h("span", {}, NAMES[key] ?? key), fromTo(before, after),
        before !== undefined && after !== undefined && after !== before && chip(isBetter ? "better" : "worse", isBetter ? "good" : "bad"));
    })),
    sample?.sample_prompt && h("details", {}, h("summary", {}, "One of these rows"), h("blockquote", {}, sample.sample_prompt),
      report.base_evaluation?.sample_answer && [h("p", { class: "soft" }, "Base"), h("blockquote", {}, report.base_evaluation.sample_answer)],
      h("p", { class: "soft" }, "Tuned"), h("blockquote", {}, sample.sample_answer)));
}

function lineage(version, report) {
  const { base, snapshot, job, template_sha256: template } = version.lineage ?? {};
  const data = report?.snapshot;
  const jobId = job && last(job);
  const step = (name, value, note) => value && h("li", {}, h("span", { class: "soft" }, name), h("b", {}, value), note && h("small", {}, note));
  return h("section", { class: "card" }, h("h2", {}, "Lineage"),
    h("ol", { class: "lineage" },
      step("base", base),
      step("snapshot", snapshot && link(snapshot.replace("datasets/", "").replace("/snapshots/", " / "), snapshotLink(snapshot)), data && `${plural(data.train_rows, "row")}, ${count(data.train_tokens)} tokens`),
      step("job", jobId && link(jobId, `#/jobs/${encodeURIComponent(jobId)}`), report && `${plural(report.steps, "step")}, ${seconds(report.train_seconds)}`),
      step("version", last(version.name), ago(version.create_time))),
    facts([["chat template, sha256", template && h("code", { class: "hash" }, template)],
      ["trained parameters", report?.trained_parameters && count(report.trained_parameters)],
      ["weights", report?.best_step ? `of step ${report.best_step}, the best measured` : null]]));
}

function curves(report) {
  const points = report?.loss_curve;
  if (!points?.length) return null;
  const loss = chart({ title: "Loss, nats", canLog: true, series: [{ name: "training", kind: "smooth", colour: 1 }, { name: "held-out rows", kind: "dots", colour: 2 }] });
  loss.set([points.map((point) => ({ x: point.step, y: point.loss })), points.filter((point) => point.held_out).map((point) => ({ x: point.step, y: point.held_out.loss }))]);
  return h("section", { class: "card" }, loss.element);
}

function proof(version, report) {
  const isAdapter = (version.files ?? []).some((file) => file.path === "adapter_model.safetensors");
  if (!isAdapter) return null;
  const section = (...children) => h("section", { class: "card", "data-part": "merge" }, h("h2", {}, "Merge"), children);
  const command = h("code", { class: "command" }, "firn tools merge-llm-adapter --base-model-path BASE --adapter-path ADAPTER --output-folder OUT");
  const found = report?.merge_proof;
  if (!found) return section(h("p", { class: "soft" }, "An adapter: it is served on the base's own weights, so nothing was merged. To fold it in, with a proof that nothing else changes:"), command);
  const measure = (name, value) => h("div", { class: "measure" }, h("span", {}, name), h("b", {}, value));
  return section(
    h("p", { class: "soft" }, `Folded into the base and compared with both on ${plural(found.tokens, "token")} of ${found.rows ? plural(found.rows, "held-out row") : "made-up rows"}: `,
      chip(found.accepted ? "computes the same" : "computes something else: serve the adapter instead", found.accepted ? "good" : "bad")),
    h("div", { class: "measures" }, measure("largest logit difference", short(found.largest_logit_difference)),
      measure("same most probable token", `${short(100 * found.greedy_agreement, 1)} %`)),
    found.accepted && h("details", {}, h("summary", {}, "How to merge"), command));
}

function parameters(report) {
  const spec = report?.spec;
  if (!spec) return null;
  const words = (value) => (value !== null && typeof value === "object" ? JSON.stringify(value) : String(value));
  return h("details", { class: "card" }, h("summary", {}, "Hyper-parameters"),
    facts([...Object.entries(spec.hyperparameters ?? {}), ...Object.entries(spec.lora ?? {}).map(([key, value]) => [`LoRA ${key}`, value])]
      .map(([key, value]) => [key.replaceAll("_", " "), words(value)])));
}

function files(version, path) {
  const all = version.files ?? [];
  if (!all.length) return null;
  const open = (file) => `${path}/files/${file.path.split("/").map(encodeURIComponent).join("/")}`;
  // A link can't carry the token: with one, the file is fetched and saved.
  const save = (file) => attempt(async () => {
    const url = URL.createObjectURL(await (await call(open(file))).blob());
    const anchor = h("a", { href: url, download: last(file.path) });
    anchor.click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  });
  const name = (file) => !READABLE.includes(file.path) ? file.path
    : hasToken() ? button(file.path, () => save(file), { class: "textual", title: "Save" })
      : link(file.path, open(file), { target: "_blank", rel: "noopener" });
  const page = all.find((file) => file.path === "report.html");
  return h("section", { class: "card" },
    h("div", { class: "head" }, h("h2", {}, "Files"), h("span", { class: "gap" }),
      page && (hasToken() ? button("Save the report", () => save(page)) : link("Open the report", open(page), { class: "button", target: "_blank", rel: "noopener" }))),
    table("Files", ["file", "n:size", "sha256"], all.map((file) => [name(file), bytes(file.size), h("code", { class: "hash", title: file.sha256 }, file.sha256?.slice(0, 16))])));
}
