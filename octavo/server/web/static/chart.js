// Series over time in; an SVG chart out, with a scale, names at the lines and a reading under the pointer.

import { h, svg } from "./dom.js";

const USUAL_WIDTH = 480;
const HEIGHT = 168;
const EDGE = { top: 10, right: 12, bottom: 22, left: 50 };
const PLOT_HEIGHT = HEIGHT - EDGE.top - EDGE.bottom;

export class Chart {
  /** series: [{name, style}], style one of the classes line-1 … line-3; show(value) -> text; most: a fixed top, or null. */
  constructor({ title, about, series, show, most = null, area = false }) {
    Object.assign(this, { series, show, most, area });
    this.points = [];
    this.span = 1;
    this.width = USUAL_WIDTH;
    this.plot = svg("g");
    this.cursor = svg("line", { class: "cursor", y1: EDGE.top, y2: EDGE.top + PLOT_HEIGHT, visibility: "hidden" });
    this.canvas = svg(
      "svg",
      { viewBox: `0 0 ${USUAL_WIDTH} ${HEIGHT}`, class: "plot", role: "img", "aria-label": title },
      this.plot,
      this.cursor,
    );
    this.values = series.map(() => h("b", {}, "–"));
    const legend = series.map(({ name, style }, i) =>
      h("span", { class: `key ${style}` }, h("i"), name, " ", this.values[i]),
    );
    this.when = h("span", { class: "when" });
    this.element = h(
      "figure",
      { class: "chart" },
      h("figcaption", {}, h("h2", {}, title), h("p", { class: "fine" }, about)),
      h("div", { class: "legend" }, legend, this.when),
      this.canvas,
    );
    this.canvas.addEventListener("pointermove", (event) => this.#point(event));
    this.canvas.addEventListener("pointerleave", () => this.#point(null));
  }

  /** points: [{time (ms), values: [number or null]}], oldest first; span: milliseconds shown, up to `now`. */
  update(points, { now, span }) {
    Object.assign(this, { points, now, span });
    this.width = Math.round(this.canvas.getBoundingClientRect().width) || USUAL_WIDTH; // so that text keeps its size
    this.canvas.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    const top =
      this.most ?? niceTop(Math.max(0, ...points.flatMap(({ values }) => values.filter((value) => value !== null))));
    this.top = top;
    const marks = [0, 0.5, 1].map((share) => this.#level(share * top));
    const lines = this.series.flatMap(({ style }, i) => this.#line(i, style));
    this.plot.replaceChildren(...marks.flat(), ...this.#times(), ...lines);
    if (this.canvas.matches(":hover") && this.pointed) this.#read(this.pointed);
    else this.#read(null);
  }

  get #room() {
    return this.width - EDGE.left - EDGE.right;
  }

  #x(time) {
    return EDGE.left + this.#room * (1 - (this.now - time) / this.span);
  }

  #y(value) {
    return EDGE.top + PLOT_HEIGHT * (1 - Math.min(1, value / this.top));
  }

  #level(value) {
    const y = this.#y(value);
    return [
      svg("line", { class: value === 0 ? "base" : "grid", x1: EDGE.left, x2: this.width - EDGE.right, y1: y, y2: y }),
      svg("text", { x: EDGE.left - 8, y: y + 3.5, "text-anchor": "end" }, this.show(value)),
    ];
  }

  #times() {
    return [0, 0.5, 1].map((share) => {
      const seconds = Math.round((this.span * (1 - share)) / 1000);
      const words = seconds === 0 ? "now" : seconds >= 120 ? `−${Math.round(seconds / 6) / 10} min` : `−${seconds} s`;
      const anchor = share === 0 ? "start" : share === 1 ? "end" : "middle";
      return svg("text", { x: EDGE.left + share * this.#room, y: HEIGHT - 6, "text-anchor": anchor }, words);
    });
  }

  // a line for each stretch without gaps; a lone point is a dot
  #line(index, style) {
    const runs = [[]];
    for (const { time, values } of this.points) {
      if (values[index] === null || time < this.now - this.span) {
        if (runs.at(-1).length) runs.push([]);
      } else {
        runs.at(-1).push([this.#x(time), this.#y(values[index])]);
      }
    }
    return runs
      .filter((run) => run.length)
      .flatMap((run) => {
        const path = run.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L");
        if (run.length === 1) return [svg("circle", { class: `dot ${style}`, cx: run[0][0], cy: run[0][1], r: 1.8 })];
        const floor = EDGE.top + PLOT_HEIGHT;
        const filled = svg("path", {
          class: `area ${style}`,
          d: `M${path}L${run.at(-1)[0].toFixed(1)} ${floor}L${run[0][0].toFixed(1)} ${floor}Z`,
        });
        const line = svg("path", { class: `line ${style}`, d: `M${path}` });
        return this.area && index === 0 ? [filled, line] : [line];
      });
  }

  #point(event) {
    this.pointed = null;
    if (event && this.points.length) {
      const box = this.canvas.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * this.width;
      const time = this.now - this.span * (1 - (x - EDGE.left) / this.#room);
      this.pointed = this.points.reduce((a, b) => (Math.abs(b.time - time) < Math.abs(a.time - time) ? b : a));
    }
    this.#read(this.pointed);
  }

  #read(point) {
    const shown = point ?? this.points.at(-1);
    this.values.forEach(
      (value, i) => (value.textContent = shown && shown.values[i] !== null ? this.show(shown.values[i]) : "–"),
    );
    this.when.textContent = point ? new Date(point.time).toLocaleTimeString() : "";
    this.cursor.setAttribute("visibility", point ? "visible" : "hidden");
    if (!point) return;
    this.cursor.setAttribute("x1", this.#x(point.time));
    this.cursor.setAttribute("x2", this.#x(point.time));
  }
}

/** The next of 1, 2, 4, 6, 8, 10, 20, … at or above the value: its half is as round. */
export function niceTop(value) {
  if (value <= 0) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 6, 8, 10].map((factor) => factor * unit).find((top) => top >= value * 0.9999) ?? 10 * unit;
}
