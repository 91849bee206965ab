// Figures as people read them.

// What stands for something that is not known.
export const NONE = "–";

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

// Milliseconds in a unit that fits.
export function time(ms) {
  if (!known(ms)) return NONE;
  if (ms < 0.1) return `${+(ms * 1000).toPrecision(2)} µs`;
  if (ms < 10) return `${ms.toFixed(2)} ms`;
  if (ms < 100) return `${ms.toFixed(1)} ms`;
  if (ms < 1000) return `${ms.toFixed(0)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(2)} s`;
  const seconds = Math.floor(ms / 1000);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds / 60) % 60} min`;
}

// The same without more digits than an axis needs.
export function bound(ms) {
  if (ms < 1) return `${+(ms * 1000).toPrecision(3)} µs`;
  if (ms < 1000) return `${+ms.toPrecision(3)} ms`;
  return `${+(ms / 1000).toPrecision(3)} s`;
}

export function count(value) {
  if (!known(value)) return NONE;
  if (value < 10_000) return String(Math.round(value));
  if (value < 1e6) return `${(value / 1e3).toFixed(1)}k`;
  if (value < 1e9) return `${(value / 1e6).toFixed(1)}M`;
  return `${(value / 1e9).toFixed(1)}G`;
}

export function rate(value) {
  if (!known(value)) return NONE;
  return value < 100 ? value.toFixed(1) : count(value);
}

export function percent(share, digits = 0) {
  return known(share) ? `${(share * 100).toFixed(digits)} %` : NONE;
}

export const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

export function dollars(value) {
  if (!known(value)) return NONE;
  if (value < 1e-6) return "$0";
  return value < 0.01 ? `$${value.toPrecision(2)}` : `$${value.toFixed(2)}`;
}

// The time of day, here, of seconds since the Unix epoch.
export const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });

// The same without seconds.
export const minute = (seconds) =>
  new Date(seconds * 1000).toLocaleTimeString([], { hour12: false, hour: "2-digit", minute: "2-digit" });

const WORDS = {
  load: "loading the model again",
  queue: "waiting for a slot",
  host: "server between calls",
  draft: "draft model",
  own_prefill: "own prompt",
  decode: "decode",
  neighbour_prefill: "prompts of others",
  sampling: "sampling",
  others_sampling: "sampling for others",
};

// A part of a token's time, in words.
export const part = (name) => WORDS[name] ?? name.replaceAll("_", " ");
