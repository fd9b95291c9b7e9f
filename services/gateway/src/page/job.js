// One job, as it goes: its curves, what happened, and what can be done about it.

import { call, events, get, send } from "./api.js";
import { chart } from "./chart.js";
import { ago, attempt, button, bytes, confirmed, count, empty, facts, h, last, link, plural, seconds, short, table, toast } from "./dom.js";
import { fromTo, isGoing, progress, stateChip, versionLink } from "./jobs.js";
import { compareLink, served } from "./served.js";

const RETRY = 3_000;
const LOG_LINES = 200;
const isOver = (state) => ["SUCCEEDED", "FAILED", "CANCELLED"].includes(state);

export function jobView(id) {
  const path = `v1/jobs/${encodeURIComponent(id)}`;
  const stop = new AbortController();
  const steps = new Map();
  const loss = chart({ title: "Loss, nats", canLog: true, series: [{ name: "training", kind: "smooth", colour: 1 }, { name: "held-out rows", kind: "dots", colour: 2 }] });
  const small = [["Learning rate", "learning_rate", 1], ["Gradient norm", "grad_norm", 1], ["Tokens a second", "tokens_per_second", 1]]
    .map(([title, key, colour]) => ({ key, chart: chart({ title, series: [{ name: title.toLowerCase(), kind: key === "learning_rate" ? "line" : "smooth", colour }], height: 150 }) }));
  const head = h("div", { class: "head" }), bar = h("div", { class: "going" }), result = h("div", {});
  const log = h("ol", {}), logPlace = h("div", { class: "events", role: "region", "aria-label": "Events", tabindex: "0" }, log);
  const checkpoints = h("div", {}, h("p", { class: "soft" }, "None yet."));
  const more = h("div", {});
  const curves = h("div", { class: "card" }, loss.element, h("div", { class: "small-charts" }, small.map((each) => each.chart.element)));
  const element = h("div", { class: "page" },
    h("p", { class: "crumbs" }, link("Jobs", "#/jobs"), " / ", id), head, bar, result, curves,
    h("div", { class: "two" },
      h("section", { class: "card" }, h("h2", {}, "Checkpoints"), checkpoints),
      h("section", { class: "card" }, h("h2", {}, "Events"), logPlace)), more);
  let job = null, progressNow = null, checkpointStep = -1, later = 0, told = "", canList = true, connected = performance.now();

  function drawHead() {
    const state = job.state;
    const control = (label, verb, question) => button(label, async (event) => {
      if (question && !(await confirmed(`${label}?`, question, label))) return;
      event.target.disabled = true;
      const changed = await attempt(() => send(`${path}/${verb}`, {}));
      event.target.disabled = false;
      if (!changed) return;
      toast(`${label}: asked for`);
      if (changed.state) take({ type: "state", data: JSON.stringify(changed) });
    });
    head.replaceChildren(h("h1", {}, job.model || id), stateChip(state), h("span", { class: "gap" }),
      h("span", { class: "actions" }, state === "RUNNING" && control("Pause", "pause"), state === "PAUSED" && control("Resume", "resume"),
        !isOver(state) && control("Cancel", "cancel", "What was trained so far is kept as checkpoints; the job itself can't go on.")));
  }

  function drawBar() {
    curves.hidden = isOver(job.state) && steps.size === 0;
    const step = [...steps.values()].at(-1);
    bar.hidden = isOver(job.state);
    if (bar.hidden) return;
    const now = step?.step ?? job.step, all = step?.steps ?? job.steps;
    bar.replaceChildren(progress(now, all), h("p", { class: "soft stats" },
      h("span", {}, all ? `${count(now)} of ${plural(all, "step")}` : String(job.state).toLowerCase()),
      step && h("span", {}, `loss ${short(step.loss)}`),
      step && isGoing(job.state) && h("span", {}, `${seconds(step.seconds_left)} left`),
      step && h("span", {}, `${count(Math.round(step.tokens_per_second))} tokens/s`),
      step?.memory_bytes > 0 && h("span", {}, bytes(step.memory_bytes)),
      step?.epoch > 0 && h("span", {}, `pass ${step.epoch.toFixed(2)}`),
      progressNow && h("span", {}, `${progressNow.what}: ${count(progressNow.done)}${progressNow.total ? ` of ${count(progressNow.total)}` : ""}`)));
  }

  function drawResult() {
    result.hidden = !job.error && !job.tuned_evaluation && !job.version;
    const { base_evaluation: base, tuned_evaluation: tuned } = job;
    const parts = [];
    if (job.error) parts.push(h("p", { class: "error card", role: "alert" }, job.error));
    if (tuned) {
      const measures = [["loss, nats", "loss"], ["field recall", "field_recall"], ["token accuracy", "token_accuracy"], ["chosen answer preferred", "preference_accuracy"]]
        .filter(([, key]) => tuned[key] !== null && tuned[key] !== undefined);
      parts.push(h("section", { class: "card" }, h("h2", {}, `On ${plural(tuned.rows, "held-out row")}`),
        h("div", { class: "measures" }, measures.map(([name, key]) => h("div", { class: "measure" }, h("span", {}, name), fromTo(base?.[key], tuned[key])))),
        tuned.sample_prompt && h("details", {}, h("summary", {}, "One of them"),
          h("blockquote", {}, tuned.sample_prompt), base?.sample_answer && h("p", { class: "soft" }, "Base"), base?.sample_answer && h("blockquote", {}, base.sample_answer),
          h("p", { class: "soft" }, "Tuned"), h("blockquote", {}, tuned.sample_answer))));
    }
    if (job.version) parts.push(h("p", { class: "actions" }, link("See the version", versionLink(job.version), { class: "button main" }), link("Compare it with the base", compareLink(`${job.model}@${job.spec?.alias || "latest"}`), { class: "button" })));
    result.replaceChildren(...parts);
    const spec = job.spec ?? {}, form = spec.format && Object.entries(spec.format)[0];
    more.replaceChildren(h("details", { class: "card", open: more.querySelector("details")?.open },
      h("summary", {}, "What was asked for"),
      facts([["base", job.base], ["snapshot", job.snapshot && link(job.snapshot.replace("datasets/", ""), snapshotLink(job.snapshot))], ["began", ago(job.create_time)],
        ["objective", job.objective], ["rows", spec.source], ["format", form && `${form[0]}: ${Object.values(form[1]).filter(Boolean).join(" · ")}`],
        ["held out", spec.held_out_rows && plural(spec.held_out_rows, "row")], ["adapter", spec.lora && `LoRA r ${spec.lora.r}, α ${spec.lora.alpha}`],
        ["quantisation", spec.quantization], ["tokens", job.train_tokens && `${count(job.train_tokens)} in ${seconds(job.train_seconds)}`],
        ...Object.entries(spec.hyperparameters ?? {}).map(([key, value]) => [key.replaceAll("_", " "), typeof value === "object" ? JSON.stringify(value) : String(value)])])));
  }

  function say(text, { isBad = false, at = null } = {}) {
    // Jobs of before times were kept tell their past at once, and without them.
    const isLive = performance.now() - connected > 1500;
    const date = at ? new Date(at) : isLive && new Date();
    const time = date && h("time", { datetime: date.toISOString(), title: date.toLocaleString("en") }, date.toLocaleTimeString("en", { hour12: false }));
    log.append(h("li", { class: isBad && "error" }, time, time && " ", text));
    while (log.children.length > LOG_LINES) log.firstChild.remove();
    logPlace.scrollTop = logPlace.scrollHeight;
  }

  function drawCurves() {
    const all = [...steps.values()];
    loss.set([all.map(({ step, loss: y }) => ({ x: step, y })), all.filter((step) => step.held_out).map((step) => ({ x: step.step, y: step.held_out.loss }))]);
    for (const { key, chart: each } of small) each.set([all.map((step) => ({ x: step.step, y: step[key] }))]);
  }

  async function drawCheckpoints() {
    if (!canList) return;
    const found = await get(`${path}/checkpoints`, { isQuiet: true }).catch((error) => { canList = !error.isAbsent; });
    if (!canList) { checkpoints.replaceChildren(h("p", { class: "soft" }, "This gateway does not list checkpoints.")); return; }
    const all = (found?.data ?? []).toSorted((a, b) => b.step - a.step);
    if (!all.length) return;
    checkpoints.replaceChildren(table("Checkpoints", ["n:step", "n:loss", "n:held out", ""], all.map((each) => [
      h("span", {}, String(each.step), each.best && h("span", { title: "the best measured" }, " ★")), short(each.metrics?.loss), short(each.metrics?.held_out?.loss), serveButtons(each.id)])));
  }

  function serveButtons(name) {
    const place = h("span", { class: "actions small end" });
    const draw = () => place.replaceChildren(...(served.find(name)
      ? [link("Chat", `#/chat?model=${encodeURIComponent(name)}`, { class: "button" }), button("Unload", (event) => work(event, () => served.unload(name)))]
      : [button("Serve", (event) => work(event, () => served.load(name)), { title: `Serve ${name}` })]));
    const work = async (event, what) => { event.target.disabled = true; await attempt(what); draw(); };
    draw();
    return place;
  }

  function take({ type, data }) {
    const value = JSON.parse(data);
    if (type === "state") {
      if (told !== value.state) say(`${String(value.state).toLowerCase()}${value.error ? `: ${value.error}` : ""}`, { isBad: Boolean(value.error), at: value.time });
      told = value.state;
      // The events begin at the job's begin: until they reach what is known, they are its past.
      if (job && value.sequence < job.sequence) return;
      job = { ...job, ...value };
      progressNow = null;
      drawHead();
      drawResult();
      drawCheckpoints();
      if (isOver(job.state)) served.refresh(true);
    } else if (type === "step") {
      steps.set(value.step, value);
      if (value.held_out) say(`step ${value.step}: held-out loss ${short(value.held_out.loss)}${value.held_out.best ? ", the best so far" : ""}`, { at: value.time });
      if (value.step - checkpointStep >= 10 || value.held_out) { checkpointStep = value.step; clearTimeout(later); later = setTimeout(drawCheckpoints, 600); }
      drawCurves();
    } else if (type === "progress") {
      if (progressNow?.what !== value.what) say(`${value.what}…`);
      progressNow = value;
    } else if (type === "error") throw new Error(value.error?.message ?? "the events ended");
    if (job) drawBar();
  }

  async function follow() {
    let cursor = null;
    while (!stop.signal.aborted) {
      try {
        connected = performance.now();
        const response = await call(`${path}/events`, { signal: stop.signal, headers: cursor ? { "Last-Event-ID": cursor } : {} });
        for await (const event of events(response)) {
          cursor = event.id ?? cursor;
          take(event);
        }
        if (isOver(job?.state)) return;
      } catch (error) {
        if (error.name === "AbortError") return;
        if (error.isAbsent) { say("This gateway sends no events: the state is asked for every few seconds."); await poll(); return; }
        say(`${error.message}; asking again`, { isBad: true });
      }
      await new Promise((resolve) => { setTimeout(resolve, RETRY); });
    }
  }

  /** For gateways that know jobs by their list alone. */
  async function poll() {
    while (!stop.signal.aborted && !isOver(job?.state)) {
      const found = (await get("v1/jobs?page_size=1000", { isQuiet: true }).catch(() => null))?.data.find((each) => last(each.name) === id);
      if (found) take({ type: "state", data: JSON.stringify(found) });
      await new Promise((resolve) => { setTimeout(resolve, RETRY); });
    }
  }

  async function begin() {
    try { job = await get(path); } catch (error) {
      const listed = error.isAbsent ? (await get("v1/jobs?page_size=1000").catch(() => null))?.data.find((each) => last(each.name) === id) : null;
      if (!listed) { element.replaceChildren(empty(`There is no job ${id}.`, error.message, "firn jobs list"), h("p", {}, link("All jobs", "#/jobs"))); return; }
      job = listed;
    }
    if (stop.signal.aborted) return;
    drawHead();
    drawResult();
    drawBar();
    drawCheckpoints();
    await follow();
  }
  begin();
  return { element, close() { stop.abort(); } };
}

export const snapshotLink = (name) => {
  const [, dataset, , snapshot] = name.split("/");
  return `#/data/${encodeURIComponent(dataset)}/${encodeURIComponent(snapshot)}`;
};
