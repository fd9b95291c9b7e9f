// Where a message is written: Enter sends, Shift+Enter is a new line.

import { button, fresh, h } from "./dom.js";

/** `send` gets the text and may refuse it by returning false; `stop` ends what runs. */
export function composer({ label, placeholder, send, stop, extra = [] }) {
  const id = fresh("prompt");
  const area = h("textarea", { id, rows: 1, placeholder, "aria-keyshortcuts": "/", enterkeyhint: "send" });
  const go = h("button", { class: "main" }, "Send");
  const halt = button("Stop", stop, { class: "stop", hidden: true, "aria-keyshortcuts": "Escape" });
  const grow = () => {
    area.style.height = "auto";
    area.style.height = `${Math.min(area.scrollHeight + 2, innerHeight * 0.4)}px`;
  };
  const submit = (event) => {
    event?.preventDefault();
    const text = area.value.trim();
    if (!text) { area.focus(); return; }
    if (send(text) === false) return;
    area.value = "";
    grow();
  };
  area.addEventListener("input", grow);
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  return {
    element: h("form", { class: "composer", on: { submit } },
      h("label", { for: id, class: "offscreen" }, label), area,
      h("div", { class: "actions" }, extra, h("span", { class: "gap" }), halt, go)),
    area,
    get draft() { return area.value.trim(); },
    set draft(text) { area.value = text; grow(); },
    set isBusy(isBusy) {
      const hadFocus = document.activeElement === go || document.activeElement === halt;
      go.hidden = isBusy;
      halt.hidden = !isBusy;
      if (hadFocus) (isBusy ? halt : area).focus();
    },
  };
}

/** Keeps the end of a page that grows in sight, unless someone has scrolled away from it. */
export function follower() {
  let isFollowing = true;
  const isAtEnd = () => innerHeight + scrollY >= document.documentElement.scrollHeight - 120;
  addEventListener("scroll", () => { isFollowing = isAtEnd(); }, { passive: true });
  return {
    begin() { isFollowing = true; },
    watch(element) {
      new ResizeObserver(() => {
        if (isFollowing && element.offsetParent) scrollTo({ top: document.documentElement.scrollHeight });
      }).observe(element);
    },
  };
}
