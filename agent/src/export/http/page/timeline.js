// Requests over time, a row for each slot: what waited, what ran, and what it was at. A request can be opened.

import { html, keyed, say, set, svg } from "./dom.js";
import { clock, count, NONE, rate, time } from "./format.js";
import { describe, end, isOver, phases, speed, stateOf } from "./request.js";

const ROW = 26;
// Seconds between labels, by how many are shown.
const LABELS = { 15: 3, 60: 10, 300: 60, 900: 180 };
const EDGE = { left: 54, right: 8, top: 4, bottom: 20 };
// Rows for requests that wait without a slot.
const WAITING = 4;
// Rows of the table.
const MOST = 100;

export class Timeline {
  #last = null;

  constructor(panel, open) {
    this.picture = panel.querySelector("svg");
    this.readout = panel.querySelector(".readout");
    this.table = panel.querySelector("table");
    this.open = open;
    this.axes = svg("g", { class: "axes" });
    this.bars = svg("g");
    this.picture.append(this.axes, this.bars);
    this.table.append(
      html("caption", { class: "hidden" }, "Requests one by one, those under way first"),
      html("thead", {}, html("tr", {}, ...[
        "Arrived", "User", "State", "Slot", "Took", "First token", "Worst gap", "Prompt", "Cached", "Generated",
        "Tokens/s", "Route",
      ].map((name) => html("th", { scope: "col" }, name)))),
      html("tbody"),
    );
    this.picture.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.#last && this.show(...this.#last)).observe(panel);
  }

  // The last `span` seconds up to `now`.
  show(server, now, span) {
    this.#last = [server, now, span];
    const seen = server.latest.filter((request) => !isOver(request) || end(request) > now - span);
    const under = server.latest.filter((request) => !isOver(request)).length;
    say(this.readout, `${under} under way, ${server.latest.length - under} of the last that are over; choose one to see its waterfall`);
    const rows = this.#rows(server, seen);
    const width = this.picture.clientWidth - EDGE.left - EDGE.right;
    if (width <= 0) return;
    const height = rows.names.length * ROW;
    set(this.picture, { height: height + EDGE.top + EDGE.bottom });
    const x = (seconds) => EDGE.left + Math.min(Math.max(1 - (now - seconds) / span, 0), 1) * width;
    this.#paintAxes(rows.names, { width, height, x, now, span });
    const shown = seen.filter((request) => rows.of(request) !== undefined)
      .sort((one, other) => one.arrived_at - other.arrived_at);
    keyed(this.bars, shown, (request) => request.id, () => this.#bar(), (bar, request) => {
      bar.request = request;
      this.#place(bar, request, EDGE.top + rows.of(request) * ROW, x);
    });
    if (!this.bars.querySelector("[tabindex='0']")) this.bars.lastElementChild?.setAttribute("tabindex", "0");
    this.#rowsOfTable(server);
  }

  // A row for each slot, and some for requests that have none: those stay below each other.
  #rows(server, seen) {
    const known = [...(server.live?.slot_context ?? []), ...seen].map((it) => it.slot).filter((slot) => slot !== null);
    const slots = [...new Set(known)].sort((one, other) => one - other);
    const queued = seen.filter((request) => request.slot === null && !isOver(request));
    const rows = Math.min(queued.length, WAITING);
    const others = seen.filter((request) => request.slot === null && isOver(request));
    const without = Math.max(rows, others.length > 0 || slots.length === 0 ? 1 : 0);
    const names = [...slots.map((slot) => `slot ${slot}`), ...Array.from({ length: without }, () => "no slot")];
    const of = new Map([
      ...seen.filter((request) => request.slot !== null).map((request) => [request.id, slots.indexOf(request.slot)]),
      ...queued.slice(0, WAITING).map((request, at) => [request.id, slots.length + at]),
      ...others.map((request) => [request.id, slots.length]),
    ]);
    return { names, of: (request) => of.get(request.id) };
  }

  #paintAxes(names, { width, height, x, now, span }) {
    const parts = names.flatMap((name, row) => {
      const y = EDGE.top + row * ROW;
      return [
        svg("rect", { class: row % 2 ? "lane odd" : "lane", x: EDGE.left, y, width, height: ROW }),
        svg("text", { x: EDGE.left - 6, y: y + ROW / 2 + 4, "text-anchor": "end" }, name === names[row - 1] ? "" : name),
      ];
    });
    const every = LABELS[span] * (width > 420 ? 1 : 2);
    for (let at = Math.floor(now / every) * every; at > now - span; at -= every) {
      if (x(at) < EDGE.left + 26 || x(at) > EDGE.left + width - 26) continue;
      parts.push(
        svg("line", { x1: x(at), x2: x(at), y1: EDGE.top, y2: EDGE.top + height }),
        svg("text", { x: x(at), y: EDGE.top + height + 15, "text-anchor": "middle" }, clock(at)),
      );
    }
    this.axes.replaceChildren(...parts);
  }

  #bar() {
    const bar = svg("g", { class: "request", role: "button", tabindex: -1 },
      svg("rect", { class: "hit" }), svg("g"), svg("rect", { class: "outline" }));
    bar.addEventListener("click", () => this.#choose(bar));
    bar.addEventListener("focus", () => {
      this.bars.querySelectorAll("[tabindex='0']").forEach((other) => set(other, { tabindex: -1 }));
      set(bar, { tabindex: 0 });
      say(this.readout, describe(bar.request));
    });
    bar.addEventListener("pointerenter", () => say(this.readout, describe(bar.request)));
    return bar;
  }

  #place(bar, request, y, x) {
    const at = (ms) => x(request.arrived_at + ms / 1000);
    const [hit, pieces, outline] = bar.children;
    const from = at(0);
    const box = { x: from, y: y + 2, width: Math.max(at(request.duration_ms) - from, 3), height: ROW - 4, rx: 2 };
    set(hit, box);
    set(outline, box);
    // Others run on the slot that it waits for: what waits is a line.
    const thin = (name) => name === "queue" && request.slot !== null;
    keyed(pieces, phases(request), (phase) => phase.name, (phase) => svg("rect", { class: `phase ${phase.name}` }),
      (rect, phase) => set(rect, {
        x: at(phase.from),
        width: Math.max(at(phase.to) - at(phase.from), 1),
        y: thin(phase.name) ? y + ROW - 6 : y + 4,
        height: thin(phase.name) ? 3 : ROW - 8,
      }));
    set(bar, { "aria-label": describe(request), class: request.code >= 400 ? "request failed" : "request" });
  }

  #choose(bar) {
    this.open(bar.request.id, bar);
  }

  #key(event) {
    const bars = [...this.bars.children];
    const at = bars.indexOf(document.activeElement);
    if (at < 0) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.#choose(bars[at]);
      return;
    }
    const to = { ArrowLeft: at - 1, ArrowUp: at - 1, ArrowRight: at + 1, ArrowDown: at + 1, Home: 0, End: bars.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    bars[Math.min(Math.max(to, 0), bars.length - 1)].focus();
  }

  #rowsOfTable(server) {
    const make = (request) => {
      const button = html("button", { type: "button", class: "link" });
      button.addEventListener("click", () => this.open(request.id, button));
      const cells = Array.from({ length: 11 }, () => html("td"));
      return html("tr", {}, html("th", { scope: "row" }, button), ...cells);
    };
    keyed(this.table.tBodies[0], server.latest.slice(0, MOST), (request) => request.id, make, (row, request) => {
      say(row.querySelector("button"), clock(request.arrived_at));
      [
        request.user, stateOf(request), request.slot ?? NONE, time(request.duration_ms), time(request.first_token_ms),
        time(request.worst_gap_ms), count(request.tokens.prompt), count(request.tokens.cached),
        count(request.tokens.generated), rate(speed(request)), request.route,
      ].forEach((text, at) => say(row.cells[at + 1], String(text)));
      row.cells[2].className = `state-of ${request.code >= 400 ? "error" : request.state}`;
    });
  }
}
