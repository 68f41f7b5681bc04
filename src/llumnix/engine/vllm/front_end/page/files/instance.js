// One instance: its load, its past, what it holds, and what it gave and got.
import { html, useEffect, useState } from "./html.js";
import { append, known, lookAtRequests } from "./store.js";
import { ask } from "./server.js";
import { freeness, percent, plural, whole } from "./format.js";
import { Card, Figures, State, Words, hint, usedShare } from "./parts.js";
import { INSTANCE, LastHour } from "./charts.js";
import { Table, longestFirst, tokens } from "./requests.js";
import { Drain, Undrain, mayAct } from "./acts.js";
import { News } from "./news.js";
import { WhyItKeepsAll } from "./whynot.js";

const SHOWN = 20;

export function OneInstance({ of: id }) {
  useEffect(lookAtRequests, []);
  const history = usePast(id);
  const row = known.instances.get(id);
  if (!row) return html`<h1>${id}</h1><p class="soft">There is no such instance, or it is gone for long. <a href="#cluster">All instances</a></p>`;
  const held = known.requests ? [...known.requests.rows.values()].filter((request) => request.instance === id).sort(longestFirst) : [];
  const concerns = ({ move, row: changed }) => (move ? move.source === id || move.target === id : changed.id === id);
  return html`<${Head} row=${row} />
    <${Totals} row=${row} />
    <div class="two"><div class="stack">
      ${history && html`<${LastHour} history=${history} charts=${INSTANCE} id=${id} />`}
      <${Held} rows=${held} row=${row} />
    </div><div class="stack"><${News} title="What concerns it" only=${concerns} /><${WhyItKeepsAll} id=${id} /><${Facts} row=${row} /></div></div>
    <${Words} of=${["memory", "freeness", "running", "waiting", "preempted", "drain"]} />`;
}

function Head({ row }) {
  const leaves = row.state === "draining" && row.load !== "kept";
  return html`<div class="head"><h1>${row.id}</h1><${State} of=${row.state} />
    ${row.load && !leaves && html`<span class="soft" title=${hint(row.load)}>${row.load}</span>`}
    ${row.why && html`<span class="soft">${row.why}</span>`}
    <span class="right">${mayAct() && row.state === "running" && html`<${Drain} row=${row} />`}${mayAct() && row.load === "kept" && html`<${Undrain} row=${row} />`}</span></div>`;
}

const Totals = ({ row }) => html`<${Figures} label=${`${row.id} now`} of=${[
  ["Memory", percent(usedShare(row)), `${whole(row.free_blocks)} of ${whole(row.total_blocks)} blocks free`, "in use"],
  ["Running", whole(row.running), "in its batch"],
  ["Waiting", whole(row.waiting), row.waiting ? "in its queue" : "no queue"],
  ["Freeness", freeness(row.freeness), row.load || "\u00a0"],
  ["In / out", `${whole(row.migrations_in)} / ${whole(row.migrations_out)}`, "moves"],
  ["Preempted", whole(row.preemptions), row.preemptions_avoided ? `${whole(row.preemptions_avoided)} avoided by moves` : "since it started"],
]} />`;

// The past from the server once, and then what the stream tells, second by second.
function usePast(id) {
  const [past, setPast] = useState(null);
  const live = known.connection.name === "live";
  useEffect(() => {
    let ended = false;
    setPast(null);
    if (live) ask(`history?instance=${encodeURIComponent(id)}`).then((answer) => ended || setPast(answer), () => {});
    return () => (ended = true);
  }, [id, live, known.leaps]);
  const row = known.instances.get(id);
  const at = known.sample?.at;
  if (past && row && at > past.at.at(-1)) append(past, at, { ...row, memory: usedShare(row) });
  return past;
}

function Held({ rows, row }) {
  const many = row.running + row.waiting;
  const all = rows.reduce((sum, each) => sum + tokens(each), 0);
  return html`<${Card} title="What it holds" right=${html`<small>${plural(many, "request")}${rows.length > SHOWN ? `, the ${SHOWN} longest below` : ""}</small>`}>
    ${rows.length ? html`<div class="inside"><div class="split" role="img" aria-label=${`Tokens by request: the longest has ${Math.round((100 * tokens(rows[0])) / all)} % of all`}>
      ${rows.map((each) => html`<i key=${each.key} title=${`${each.id}: ${tokens(each)} tokens`} style=${{ flexGrow: tokens(each) }}></i>`)}</div></div>
      <${Table} rows=${rows.slice(0, SHOWN)} instance=${false} />` : html`<p class="none">${many ? "Its requests are not among the longest of the cluster." : "No request."}</p>`}
  </${Card}>`;
}

const Facts = ({ row }) => html`<${Card} title="Process"><dl class="inside facts">
  <dt>pid</dt><dd>${row.pid}</dd><dt>machine</dt><dd>${row.node}</dd>
  <dt>tokens in a block</dt><dd>${row.block_tokens}</dd>
  <dt>recomputing saved</dt><dd>${plural(row.recompute_tokens_saved, "token")}</dd></dl></${Card}>`;
