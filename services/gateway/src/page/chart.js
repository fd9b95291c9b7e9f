// Curves over steps, as SVG: drawn anew at most once a frame.

import { button, h, short, svg } from "./dom.js";

/** Points of a curve that are drawn. */
const MOST = 600;

/** Round numbers from `low` to `high`. */
function ticks(low, high, wanted) {
  const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough) ?? rough;
  const all = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) all.push(Math.abs(at) < step * 1e-6 ? 0 : at);
  return all;
}

/** Round numbers on a scale of powers of ten; `low` and `high` are powers. */
function powers(low, high) {
  const factors = high - low > 2.5 ? [1] : [1, 2, 5], all = [];
  for (let power = Math.floor(low); power <= high; power++) {
    for (const factor of factors) if (power + Math.log10(factor) >= low && power + Math.log10(factor) <= high) all.push(factor * 10 ** power);
  }
  return all;
}

/** Every so many points, and the last one always. */
function thin(points) {
  const stride = Math.ceil(points.length / MOST);
  return stride <= 1 ? points : points.filter((_, at) => at % stride === 0 || at === points.length - 1);
}

/** The mean of each point and its neighbours, as many on either side, so that it does not lag. */
function smooth(points) {
  const reach = Math.min(25, Math.ceil(points.length / 30));
  return points.map(({ x }, at) => {
    const side = Math.min(reach, at, points.length - 1 - at);
    const near = points.slice(at - side, at + side + 1);
    return { x, y: near.reduce((sum, { y }) => sum + y, 0) / near.length };
  });
}

/**
 * A chart; `series` are `{ name, kind: "line" | "smooth" | "dots", colour: 1 | 2 }`. `set` gives each its points
 * `{ x, y }`. One with `canLog` has a button for a logarithmic scale.
 */
export function chart({ title, series, height = 240, canLog = false }) {
  const area = svg("svg", { class: "plot", height, role: "img", tabindex: "0" });
  const read = h("p", { class: "reading", "aria-live": "off" });
  const legend = series.length > 1 && h("p", { class: "keys-of-plot" }, series.map(({ name, colour }) => h("span", { class: `key c${colour}` }, name)));
  let isLog = false;
  const scale = button("log scale", () => {
    isLog = !isLog;
    scale.setAttribute("aria-pressed", String(isLog));
    draw();
  }, { class: "textual", "aria-pressed": "false" });
  const element = h("figure", { class: "chart" }, h("figcaption", {}, h("b", {}, title), legend, canLog && scale, read), area);
  let width = 720;
  const edge = { left: 52, right: 12, top: 10, bottom: 26 };
  let data = series.map(() => []), range = null, isWaiting = false, cursor = null;

  const put = (y) => (isLog ? Math.log10(Math.max(y, 1e-6)) : y);
  const xOf = (x) => edge.left + ((x - range.x0) / (range.x1 - range.x0)) * (width - edge.left - edge.right);
  const yOf = (y) => height - edge.bottom - ((put(y) - put(range.y0)) / (put(range.y1) - put(range.y0))) * (height - edge.top - edge.bottom);
  const path = (points) => points.map(({ x, y }, at) => `${at ? "L" : "M"}${xOf(x).toFixed(1)} ${yOf(y).toFixed(1)}`).join("");

  function draw() {
    isWaiting = false;
    width = Math.max(160, area.clientWidth || width);
    area.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const all = data.flat().filter(({ y }) => Number.isFinite(y));
    if (!all.length) {
      area.replaceChildren(svg("text", { class: "none", x: width / 2, y: height / 2, "text-anchor": "middle" }, "no step yet"));
      area.setAttribute("aria-label", `${title}: no step yet`);
      return;
    }
    const ys = all.map(({ y }) => y), xs = all.map(({ x }) => x);
    // One high first step must not press the rest flat.
    const sorted = [...ys].sort((a, b) => a - b);
    const low = isLog ? Math.max(1e-6, sorted[0]) : Math.min(0, sorted[0]), high = sorted.length > 40 ? Math.max(sorted[Math.floor(sorted.length * 0.99)], ...data.at(-1).map(({ y }) => y)) : sorted.at(-1);
    range = { x0: Math.min(...xs, 0), x1: Math.max(...xs, 1), y0: low, y1: high > low ? low + (high - low) * 1.06 : low + 1 };
    const parts = [];
    for (const y of isLog ? powers(put(range.y0), put(range.y1)) : ticks(range.y0, range.y1, height > 160 ? 5 : 3)) {
      parts.push(svg("line", { class: "grid", x1: edge.left, x2: width - edge.right, y1: yOf(y), y2: yOf(y) }),
        svg("text", { x: edge.left - 8, y: yOf(y) + 4, "text-anchor": "end" }, short(y)));
    }
    for (const x of ticks(range.x0, range.x1, Math.max(2, width / 90)).filter(Number.isInteger)) {
      parts.push(svg("text", { x: xOf(x), y: height - 6, "text-anchor": "middle" }, String(x)));
    }
    series.forEach(({ kind, colour }, at) => {
      const points = thin(data[at].filter(({ y }) => Number.isFinite(y))).map(({ x, y }) => ({ x, y: Math.min(y, range.y1) }));
      if (!points.length) return;
      if (kind === "smooth" && points.length > 24) {
        parts.push(svg("path", { class: `curve faint c${colour}`, d: path(points) }), svg("path", { class: `curve c${colour}`, d: path(smooth(points)) }));
      } else parts.push(svg("path", { class: `curve c${colour}`, d: path(points) }));
      if (kind === "dots" || points.length < 3) parts.push(...points.map(({ x, y }) => svg("circle", { class: `dot c${colour}`, cx: xOf(x), cy: yOf(y), r: 3.5 })));
    });
    parts.push(svg("g", { class: "cursor" }));
    area.replaceChildren(...parts);
    const ends = series.map(({ name }, at) => data[at].length && `${name} ${short(data[at].at(-1).y)}`).filter(Boolean);
    area.setAttribute("aria-label", `${title} after step ${Math.max(...xs)}: ${ends.join(", ")}`);
    tell(cursor);
  }

  /** Reads the curves at a step; at the last one if none is pointed at. */
  function tell(step) {
    cursor = step;
    const longest = data.reduce((best, points) => (points.length > best.length ? points : best), []);
    if (!longest.length || !range) return;
    const x = step ?? longest.at(-1).x;
    const near = (points) => points.reduce((best, point) => (Math.abs(point.x - x) < Math.abs(best.x - x) ? point : best), points[0]);
    const at = near(longest).x;
    read.textContent = `step ${at}` + series.map(({ name }, index) => {
      const point = data[index].length && near(data[index]);
      return point && (index === 0 || point.x <= at || step === null) ? `  ·  ${name} ${short(point.y)}` : "";
    }).join("");
    area.querySelector(".cursor")?.replaceChildren(...(step === null ? [] : [
      svg("line", { x1: xOf(at), x2: xOf(at), y1: edge.top, y2: height - edge.bottom }),
      ...series.flatMap(({ colour }, index) => {
        const point = data[index].find((each) => each.x === at);
        return point ? [svg("circle", { class: `dot c${colour}`, cx: xOf(at), cy: yOf(Math.min(point.y, range.y1)), r: 4 })] : [];
      }),
    ]));
  }

  area.addEventListener("pointermove", (event) => {
    if (!range) return;
    const box = area.getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width * width - edge.left) / (width - edge.left - edge.right);
    tell(range.x0 + Math.max(0, Math.min(1, share)) * (range.x1 - range.x0));
  });
  area.addEventListener("pointerleave", () => tell(null));
  area.addEventListener("blur", () => tell(null));
  area.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !range) return;
    event.preventDefault();
    const points = data[0], from = cursor ?? points.at(-1)?.x ?? 0;
    const at = points.findIndex(({ x }) => x >= from);
    tell(points[Math.max(0, Math.min(points.length - 1, (at < 0 ? points.length - 1 : at) + by * Math.max(1, Math.round(points.length / 100))))]?.x ?? null);
  });
  const soon = () => { if (!isWaiting) { isWaiting = true; requestAnimationFrame(draw); } };
  // One pixel is one unit, so that words have one size on every screen.
  new ResizeObserver(() => { if (area.clientWidth && Math.abs(area.clientWidth - width) > 1) soon(); }).observe(area);
  draw();
  return { element, set(points) { data = points; soon(); } };
}
