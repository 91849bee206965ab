// What is now: a tile for each figure that matters most, and the slots with what they hold.

import { bar, html, keyed, say } from "./dom.js";
import { count, NONE, percent, rate, time } from "./format.js";

const within = (times) => (times ? `95 % within ${time(times.p95_ms)}` : "none yet");

// Name, figure, what stands below it, and the figure as a number; `now` has the rates.
function tiles(server, now) {
  const live = server.live;
  const ended = server.requests.reduce((all, it) => all + it.count, 0);
  const failed = server.requests.filter((it) => it.code >= 500).reduce((all, it) => all + it.count, 0);
  const tokens = server.tokens;
  const busy = live ? `${live.slots_busy ?? NONE}${live.slots === null ? "" : ` / ${live.slots}`}` : "ended";
  const cached = live?.missing.includes("cache_hit") && tokens.cached === 0 ? "" : `, and ${count(tokens.cached)} cached`;
  const waiting = (number) => (live && number === null ? NONE : number ?? 0);
  const used = live && live.context_size > 0 ? live.context_used / live.context_size : null;
  return [
    ["Generated", `${rate(now.generated)}/s`, `${count(tokens.generated)} tokens`, tokens.generated],
    ["Prompts", `${rate(now.prompt)}/s`, `${count(tokens.prompt)}${cached}`, tokens.prompt],
    ["Slots busy", busy, `${waiting(live?.queue_depth)} waiting, ${waiting(live?.in_flight)} in flight`, live?.slots_busy],
    ["First token", time(server.time_to_first_token?.p50_ms), within(server.time_to_first_token),
      server.time_to_first_token?.p50_ms],
    ["Between tokens", time(server.inter_token?.p50_ms), within(server.inter_token), server.inter_token?.p50_ms],
    ["Context", percent(used), live?.context_size ? `${count(live.context_used)} of ${count(live.context_size)}` : NONE,
      live?.context_used],
    ["Requests ended", count(ended), failed > 0 ? `${count(failed)} with an error` : "none with an error", ended],
  ];
}

export function showTiles(list, server, now) {
  const make = ([name]) => html("div", { class: "tile" },
    html("dt", {}, name), html("dd", {}, html("strong"), html("small")));
  keyed(list, tiles(server, now), ([name]) => name, make, (tile, [, figure, more, number]) => {
    say(tile.querySelector("strong"), figure);
    say(tile.querySelector("small"), more);
    tile.dataset.value = number ?? "";
  });
}

export function showSlots(box, server) {
  const live = server.live;
  const slots = live?.slot_context ?? [];
  const make = (slot) => html("p", { class: "slot" }, html("span"), html("span", { class: "room" }));
  keyed(box, slots, (slot) => slot.slot, make, (row, slot) => {
    const share = live.slot_size > 0 ? slot.context_used / live.slot_size : null;
    const state = slot.busy ? "busy" : "idle";
    say(row.firstElementChild, `slot ${slot.slot} ${state}, holds ${count(slot.context_used)}`
      + (share === null ? "" : ` (${percent(share)})`));
    row.lastElementChild.replaceChildren(bar(share ?? 0, state));
  });
}

// Of which pod a server is, as far as that is known.
function pod({ namespace, pod, container, pod_uid: uid }) {
  if (!pod) return uid ? `pod ${uid}` : null;
  return `pod ${namespace ? `${namespace}/` : ""}${pod}${container ? `, container ${container}` : ""}`;
}

// The model in a line, and the pod that serves it.
export function modelLine(server) {
  const model = server.live?.model;
  const place = pod(server.workload ?? {});
  if (!model) return [server.model, place].filter(Boolean).join(" · ");
  const parameters = `${count(model.parameters)} parameters`;
  const context = model.context_train ? `trained for ${count(model.context_train)} tokens` : null;
  return [server.model, model.architecture, model.quantisation, parameters, context, place].filter(Boolean).join(" · ");
}
