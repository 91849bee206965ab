// What the graphs show of a server: latencies as a heat map, where tokens' time goes as a stack, slots and queue as steps.

import { html, svg } from "./dom.js";
import { bound, count, part, percent, rate, time } from "./format.js";
import { steps as rounded } from "./graph.js";

// Shades of a heat map; each is one path.
const SHADES = 8;
// Rows of a heat map that are shown at least, and pixels between labels of rows.
const ROWS = 6;
const LABEL = 15;

const sum = (values) => values.reduce((all, value) => all + value, 0);
// From edge to edge, on whole pixels: neighbours leave no gap.
const rectangle = (left, top, right, bottom) => {
  const [x, y] = [Math.round(left), Math.round(top)];
  const [width, height] = [Math.max(Math.round(right) - x, 1), Math.max(Math.round(bottom) - y, 1)];
  return `M${x} ${y}h${width}v${height}h${-width}z`;
};
// The left edge of a step and the right one.
const column = (step, plot) => [plot.x(step.until - step.seconds), plot.x(step.until)];

// Adds up lists of counts; a list that is empty counts nothing.
export function total(lists) {
  const all = [];
  for (const list of lists) list.forEach((value, at) => (all[at] = (all[at] ?? 0) + value));
  return all;
}

// Up to what this share of the observations took, by the buckets that they are in: between the bounds of one as if they were
// spread evenly.
export function quantile(counts, bounds, share) {
  const wanted = share * sum(counts);
  let below = 0;
  for (const [at, here] of counts.entries()) {
    if (here > 0 && below + here >= wanted) {
      if (at >= bounds.length) return null;
      const lower = at > 0 ? bounds[at - 1] : 0;
      return lower + ((wanted - below) / here) * (bounds[at] - lower);
    }
    below += here;
  }
  return null;
}

function sentence(counts, bounds, what) {
  const all = sum(counts);
  if (all === 0) return `no ${what}`;
  const upTo = (share) => {
    const ms = quantile(counts, bounds, share);
    return ms === null ? `above ${bound(bounds.at(-1))}` : time(ms);
  };
  return `half within ${upTo(0.5)}, 95 % within ${upTo(0.95)}, 99 % within ${upTo(0.99)}; ${count(all)} ${what}`;
}

// How many took how long, darker where there are more of them, and a line up to which 95 % are.
export class HeatMap {
  constructor(field, what) {
    this.field = field;
    this.what = what;
    this.bounds = [];
  }

  #counts = (step) => step.server?.[this.field] ?? [];

  #range(steps) {
    const all = total(steps.map(this.#counts));
    const used = [...all.keys()].filter((at) => all[at] > 0);
    if (used.length === 0) return [0, Math.min(12, this.bounds.length)];
    let [low, high] = [used[0], used.at(-1)];
    while (high - low + 1 < ROWS && (low > 0 || high < this.bounds.length)) {
      low = Math.max(low - 1, 0);
      high = Math.min(high + 1, this.bounds.length);
    }
    return [low, high];
  }

  ticks(steps, plot) {
    const [low, high] = this.#range(steps);
    const rows = high - low + 1;
    const every = Math.max(Math.ceil((LABEL * rows) / plot.height), 1);
    const edges = Array.from({ length: rows }, (_, row) => row).filter((row) => (row + 1) % every === 0);
    return edges.filter((row) => low + row < this.bounds.length)
      .map((row) => [(row + 1) / rows, bound(this.bounds[low + row])]);
  }

  draw(steps, plot) {
    const [low, high] = this.#range(steps);
    const row = plot.height / (high - low + 1);
    const most = Math.max(1, ...steps.flatMap(this.#counts));
    const shades = Array.from({ length: SHADES }, () => "");
    let [line, before] = ["", null];
    for (const step of steps) {
      const counts = this.#counts(step);
      const [left, right] = column(step, plot);
      counts.forEach((here, at) => {
        if (here === 0) return;
        const shade = Math.ceil(Math.sqrt(here / most) * SHADES) - 1;
        const top = plot.top + (high - at) * row;
        shades[shade] += rectangle(left, top, right, top + row);
      });
      const ms = quantile(counts, this.bounds, 0.95);
      if (ms === null) {
        before = null;
        continue;
      }
      const at = this.bounds.findIndex((upper) => upper >= ms);
      const lower = at > 0 ? this.bounds[at - 1] : 0;
      const within = (ms - lower) / (this.bounds[at] - lower);
      const y = (plot.top + (high - at + 1 - within) * row).toFixed(1);
      line += before === Math.round(left) ? `V${y}H${Math.round(right)}` : `M${Math.round(left)} ${y}H${Math.round(right)}`;
      before = Math.round(right);
    }
    shades.forEach((d, shade) => plot.layer.append(svg("path", { d, class: `heat shade${shade}` })));
    plot.layer.append(svg("path", { d: line, class: "quantile" }));
  }

  at = (step) => sentence(this.#counts(step), this.bounds, this.what);
  all = (steps) => sentence(total(steps.map(this.#counts)), this.bounds, this.what);
}

// Layers upon each other: `layers` are names, `values(step)` has one for each.
class Stack {
  ticks(steps, plot) {
    const most = Math.max(this.least, ...steps.map((step) => sum(this.values(step))));
    const axis = rounded(most, Math.min(Math.floor(plot.height / 20), 4));
    this.most = axis.at(-1);
    return axis.map((value) => [value / this.most, this.label(value)]);
  }

  draw(steps, plot) {
    const paths = this.layers.map(() => "");
    for (const step of steps) {
      const [left, right] = column(step, plot);
      let bottom = plot.top + plot.height;
      this.values(step).forEach((value, layer) => {
        const top = bottom - (value / this.most) * plot.height;
        if (Math.round(top) < Math.round(bottom)) paths[layer] += rectangle(left, top, right, bottom);
        bottom = top;
      });
    }
    paths.forEach((d, layer) => plot.layer.append(svg("path", { d, class: `layer ${this.layers[layer]}` })));
  }
}

// Seconds of tokens' time in each second, by part: as many tokens are waited for at a time.
export class Parts extends Stack {
  layers = [];
  least = 0.1;

  values = (step) => (step.server?.token_seconds ?? []).map((seconds) => seconds / step.seconds);
  label = (value) => `${+value.toPrecision(3)} s/s`;

  #shares(seconds) {
    const all = sum(seconds);
    if (all <= 0) return "no token was waited for";
    const parts = this.layers.map((name, at) => [name, (seconds[at] ?? 0) / all]);
    parts.sort((one, other) => other[1] - one[1]);
    const told = parts.filter(([, share]) => share >= 0.005).slice(0, 4);
    return told.map(([name, share]) => `${part(name)} ${percent(share)}`).join(", ");
  }

  at = (step) => this.#shares(step.server?.token_seconds ?? []);
  all = (steps) => this.#shares(total(steps.map((step) => step.server?.token_seconds ?? [])));
}

// Requests on slots, and those that wait, upon them.
export class Load extends Stack {
  layers = ["busy", "waiting"];
  least = 1;

  values = (step) => [step.server?.slots_busy ?? 0, step.server?.queue_depth ?? 0];
  label = (value) => String(value);
  at = (step) => {
    const [busy, waiting] = this.values(step);
    const tokens = step.server?.tokens;
    const generated = rate((tokens?.generated ?? 0) / step.seconds);
    return `${busy} slots busy, ${waiting} requests waiting; ${generated} tokens a second, ${step.server?.requests ?? 0} ended`;
  };
  all = (steps) => {
    const ended = sum(steps.map((step) => step.server?.requests ?? 0));
    const most = Math.max(0, ...steps.map((step) => step.server?.queue_depth ?? 0));
    return `${count(ended)} requests ended, at most ${most} waited`;
  };

  ticks(steps, plot) {
    // Halves of a slot are none.
    return super.ticks(steps, plot).filter(([share]) => Number.isInteger(share * this.most));
  }
}

// What the agent takes of the host: processor time per time.
export class Own extends Stack {
  layers = ["own"];
  least = 0.005;

  values = (step) => [step.agent.cpu_seconds / step.seconds];
  label = (value) => percent(value, value < 0.1 && value > 0 ? 1 : 0);
  at = (step) => `${percent(this.values(step)[0], 2)} of a processor, ${step.agent.lost} lost`;
  all = (steps) => {
    const seconds = sum(steps.map((step) => step.seconds));
    const cpu = sum(steps.map((step) => step.agent.cpu_seconds));
    return seconds > 0 ? `${percent(cpu / seconds, 2)} of a processor, on average` : "no step so far";
  };
}

// What colours mean.
export function legend(panel, names, word) {
  const list = panel.querySelector(".legend");
  if (list.children.length === names.length) return;
  const entry = (name) => html("li", {}, html("span", { class: `key ${name}`, "aria-hidden": "true" }), word(name));
  list.replaceChildren(...names.map(entry));
}
