// Who used what and what it costs, who waited for whom, and what the agent says of itself.

import { html, keyed, measure, say } from "./dom.js";
import { count, dollars, megabytes, percent, time } from "./format.js";
import { showFacts } from "./waterfall.js";

// Rows that are shown, of users and of pairs of them.
const MOST = 20;
const PAIRS = 8;

// Fills a table: `columns` are [name, text of a row]; the first one names it. `share(row)` is drawn as a bar behind the last.
function show(table, caption, columns, rows, share) {
  const names = columns.map(([name]) => name).join("\n");
  if (table.dataset.columns !== names) {
    table.dataset.columns = names;
    table.replaceChildren(
      html("caption", {}, caption),
      html("thead", {}, html("tr", {}, ...columns.map(([name]) => html("th", { scope: "col" }, name)))),
      html("tbody"),
    );
  }
  table.hidden = rows.length === 0;
  const make = () => html("tr", {}, html("th", { scope: "row" }), ...columns.slice(1).map(() => html("td")));
  keyed(table.tBodies[0], rows, (row) => row.key, make, (line, row) => {
    columns.forEach(([, text], at) => {
      if (share && at === columns.length - 1) {
        line.cells[at].replaceChildren(measure(text(row), share(row), "usage"));
      } else {
        say(line.cells[at], text(row));
      }
    });
  });
}

// What held decode steps back.
export function showStalls(panel, server) {
  const stalls = Object.entries(server.stall_seconds ?? {}).map(([cause, seconds]) => ({ key: cause, seconds }));
  const some = stalls.filter((it) => it.seconds >= 0.001).sort((one, other) => other.seconds - one.seconds);
  const all = some.reduce((sum, it) => sum + it.seconds, 0);
  show(panel.querySelector("#stalls"), "What held decode steps back, since the start", [
    ["Cause", (it) => it.key.replaceAll("_", " ")],
    ["How long", (it) => time(it.seconds * 1000)],
  ], some, (it) => it.seconds / all);
}

export function showUsers(panel, server, host) {
  const all = Math.max(server.users.reduce((sum, it) => sum + it.engine_seconds, 0), Number.MIN_VALUE);
  const users = server.users.map((it) => ({ key: it.user, ...it }));
  users.sort((one, other) => other.engine_seconds - one.engine_seconds || other.generated - one.generated);
  const columns = [
    ["User", (it) => it.user],
    ["Prompt", (it) => count(it.prompt)],
    ["Cached", (it) => count(it.cached)],
    ["Generated", (it) => count(it.generated)],
  ];
  if (users.some((it) => it.dollars_by_tokens !== null)) columns.push(["By tokens", (it) => dollars(it.dollars_by_tokens)]);
  if (users.some((it) => it.dollars_by_host !== null)) columns.push(["By time", (it) => dollars(it.dollars_by_host)]);
  columns.push(["Engine time", (it) => time(it.engine_seconds * 1000)]);
  show(panel.querySelector("#usage"), "Tokens, time and cost by user, since the start", columns, users.slice(0, MOST),
    (it) => it.engine_seconds / all);
  const more = users.length > MOST ? `, of whom ${MOST} are shown` : "";
  const cost = host ? `; the host costs ${dollars(host.dollars_per_hour)} an hour, ${dollars(host.idle_dollars)} of it idle so far` : "";
  say(panel.querySelector(".readout"), `${users.length} users${more}${cost}`);
  const waits = server.interference.map((it) => ({ key: `${it.victim}\n${it.culprit}`, ...it }));
  waits.sort((one, other) => other.seconds - one.seconds);
  show(panel.querySelector("#interference"), "Who waited for whose requests", [
    ["Waited", (it) => it.victim],
    ["For requests of", (it) => it.culprit],
    ["How long", (it) => time(it.seconds * 1000)],
  ], waits.slice(0, PAIRS));
}

export function showAgent(panel, document, server) {
  const { agent } = document;
  const live = server?.live;
  const joins = Object.entries(server?.joins ?? {}).filter(([, times]) => times > 0);
  const lost = Object.entries(server?.lost ?? {}).map(([reason, times]) => ({ key: reason, times }));
  const entries = Object.values(agent.map_entries).reduce((all, it) => all + it, 0);
  showFacts(panel.querySelector("#facts"), [
    ["Version", agent.version],
    ["Running for", agent.started_at > 0 ? time((document.taken_at - agent.started_at) * 1000) : null],
    ["Memory", megabytes(agent.resident_bytes)],
    ["Processor, in all", time(agent.cpu_seconds * 1000)],
    ["Processes observed", agent.unobservable > 0 ? `${agent.targets}, and ${agent.unobservable} that cannot be`
      : String(agent.targets)],
    ["This server's time in probes", live ? percent(live.overhead_ratio, 2) : null],
    ["A probe hit", agent.prices ? `${time(agent.prices.emulated_ns / 1e6)}, or ${time(agent.prices.single_stepped_ns / 1e6)}`
      : null],
    ["Entries of kernel maps", count(entries)],
    ["Not measured here", live?.missing.length > 0 ? live.missing.join(", ") : null],
    ["Requests by join", joins.map(([join, times]) => `${join} ${count(times)}`).join(", ") || null],
    ["Lost", lost.length === 0 ? "nothing" : "see below"],
  ].filter(([, value]) => value !== null));
  show(panel.querySelector("#losses"), "Seen, but not counted", [
    ["Reason", (it) => it.key.replaceAll("_", " ")],
    ["How often", (it) => count(it.times)],
  ], lost);
}
