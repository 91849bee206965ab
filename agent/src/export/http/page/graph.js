// A graph over the last quarter of an hour, or what there is of it: axes, a cursor for the pointer and for arrow keys, and what is under it in words.

import { say, set, svg } from "./dom.js";
import { clock, minute } from "./format.js";

// Seconds that are shown at most, and at least.
const SPAN = 900;
const LEAST = 120;
const EDGE = { left: 54, right: 8, top: 6, bottom: 20 };
// Seconds between labels, of which the first that leaves so many pixels is taken.
const LABELS = [60, 120, 180, 300];
const ROOM = 64;

// Round steps of an axis from 0 up to at least `most`.
export function steps(most, wanted) {
  const raw = Math.max(most, Number.MIN_VALUE) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((it) => it * power >= raw) * power;
  return Array.from({ length: Math.ceil(most / step - 1e-9) + 1 }, (_, at) => at * step);
}

export class Graph {
  #steps = [];
  #now = 0;
  #span = SPAN;
  #cursor = null;
  #width = 0;

  // A painter has `ticks(steps)`: rows of an axis, [share of the height, label]; `draw(steps, plot)`: what is to be shown;
  // `at(step)` and `all(steps)`: one step and all of them in words.
  constructor(panel, height, painter) {
    this.painter = painter;
    this.height = height;
    this.readout = panel.querySelector(".readout");
    this.picture = panel.querySelector("svg");
    set(this.picture, {
      height,
      tabindex: 0,
      role: "slider",
      "aria-orientation": "horizontal",
      "aria-label": `${panel.querySelector("h2").textContent}, up to 15 minutes; arrow keys go through time`,
      "aria-valuemin": 0,
    });
    const at = (event) => this.#pointAt(event.offsetX);
    this.picture.addEventListener("pointermove", at);
    this.picture.addEventListener("pointerdown", at);
    this.picture.addEventListener("pointerleave", () => this.#move(null));
    this.picture.addEventListener("blur", () => this.#move(null));
    this.picture.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => {
      if (this.picture.clientWidth !== this.#width) this.#paint();
    }).observe(this.picture);
  }

  show(steps, now) {
    this.#steps = steps.filter((step) => step.until > now - SPAN);
    this.#now = now;
    const [first] = this.#steps;
    this.#span = first ? Math.min(Math.max(now - first.until + first.seconds, LEAST), SPAN) : SPAN;
    this.#paint();
  }

  #x(seconds) {
    const width = this.#width - EDGE.left - EDGE.right;
    return EDGE.left + Math.max(0, 1 - (this.#now - seconds) / this.#span) * width;
  }

  #paint() {
    this.#width = this.picture.clientWidth;
    const [width, height] = [this.#width - EDGE.left - EDGE.right, this.height - EDGE.top - EDGE.bottom];
    if (width <= 0) return;
    const x = (seconds) => this.#x(seconds);
    const plot = { left: EDGE.left, top: EDGE.top, width, height, x, layer: svg("g") };
    const axes = svg("g", { class: "axes" });
    for (const [share, label] of this.painter.ticks(this.#steps, plot)) {
      const y = EDGE.top + (1 - share) * height;
      axes.append(
        svg("line", { x1: EDGE.left, x2: EDGE.left + width, y1: y, y2: y }),
        svg("text", { x: EDGE.left - 6, y: y + 4, "text-anchor": "end" }, label),
      );
    }
    const every = LABELS.find((it) => (it / this.#span) * width >= ROOM) ?? LABELS.at(-1);
    for (let at = Math.floor(this.#now / every) * every; at > this.#now - this.#span; at -= every) {
      const label = svg("text", { x: x(at), y: this.height - 5, "text-anchor": "middle" }, minute(at));
      if (x(at) > EDGE.left + 16 && x(at) < EDGE.left + width - 14) axes.append(label);
    }
    this.painter.draw(this.#steps, plot);
    this.mark = svg("line", { class: "cursor", y1: EDGE.top, y2: EDGE.top + height, visibility: "hidden" });
    this.picture.replaceChildren(axes, plot.layer, this.mark);
    this.#move(this.#cursor);
  }

  #pointAt(offset) {
    const distance = (step) => Math.abs(this.#x(step.until - step.seconds / 2) - offset);
    const nearest = this.#steps.reduce(
      (best, step) => (best === null || distance(step) < distance(best) ? step : best), null);
    this.#move(nearest?.until ?? null);
  }

  #key(event) {
    const last = this.#steps.length - 1;
    const found = this.#steps.findIndex((step) => step.until === this.#cursor);
    const at = found < 0 ? last + 1 : found;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - 12, PageDown: at + 12, Home: 0, End: last }[event.key];
    if (event.key === "Escape") this.#move(null);
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.#move(this.#steps[Math.min(Math.max(to, 0), last)].until);
  }

  // Puts the cursor to the step that ends then, or takes it away.
  #move(until) {
    const at = until === null ? -1 : this.#steps.findIndex((step) => step.until === until);
    this.#cursor = at < 0 ? null : until;
    const step = this.#steps[at];
    const text = step ? `${clock(step.until)}: ${this.painter.at(step)}` : this.painter.all(this.#steps);
    say(this.readout, text);
    set(this.picture, {
      "aria-valuemax": Math.max(this.#steps.length - 1, 0),
      "aria-valuenow": at < 0 ? Math.max(this.#steps.length - 1, 0) : at,
      "aria-valuetext": text,
    });
    if (!this.mark) return;
    const x = step ? this.#x(step.until - step.seconds / 2) : 0;
    set(this.mark, { x1: x, x2: x, visibility: step ? "visible" : "hidden" });
  }
}
