// A request by itself: its phases one after the other, and where the time of its tokens went.

import { html, keyed, measure, say } from "./dom.js";
import { clock, count, NONE, part, percent, rate, time } from "./format.js";
import { phases, speed, stateOf } from "./request.js";
import { words } from "./steps.js";

const head = (caption, ...names) => [
  html("caption", {}, caption),
  html("thead", {}, html("tr", {}, ...names.map((name) => html("th", { scope: "col" }, name)))),
  html("tbody"),
];

export class Waterfall {
  #id = null;

  constructor(dialog) {
    this.dialog = dialog;
    this.facts = dialog.querySelector("#request-facts");
    this.phases = dialog.querySelector("#phases");
    this.shares = dialog.querySelector("#shares");
    this.phases.append(...head("Phases, one after the other", "Phase", "Took", "When"));
    this.shares.append(...head("Where the time of its tokens went", "Part", "Took", "Share"));
    dialog.querySelector("#close").addEventListener("click", () => dialog.close());
    // A click beside it.
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("close", () => (this.#id = null));
  }

  open(id, server) {
    this.#id = id;
    this.show(server);
    if (!this.dialog.open) this.dialog.showModal();
  }

  // What is known of it by now; one that is gone stays as it was.
  show(server) {
    const request = this.#id && server.latest.find((it) => it.id === this.#id);
    if (!request) return;
    const tokens = request.tokens;
    const facts = [
      ["User", request.user],
      ["Route", request.route],
      ["State", request.slot === null ? stateOf(request) : `${stateOf(request)}, slot ${request.slot}`],
      ["Arrived", clock(request.arrived_at)],
      ["Took", time(request.duration_ms)],
      ["First token", time(request.first_token_ms)],
      ["Tokens", `${count(tokens.prompt)} of the prompt computed, ${count(tokens.cached)} cached, ${count(tokens.generated)} generated`],
      ["Speed", speed(request) === null ? NONE : `${rate(speed(request))} tokens a second`],
      ["Worst gap", request.worst_gap_part ? `${time(request.worst_gap_ms)}, most of it ${part(request.worst_gap_part)}`
        : time(request.worst_gap_ms)],
      ["Longest step", request.longest_steps?.map(words)[0] ?? null],
      ["Caches copied", copies(request)],
      ["Slowed by", request.slowed_by ? `requests of ${request.slowed_by}` : null],
    ].filter(([, value]) => value !== null);
    showFacts(this.facts, facts);
    const all = Math.max(request.duration_ms, Number.MIN_VALUE);
    keyed(this.phases.tBodies[0], phases(request), (phase) => phase.name, phaseRow, (row, phase) => {
      say(row.cells[1], time(phase.to - phase.from));
      const fill = row.querySelector(".fill");
      fill.style.marginLeft = `${Math.min(phase.from / all, 0.995) * 100}%`;
      fill.style.width = `${Math.max((phase.to - phase.from) / all, 0.005) * 100}%`;
    });
    this.#showShares(request);
  }

  #showShares(request) {
    const parts = Object.entries(request.token_ms).filter(([, ms]) => ms > 0).sort((one, other) => other[1] - one[1]);
    const all = parts.reduce((sum, [, ms]) => sum + ms, 0);
    this.shares.hidden = parts.length === 0;
    const make = ([name]) => html("tr", {}, html("th", { scope: "row" }, part(name)), html("td"), html("td"));
    keyed(this.shares.tBodies[0], parts, ([name]) => name, make, (row, [name, ms]) => {
      say(row.cells[1], time(ms));
      row.cells[2].replaceChildren(measure(percent(ms / all), ms / all, name));
    });
  }
}

// What caches were copied for it, and for others while it waited.
function copies(request) {
  const all = Object.entries(request.copies_ms ?? {}).map(([operation, ms]) => `${operation} ${time(ms)}`);
  const others = request.waited_for.reduce((sum, it) => sum + (it.copy_ms ?? 0), 0);
  if (others > 0) all.push(`for others ${time(others)}`);
  return all.length > 0 ? all.join(", ") : null;
}

function phaseRow(phase) {
  const fill = html("span", { class: `fill ${phase.name}` });
  return html("tr", {}, html("th", { scope: "row" }, phase.name), html("td"),
    html("td", {}, html("span", { class: "track", "aria-hidden": "true" }, fill)));
}

// Names and what they are.
export function showFacts(list, facts) {
  const make = ([name]) => html("div", {}, html("dt", {}, name), html("dd"));
  keyed(list, facts, ([name]) => name, make, (row, [, value]) => say(row.lastElementChild, value));
}
