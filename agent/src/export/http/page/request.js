// What is to be said of a request by itself.

import { clock, time } from "./format.js";

export const isOver = (request) => request.state === "done";

// When it was over, or now, seconds since the Unix epoch.
export const end = (request) => request.arrived_at + request.duration_ms / 1000;

// Tokens per second after the first one.
export function speed(request) {
  const seconds = (request.last_token_ms - request.first_token_ms) / 1000;
  return request.first_token_ms !== null && seconds > 0 && request.tokens.generated > 1
    ? (request.tokens.generated - 1) / seconds : null;
}

// How it ended, or how far it is.
export const stateOf = (request) =>
  isOver(request) ? `${request.finish_reason ?? "done"}${request.code >= 400 ? ` ${request.code}` : ""}` : request.state;

// It in a sentence.
export const describe = (request) =>
  `${request.user}, ${request.route}, ${stateOf(request)}, arrived ${clock(request.arrived_at)}, `
  + `${time(request.duration_ms)}, ${request.tokens.generated} tokens generated`;

// The phases that it has had so far, in milliseconds after its arrival: they follow one another and fill its time.
export function phases(request) {
  const all = request.duration_ms;
  if (isOver(request) && request.queue_ms === null) return [{ name: "answer", from: 0, to: all }];
  const moments = [
    ...(request.load_ms === null ? [] : [["load", request.load_ms]]),
    ["queue", request.queue_ms],
    ["prefill", request.first_token_ms],
    ["decode", isOver(request) ? request.last_token_ms : null],
    ["answer", null],
  ];
  const found = [];
  let from = 0;
  for (const [name, until] of moments) {
    const to = Math.max(Math.min(until ?? all, all), from);
    if (to > from) found.push({ name, from, to });
    if (until === null) break;
    from = to;
  }
  return found;
}
