// A row to begin with: one that the last job held out.

import { list } from "./api.js";
import { button, h } from "./dom.js";

let asked = null;

async function lastHeldOut() {
  const jobs = await list("v1/jobs", { isQuiet: true }).catch(() => []);
  jobs.sort((a, b) => String(a.create_time).localeCompare(String(b.create_time)));
  return jobs.findLast((job) => job.tuned_evaluation?.sample_prompt)?.tuned_evaluation.sample_prompt;
}

/** Offers the row once it is known; nothing if there is none. */
export function sampleButton(take) {
  const place = h("p", {});
  asked ??= lastHeldOut();
  asked.then((prompt) => {
    if (prompt) place.append(button("Try a held-out row", () => take(prompt), { title: prompt }));
    else asked = null;
  });
  return place;
}
