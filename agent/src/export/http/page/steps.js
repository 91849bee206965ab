// The last decode calls of a server, one after the other: each as wide as it took long, and coloured by what was in its batch.

import { keyed, say, set, svg } from "./dom.js";
import { clock, count, time } from "./format.js";

const HEIGHT = 36;
// Of the shortest call, and between two of them.
const LEAST = 1;
const GAP = 1;

const plural = (n, what) => `${count(n)} ${what}${n === 1 ? "" : "s"}`;
const sum = (steps, figure) => steps.reduce((all, step) => all + step[figure], 0);

// What was in the batch of a call.
function batch(step) {
  const rest = step.tokens - step.prompt_tokens;
  const tokens = step.prompt_tokens === 0 ? plural(rest, "token")
    : rest === 0 ? plural(step.prompt_tokens, "prompt token")
      : `${plural(step.prompt_tokens, "prompt token")} and ${count(rest)} more`;
  return `${tokens} of ${plural(step.sequences, "sequence")}`;
}

// A call in words.
export function words(step) {
  const ended = step.failed ? ", failed" : step.draft ? ", by the draft model" : "";
  return `${time(step.duration_ms)} for ${batch(step)}${ended}`;
}

const whole = (step) => `${clock(step.started_at)}: ${words(step)}, ${count(step.generated_tokens)} generated`;

const all = (steps) => `the last ${steps.length}, ${time(sum(steps, "duration_ms"))} in all: `
  + `${plural(sum(steps, "prompt_tokens"), "prompt token")}, ${count(sum(steps, "generated_tokens"))} generated`;

export class Steps {
  #steps = [];
  // The call under the cursor, by its begin.
  #cursor = null;

  constructor(panel) {
    this.panel = panel;
    this.readout = panel.querySelector(".readout");
    this.picture = panel.querySelector("svg");
    this.bars = svg("g");
    this.mark = svg("rect", { class: "mark", y: 0.5, height: HEIGHT - 1, visibility: "hidden" });
    this.picture.append(this.bars, this.mark);
    set(this.picture, {
      height: HEIGHT,
      tabindex: 0,
      role: "slider",
      "aria-orientation": "horizontal",
      "aria-label": `${panel.querySelector("h2").textContent}, the last ones; arrow keys go from one to the next`,
      "aria-valuemin": 0,
    });
    this.picture.addEventListener("pointermove", (event) => this.#pointAt(event.offsetX));
    this.picture.addEventListener("pointerdown", (event) => this.#pointAt(event.offsetX));
    this.picture.addEventListener("pointerleave", () => this.#move(null));
    this.picture.addEventListener("blur", () => this.#move(null));
    this.picture.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.#paint()).observe(panel);
  }

  // Where none are told there is nothing to see.
  show(steps) {
    this.#steps = steps;
    this.panel.hidden = steps.length === 0;
    this.#paint();
  }

  #paint() {
    const room = this.picture.clientWidth - this.#steps.length * (LEAST + GAP);
    if (room <= 0) return;
    const took = Math.max(sum(this.#steps, "duration_ms"), Number.MIN_VALUE);
    let x = 0;
    this.places = this.#steps.map((step) => {
      const place = { x, width: LEAST + (step.duration_ms / took) * room };
      x += place.width + GAP;
      return place;
    });
    const make = () => svg("g", {}, svg("title"),
      svg("rect", { class: "phase prefill" }), svg("rect", { class: "phase decode" }));
    const items = this.#steps.map((step, at) => ({ step, place: this.places[at] }));
    keyed(this.bars, items, ({ step }) => step.started_at, make, (bar, { step, place }) => {
      const [title, prompt, rest] = bar.children;
      const split = HEIGHT * (1 - step.prompt_tokens / Math.max(step.tokens, 1));
      say(title, whole(step));
      set(prompt, { ...place, y: split, height: HEIGHT - split });
      set(rest, { ...place, y: 0, height: split });
    });
    this.#move(this.#cursor);
  }

  #pointAt(offset) {
    const at = (this.places ?? []).findIndex((place) => offset < place.x + place.width + GAP);
    this.#move(this.#steps.at(at)?.started_at ?? null);
  }

  #key(event) {
    const last = this.#steps.length - 1;
    const found = this.#steps.findIndex((step) => step.started_at === this.#cursor);
    const at = found < 0 ? last + 1 : found;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key];
    if (event.key === "Escape") this.#move(null);
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.#move(this.#steps[Math.min(Math.max(to, 0), last)].started_at);
  }

  // Puts the cursor to the call that began then, or takes it away; one that is not among the last any more has gone.
  #move(began) {
    const at = began === null ? -1 : this.#steps.findIndex((step) => step.started_at === began);
    this.#cursor = at < 0 ? null : began;
    const last = Math.max(this.#steps.length - 1, 0);
    const text = at < 0 ? all(this.#steps) : whole(this.#steps[at]);
    say(this.readout, text);
    set(this.picture, { "aria-valuemax": last, "aria-valuenow": at < 0 ? last : at, "aria-valuetext": text });
    const place = this.places?.[at];
    set(this.mark, { x: (place?.x ?? 0) - 0.5, width: (place?.width ?? 0) + 1, visibility: place ? "visible" : "hidden" });
  }
}
