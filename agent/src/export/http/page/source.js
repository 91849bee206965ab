// What the agent answers, asked for again and again: the newest document, those some seconds before it, and the history.

// The agent makes a document at most once a second,
const EVERY_MS = 1000;
// and a step of the history every five.
const STEP_S = 5;
// How far back rates look, in documents.
const KEPT = 6;
const PATIENCE_MS = 10_000;

async function ask(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  if (!answer.ok) throw new Error(`/${path} answers ${answer.status}`);
  return answer.json();
}

const same = (one, other) => one.server === other.server && one.model === other.model;

export class Source {
  documents = [];
  history = { points: [], parts: [], inter_token_bounds_ms: [], first_token_bounds_ms: [] };
  error = null;
  paused = false;
  #asked = 0;

  get newest() {
    return this.documents.at(-1);
  }

  // Calls `show` with every news, for ever; while nobody looks nothing is asked.
  async follow(show) {
    for (;;) {
      if (!this.paused && !document.hidden) {
        await this.#look();
        show();
      }
      await new Promise((done) => setTimeout(done, EVERY_MS));
    }
  }

  async #look() {
    try {
      const document = await ask("snapshot");
      if (this.newest && this.newest.agent.started_at !== document.agent.started_at) {
        this.documents = [];
        this.#asked = 0;
      }
      if (this.newest?.taken_at !== document.taken_at) this.documents.push(document);
      this.documents.splice(0, this.documents.length - KEPT);
      // A step is there some moments after its end.
      if (document.taken_at - this.#asked >= STEP_S) {
        this.history = await ask("history");
        const until = this.history.points.at(-1)?.until ?? 0;
        this.#asked = Math.max(until + 0.5, document.taken_at - STEP_S + 1);
      }
      this.error = null;
    } catch (error) {
      this.error = error instanceof Error ? error.message : String(error);
    }
  }

  // What a figure of a server grew by in a second, lately.
  rate(server, figure) {
    const [first, last] = [this.documents[0], this.newest];
    const before = first?.servers.find((it) => same(it, server));
    const seconds = last.taken_at - first.taken_at;
    return before && seconds > 0 ? Math.max(figure(server) - figure(before), 0) / seconds : null;
  }

  // The steps of the history, each with what this server did in it, if anything.
  steps(server) {
    return this.history.points.map((point) => ({
      until: point.until,
      seconds: point.seconds,
      agent: point,
      server: point.servers.find((it) => same(it, server)),
    }));
  }
}
