// The way to the server: questions, and streams that come back after whatever happens to them.

const HIDDEN_MS = 30000; // then a tab that nobody sees stops listening
const SILENT_MS = 8000; // then a stream that says nothing counts as broken
const LONGEST_PAUSE_MS = 8000;
const KEY = "llumnix-api-key";

export const key = {
  get: () => sessionStorage.getItem(KEY) || "",
  set: (value) => sessionStorage.setItem(KEY, value),
  fits: (value) => /^[ -~]*$/.test(value), // else no header can carry it, and no question leaves the page
};

const headers = () => (key.get() ? { Authorization: `Bearer ${key.get()}` } : {});

class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

async function refusalOf(answer) {
  const body = await answer.json().catch(() => ({}));
  return new Refused(answer.status, body.reason || body.error?.message || `The server answered ${answer.status}.`);
}

// Raises Refused with the server's own sentence, or TypeError if it cannot be reached.
export async function ask(path, { method = "GET", body } = {}) {
  const more = body === undefined ? {} : { "Content-Type": "application/json" };
  const answer = await fetch(`v1/${path}`, {
    method,
    headers: { ...headers(), ...more },
    body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store",
  });
  if (!answer.ok) throw await refusalOf(answer);
  return answer.json();
}

// Calls `tell` with every event, and `state` with {name: connecting|live|lost|locked|refused, why}. Returns what ends it.
export function watch(path, tell, state) {
  let ended = false;
  let pause = 500;
  let current = new AbortController();
  let wake = () => {};

  async function once() {
    current = new AbortController();
    const answer = await fetch(`v1/${path}`, { headers: headers(), signal: current.signal, cache: "no-store" });
    if (!answer.ok) throw await refusalOf(answer);
    state({ name: "live" });
    for await (const event of events(answer.body, current)) {
      pause = 500;
      tell(event);
    }
  }

  async function listen() {
    while (!ended) {
      await seen();
      if (ended) return;
      try {
        await once();
      } catch (error) {
        if (ended) return;
        if (error.status === 401) return state({ name: "locked", why: key.get() ? "This key is not the server's." : "" });
        state({ name: error.status ? "refused" : document.hidden ? "connecting" : "lost", why: error.status ? error.message : "" });
      }
      if (!document.hidden) {
        await new Promise((done) => setTimeout(done, pause, (wake = done)));
        pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
      }
    }
  }

  const unwatch = whenHidden(() => current.abort(), () => wake());
  state({ name: "connecting" });
  listen();
  return () => {
    ended = true;
    unwatch();
    current.abort();
  };
}

const seen = () =>
  document.hidden ? new Promise((done) => document.addEventListener("visibilitychange", done, { once: true })) : null;

function whenHidden(leave, comeBack) {
  let timer = 0;
  const changed = () => {
    clearTimeout(timer);
    if (document.hidden) timer = setTimeout(leave, HIDDEN_MS);
    else comeBack();
  };
  document.addEventListener("visibilitychange", changed);
  return () => {
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", changed);
  };
}

async function* events(body, controller) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const timer = setTimeout(() => controller.abort(), SILENT_MS);
    const { value, done } = await reader.read().finally(() => clearTimeout(timer));
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield JSON.parse(part.slice(6));
  }
}
