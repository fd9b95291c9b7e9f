// Which part is shown, the keys, the colours.

import { served } from "./served.js";
import { plural } from "./dom.js";
import * as chat from "./chat.js";
import * as compare from "./compare.js";
import * as data from "./data.js";
import * as jobs from "./jobs.js";
import * as models from "./models.js";

const views = { chat, compare, jobs, models, data };
const mounted = new Set();
let current = null;

function route() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/").map(decodeURIComponent);
  return { name: Object.hasOwn(views, name) ? name : "chat", rest: rest.filter(Boolean), query: new URLSearchParams(query) };
}

function show() {
  if (location.hash === "#main") { document.getElementById("main").focus(); return; }
  const { name, rest, query } = route();
  if (current && current !== name) views[current].hide?.();
  for (const other of Object.keys(views)) {
    const tab = document.getElementById(`tab-${other}`), isShown = other === name;
    tab.setAttribute("aria-selected", String(isShown));
    tab.tabIndex = isShown ? 0 : -1;
    document.getElementById(other).hidden = !isShown;
  }
  document.title = name === "chat" ? "Firn" : `${name[0].toUpperCase()}${name.slice(1)} · Firn`;
  document.body.dataset.view = name;
  if (!mounted.has(name)) {
    mounted.add(name);
    views[name].mount(document.getElementById(name));
  }
  current = name;
  views[name].show?.(rest, query);
}

function isTyping(target) {
  return target instanceof HTMLElement && (target.isContentEditable || target.matches("input:not([type=range], [type=checkbox]), textarea, select"));
}

document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") {
    document.getElementById("tip").hidden = true;
    views[current].stop?.();
  } else if (!isTyping(event.target) && event.key === "/") {
    event.preventDefault();
    if (!views[current].focusPrompt) location.hash = "#/chat";
    requestAnimationFrame(() => views[current].focusPrompt?.());
  } else if (!isTyping(event.target) && event.key === "?") {
    event.preventDefault();
    document.getElementById("keys").showModal();
  }
});

document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
  const tabs = [...event.currentTarget.querySelectorAll("[role=tab]")], at = tabs.indexOf(document.activeElement);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (event.key === " ") { event.preventDefault(); document.activeElement.click(); }
  if (to === undefined || at < 0) return;
  event.preventDefault();
  const tab = tabs[(to + tabs.length) % tabs.length];
  tab.focus();
  tab.click();
});

const THEMES = { "": ["◐", "as the system"], light: ["☀", "light"], dark: ["☾", "dark"] };

function theme(name) {
  const [sign, words] = THEMES[name] ?? THEMES[""];
  const button = document.getElementById("theme");
  document.documentElement.dataset.theme = name;
  button.textContent = sign;
  button.setAttribute("aria-label", `Colours: ${words}`);
  button.title = `Colours: ${words}`;
}

document.getElementById("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES), now = document.documentElement.dataset.theme ?? "";
  const next = names[(names.indexOf(now) + 1) % names.length];
  localStorage.setItem("firn-theme", next);
  theme(next);
});
document.getElementById("keys-button").addEventListener("click", () => document.getElementById("keys").showModal());
theme(localStorage.getItem("firn-theme") ?? "");

served.addEventListener("change", () => {
  const badge = document.getElementById("served"), { models: list, problem } = served;
  badge.hidden = false;
  badge.classList.toggle("bad", Boolean(problem));
  badge.textContent = problem ? "no answer" : plural(list.length, "model");
  badge.title = problem || list.map((model) => model.id).join(", ");
});
window.addEventListener("hashchange", show);
show();
served.watch();
