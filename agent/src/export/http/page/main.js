// The page: asks the agent, and shows what it says of the server that was chosen.

import { html, keyed, say, set } from "./dom.js";
import { clock, part } from "./format.js";
import { Graph } from "./graph.js";
import { HeatMap, legend, Load, Own, Parts } from "./graphs.js";
import { modelLine, showSlots, showTiles } from "./overview.js";
import { Source } from "./source.js";
import { Steps } from "./steps.js";
import { showAgent, showStalls, showUsers } from "./tables.js";
import { Timeline } from "./timeline.js";
import { Waterfall } from "./waterfall.js";

const panel = (id) => document.getElementById(id);
const keyOf = (server) => `${server.server}\n${server.model}`;

const source = new Source();
const painters = {
  gaps: new HeatMap("inter_token", "gaps"),
  firsts: new HeatMap("first_token", "first tokens"),
  parts: new Parts(),
  load: new Load(),
  agent: new Own(),
};
const heights = { gaps: 190, firsts: 190, parts: 170, load: 170, agent: 90 };
const graphs = Object.entries(painters).map(([id, painter]) => new Graph(panel(id), heights[id], painter));
const calls = new Steps(panel("steps"));
const waterfall = new Waterfall(panel("request"));
const timeline = new Timeline(panel("timeline"), (id) => chosen() && waterfall.open(id, chosen()));
const choice = panel("server");
const span = panel("span");
const pause = panel("pause");

// The server that is shown, by its key.
let wanted = null;

// The same: the one that was chosen, or else the first that works.
function chosen() {
  const servers = source.newest?.servers ?? [];
  return servers.find((it) => keyOf(it) === wanted) ?? servers.find((it) => it.live) ?? servers[0];
}

function showState() {
  const { newest, error, paused } = source;
  const at = newest ? clock(newest.taken_at) : "";
  const [kind, text] = error ? ["bad", `no answer since ${at || "the start"}: ${error}`]
    : paused ? ["held", `paused at ${at}`]
      : !newest ? ["held", "connecting"] : ["live", "live"];
  const state = panel("state");
  say(state, text);
  set(state, { class: `state ${kind}`, title: at });
}

function showChoice(servers) {
  const make = (server) => html("option", { value: keyOf(server) });
  keyed(choice, servers, keyOf, make, (option, server) =>
    say(option, `${server.server}${server.live ? "" : ", ended"}`));
  choice.disabled = servers.length === 0;
}

function show() {
  showState();
  const { newest, history } = source;
  if (!newest) return;
  showChoice(newest.servers);
  const server = chosen();
  panel("empty").hidden = server !== undefined;
  document.body.classList.toggle("nothing", server === undefined);
  showAgent(panel("agent"), newest, server);
  painters.gaps.bounds = history.inter_token_bounds_ms;
  painters.firsts.bounds = history.first_token_bounds_ms;
  painters.parts.layers = history.parts;
  const steps = source.steps(server ?? { server: "", model: "" });
  const now = Math.max(history.points.at(-1)?.until ?? 0, newest.taken_at);
  graphs.forEach((graph) => graph.show(steps, now));
  if (!server) return;
  wanted = keyOf(server);
  choice.value = wanted;
  say(panel("model"), modelLine(server));
  showTiles(panel("tiles"), server, {
    generated: source.rate(server, (it) => it.tokens.generated),
    prompt: source.rate(server, (it) => it.tokens.prompt),
  });
  legend(panel("parts"), history.parts, part);
  showStalls(panel("parts"), server);
  showSlots(panel("slots"), server);
  calls.show(server.live?.steps ?? []);
  timeline.show(server, newest.taken_at, Number(span.value));
  waterfall.show(server);
  showUsers(panel("users"), server, newest.host);
}

legend(panel("load"), painters.load.layers, (name) => (name === "busy" ? "slots busy" : "requests waiting"));
legend(panel("steps"), ["prefill", "decode"], (name) => (name === "prefill" ? "prompt tokens" : "generated tokens"));
legend(panel("timeline"), ["queue", "prefill", "decode", "answer"], (name) => name);
choice.addEventListener("change", () => {
  wanted = choice.value;
  show();
});
span.addEventListener("change", show);
pause.addEventListener("click", () => {
  source.paused = !source.paused;
  set(pause, { "aria-pressed": source.paused });
  show();
});
source.follow(show);
