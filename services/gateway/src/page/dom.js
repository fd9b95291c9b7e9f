// Elements, numbers and words. Data reaches the page as text alone: nothing here takes markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") for (const [type, listener] of Object.entries(value)) element.addEventListener(type, listener);
    else if (name === "class") element.setAttribute("class", value);
    else if (name === "value" && "value" in element) element.value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  // `append` makes text nodes of strings.
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Makes an HTML element. */
export const h = (tag, props, ...children) => fill(document.createElement(tag), props, children);
/** Makes an SVG element. */
export const svg = (tag, props, ...children) => fill(document.createElementNS(SVG, tag), props, children);

export const button = (label, click, props = {}) => h("button", { type: "button", on: { click }, ...props }, label);
export const link = (label, href, props = {}) => h("a", { href, ...props }, label);
export const chip = (label, kind = "", props = {}) => h("span", { class: `chip ${kind}`, ...props }, label);

let ids = 0;
/** An id that no other element has. */
export const fresh = (prefix) => `${prefix}-${++ids}`;

/** What a part shows that has nothing yet, with the command that changes it. */
export function empty(title, text, command) {
  return h("div", { class: "empty" }, h("p", { class: "lead" }, title), text && h("p", {}, text),
    command && h("p", {}, h("code", { class: "command" }, command)));
}

/** Says something for a while, also to those who listen. */
export function toast(text, isBad = false) {
  const note = h("div", { class: isBad ? "toast bad" : "toast" }, text);
  const place = document.getElementById("toasts");
  place.append(note);
  while (place.children.length > 2) place.firstChild.remove();
  setTimeout(() => note.remove(), isBad ? 9000 : 4500);
}

/** Does something and says so if it fails. */
export async function attempt(work) {
  try { return await work(); } catch (error) {
    if (error.name !== "AbortError") toast(error.message, true);
    return undefined;
  }
}

/** Opens a dialog of its own; `body` gets a function that closes it with a value. */
export function dialog(title, body) {
  return new Promise((resolve) => {
    const id = fresh("dialog");
    const box = h("dialog", { "aria-labelledby": id }, h("h2", { id }, title));
    box.append(body((value) => box.close(value)));
    box.addEventListener("close", () => { box.remove(); resolve(box.returnValue); });
    document.body.append(box);
    box.showModal();
  });
}

/** Asks before something is done. */
export async function confirmed(title, text, label) {
  const answer = await dialog(title, (close) => h("div", {}, h("p", {}, text), h("div", { class: "actions" },
    button(label, () => close("yes"), { class: "main" }), button("Cancel", () => close("")))));
  return answer === "yes";
}

export async function copy(text) {
  try { await navigator.clipboard.writeText(text); } catch {
    // Not there on plain HTTP.
    const area = h("textarea", { class: "offscreen", value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast("Copied");
}

export const count = (number) => (number ?? 0).toLocaleString("en");
export const plural = (number, one, more = one + "s") => `${count(number)} ${number === 1 ? one : more}`;
export const last = (name) => String(name ?? "").split("/").pop();

/** A number with as many digits as say something. */
export function short(number, digits = 3) {
  if (number === null || number === undefined || !Number.isFinite(number)) return "–";
  const size = Math.abs(number);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return number.toExponential(1).replace(".0e", "e").replace("e-", "e−").replace("e+", "e");
  return size >= 1000 ? Math.round(number).toLocaleString("en") : String(Number(number.toFixed(digits)));
}

export function seconds(time) {
  if (!Number.isFinite(time)) return "–";
  if (time < 1) return `${Math.round(time * 1000)} ms`;
  if (time < 60) return `${time.toFixed(1)} s`;
  const minutes = Math.floor(time / 60);
  return minutes < 60 ? `${minutes} min ${Math.round(time % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function bytes(size) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  for (; size >= 1024 && at < units.length - 1; at++) size /= 1024;
  return `${at ? size.toFixed(1) : size} ${units[at]}`;
}

/** When something was, in words, with the exact time for those who point at it. */
export function ago(text) {
  const date = new Date(text);
  if (!text || Number.isNaN(date.getTime())) return h("span", {}, "–");
  const past = (Date.now() - date) / 1000;
  const words = past < 60 ? "just now" : past < 3600 ? `${Math.floor(past / 60)} min ago`
    : past < 86400 ? `${Math.floor(past / 3600)} h ago` : date.toLocaleDateString("en", { dateStyle: "medium" });
  return h("time", { datetime: date.toISOString(), title: date.toLocaleString("en") }, words);
}

/** Names and what they are, as a list of terms. */
export const facts = (pairs) => h("dl", { class: "facts" },
  pairs.filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));

/** A table whose first row names the columns. `n` before a name: numbers. */
export function table(caption, head, rows) {
  const isNumber = head.map((name) => name.startsWith("n:"));
  const cell = (value, at) => h("td", { class: isNumber[at] && "n", "data-label": head[at].replace("n:", "") }, value);
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", { class: head.length > 4 && "stack" }, h("caption", { class: "offscreen" }, caption),
      h("thead", {}, h("tr", {}, head.map((name, at) => h("th", { scope: "col", class: isNumber[at] && "n" }, name ? name.replace("n:", "") : h("span", { class: "offscreen" }, "actions"))))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map(cell))))));
}
