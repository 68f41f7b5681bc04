// What the page knows, and who wants to hear when that changes.
import { ask, watch } from "./server.js";

const MOST_MOVES = 2000;
const MOST_NEWS = 200;
const FLIGHT_MS = 2200;
const FINE_S = 300;
const HISTORY_S = 3900;
const LEAP_S = 5; // samples come every second

export const known = {
  connection: { name: "connecting" },
  server: null,
  instances: new Map(),
  scheduler: null,
  scaling: null,
  limits: null,
  moves: [], // newest first
  news: [], // moves and what became of instances, newest first
  flights: [], // moves that are being shown
  sample: null,
  history: null, // {at: [], series: {name: []}}
  leaps: 0,
  requests: null, // {rows: Map, total, connection, heard}
};

export const inState = (state) => [...known.instances.values()].filter((row) => row.state === state);

const listeners = new Set();

export function listen(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export function changed() {
  for (const listener of listeners) listener();
}

// -- the cluster

let stop = () => {};

export function connect() {
  stop();
  stop = watch("watch", hear, (state) => {
    known.connection = state;
    if (state.name === "live") loadHistory();
    changed();
  });
}

function hear(frame) {
  const before = new Map(known.instances);
  const fresh = known.server === null;
  if (frame.whole) known.instances.clear();
  for (const row of frame.instances) known.instances.set(row.id, row);
  for (const id of frame.away) known.instances.delete(id);
  for (const name of ["server", "scheduler", "scaling", "sample"]) if (name in frame) known[name] = frame[name];
  if (frame.freeness_limits) known.limits = frame.freeness_limits;
  if (!fresh) for (const row of frame.instances) noteState(frame.at, before.get(row.id), row);
  hearMoves(frame, fresh);
  if (frame.sample) remember(frame.sample);
  changed();
}

const keyOf = (move) => `${move.at} ${move.request_id} ${move.source}`;

function hearMoves(frame, fresh) {
  const have = new Set(known.moves.slice(0, 400).map(keyOf));
  const news = frame.moves.filter((move) => !have.has(keyOf(move)));
  if (!news.length) return;
  known.moves = [...news, ...known.moves].slice(0, MOST_MOVES);
  tell(news.map((move) => ({ kind: "move", key: keyOf(move), at: move.at, move })));
  if (fresh) return;
  const flown = news.filter((move) => move.outcome === "moved").slice(0, 12);
  known.flights = [...known.flights, ...flown.map((move) => ({ key: keyOf(move), source: move.source, target: move.target }))];
  setTimeout(() => {
    const over = new Set(flown.map(keyOf));
    known.flights = known.flights.filter((flight) => !over.has(flight.key));
    changed();
  }, FLIGHT_MS);
}

function noteState(at, before, row) {
  if (before?.state === row.state) return;
  tell([{ kind: "instance", key: `${at} ${row.id} ${row.state}`, at, row }]);
}

function tell(entries) {
  known.news = [...entries, ...known.news].sort((a, b) => b.at - a.at).slice(0, MOST_NEWS);
}

// More of them than the stream tells at first, once a view wants them.
export async function loadMoves() {
  const { migrations } = await ask(`migrations?limit=${MOST_MOVES}`).catch(() => ({ migrations: [] }));
  const older = new Map([...migrations, ...known.moves].map((move) => [keyOf(move), move]));
  known.moves = [...older.values()].sort((a, b) => b.at - a.at).slice(0, MOST_MOVES);
  changed();
}

// -- the past

async function loadHistory() {
  try {
    known.history = await ask("history");
    changed();
  } catch {
    known.history = null; // the stream says what is wrong
  }
}

// A server whose clock was set tells all of the past by it: `known.leaps` counts that.
function remember(sample) {
  const { history } = known;
  if (!history) return;
  const passed = sample.at - history.at.at(-1);
  if (Math.abs(passed) > LEAP_S) {
    known.leaps += 1;
    loadHistory();
  } else if (!(passed <= 0)) append(history, sample.at, sample);
}

export function append(history, at, values) {
  history.at.push(at);
  for (const name in history.series) history.series[name].push(values[name] ?? null);
  const old = history.at.findIndex((each) => each > at - HISTORY_S);
  if (old > FINE_S) {
    history.at.splice(0, old);
    for (const name in history.series) history.series[name].splice(0, old);
  }
}

// -- requests, while somebody looks at them

let lookers = 0;
let stopRequests = () => {};

export function lookAtRequests() {
  if (!lookers++) {
    known.requests = { rows: new Map(), total: 0, connection: { name: "connecting" } };
    stopRequests = watch("watch/requests", hearRequests, (state) => {
      known.requests.connection = state;
      changed();
    });
  }
  return () => {
    if (!--lookers) stopRequests();
  };
}

function hearRequests(frame) {
  const { requests } = known;
  if (frame.whole) requests.rows.clear();
  for (const row of frame.requests) requests.rows.set(row.key, row);
  for (const key of frame.away) requests.rows.delete(key);
  requests.total = frame.total;
  requests.heard = true;
  changed();
}
