// The form that starts a job: a file of rows, a base, a name, and few numbers.

import { ApiError, call, send } from "./api.js";
import { button, bytes, dialog, h, last, toast } from "./dom.js";
import { served } from "./served.js";

const FORMATS = {
  "": "as the columns say", prompt: "prompt and answer, made by templates", text: "ready-made text in a column",
  messages: "chats in a column", preference: "preferred and rejected answers",
};

const field = (label, input, note) => h("label", { class: "field" }, label, input, note && h("small", {}, note));
const select = (options) => h("select", {}, Object.entries(options).map(([value, label]) => h("option", { value }, label)));
const number = (value, props) => h("input", { type: "number", step: "any", placeholder: value, ...props });

export async function newJob() {
  const started = await dialog("New job", (close) => form(close));
  if (started) location.hash = `#/jobs/${encodeURIComponent(started)}`;
}

function form(close) {
  const file = h("input", { type: "file", accept: ".jsonl,.csv,.parquet", required: true });
  const chosen = h("small", {}, "CSV, JSONL or Parquet; a row a line, with a header or keys");
  const name = h("input", { required: true, pattern: "[a-z]([a-z0-9\\-]{0,61}[a-z0-9])?", placeholder: "offers", spellcheck: "false", autocomplete: "off" });
  const bases = served.models.map((model) => model.id).filter((id) => !id.startsWith("job-"));
  const base = select(Object.fromEntries((bases.length ? bases : ["base"]).map((id) => [id, id === served.base ? id : `${id}, and on from there`])));
  const epochs = number("3", { min: 0, max: 1000 }), rate = number("0.001", { min: 0 }), heldOut = number("0", { min: 0, step: 1 });
  const batch = number("4", { min: 1, step: 1 }), rank = number("16", { min: 1, step: 1 }), longest = number("1024", { min: 8, step: 1 }), seed = number("42", { min: 0, step: 1 });
  const format = select(FORMATS), parts = h("div", { class: "fields" });
  const quantization = select({ none: "none", int8: "8 bits a weight", int4: "4 bits a weight (NF4)" });
  const provesMerge = h("input", { type: "checkbox", role: "switch" });
  const prompt = h("textarea", { rows: 2, spellcheck: "false", value: "Describe this offer.\n{{ row | tojson }}" });
  const completion = h("textarea", { rows: 2, spellcheck: "false", placeholder: "{{ DESCRIPTION }}", required: true });
  const system = h("textarea", { rows: 1 });
  const column = h("input", { spellcheck: "false", value: "text" });
  const pair = { prompt: h("input", { value: "prompt" }), chosen: h("input", { value: "chosen" }), rejected: h("input", { value: "rejected" }) };
  const shown = () => ({
    prompt: [field("Prompt, a Jinja template over the row", prompt), field("Answer, a template", completion), field("System prompt", system)],
    text: [field("Column", column)], messages: [field("Column", column)],
    preference: Object.entries(pair).map(([label, input]) => field(`Column of the ${label}`, input)),
  })[format.value] ?? [];
  format.addEventListener("change", () => { column.value = format.value === "messages" ? "messages" : "text"; parts.replaceChildren(...shown()); });
  file.addEventListener("change", () => {
    const given = file.files[0];
    if (!given) return;
    chosen.textContent = `${given.name}, ${bytes(given.size)}`;
    if (!name.value) name.value = given.name.toLowerCase().replace(/\.[^.]*$/, "").replace(/[^a-z0-9]+/g, "-").replace(/^[^a-z]+|-+$/g, "").slice(0, 60);
  });
  const problem = h("p", { class: "error", role: "alert", hidden: true });
  const go = h("button", { class: "main" }, "Start training");

  const rowFormat = () => ({
    prompt: { prompt: { prompt_template: prompt.value, completion_template: completion.value, system: system.value } },
    text: { text: { column: column.value } }, messages: { messages: { column: column.value } },
    preference: { preference: Object.fromEntries(Object.entries(pair).map(([key, input]) => [key, input.value])) },
  })[format.value];

  /** Only what was filled in: the trainer knows its defaults. */
  function request(trainingFile) {
    const given = (pairs) => Object.fromEntries(pairs.filter(([, input]) => input.value !== "").map(([key, input]) => [key, Number(input.value)]));
    const firn = given([["held_out_rows", heldOut], ["max_tokens", longest]]);
    firn.hyperparameters = given([["learning_rate", rate], ["epochs", epochs], ["batch_size", batch]]);
    if (rank.value !== "") firn.lora = { r: Number(rank.value), alpha: 2 * Number(rank.value) };
    if (quantization.value !== "none") firn.quantization = quantization.value;
    if (provesMerge.checked) firn.prove_merge = true;
    if (format.value) firn.format = rowFormat();
    if (format.value === "preference") firn.objective = "dpo";
    return { model: base.value, training_file: trainingFile, suffix: name.value.trim(), ...given([["seed", seed]]), firn };
  }

  async function submit(event) {
    event.preventDefault();
    problem.hidden = true;
    go.disabled = true;
    try {
      const body = new FormData();
      body.append("purpose", "fine-tune");
      body.append("file", file.files[0]);
      go.textContent = "Sending the rows…";
      const stored = await (await call("v1/files", { body })).json();
      go.textContent = "Starting…";
      const job = await send("v1/fine_tuning/jobs", request(stored.id), { headers: { "Idempotency-Key": crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}` } });
      toast("The job is queued");
      close(last(job.firn?.name ?? job.id));
    } catch (error) {
      problem.textContent = error instanceof ApiError && error.isAbsent ? "This gateway takes no files. From a shell: firn llm --train --project-name offers --data-path rows.csv" : error.message;
      problem.hidden = false;
    }
    go.disabled = false;
    go.textContent = "Start training";
  }

  const drop = h("div", { class: "drop", on: {
    dragover: (event) => { event.preventDefault(); drop.classList.add("over"); },
    dragleave: () => drop.classList.remove("over"),
    drop: (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      if (!event.dataTransfer.files.length) return;
      file.files = event.dataTransfer.files;
      file.dispatchEvent(new Event("change"));
    },
  } }, h("label", { class: "field" }, "Rows, here or dropped here", file, chosen));
  return h("form", { class: "new-job", on: { submit } }, drop,
    h("div", { class: "fields pair" }, field("Name of the model", name, "small letters, digits and hyphens"), field("Starts from", base),
      field("Rows are", format), field("Passes over the rows", epochs), field("Learning rate", rate), field("Rows held out to measure", heldOut)),
    parts,
    h("details", { class: "advanced" }, h("summary", {}, "Advanced"), h("div", { class: "fields pair" },
      field("Blocks of a batch", batch), field("LoRA rank", rank), field("Longest row, tokens", longest), field("Seed", seed), field("Frozen base kept as", quantization),
      h("label", { class: "switch" }, provesMerge, "Prove that it can be merged into the base"))),
    problem, h("div", { class: "actions" }, go, button("Cancel", () => close(""))));
}
