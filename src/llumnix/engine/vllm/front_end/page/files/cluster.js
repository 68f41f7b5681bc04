// The first view: every instance, what moves between them, and the last hour.
import { html, useState } from "./html.js";
import { inState, known } from "./store.js";
import { byNumber, freeness, percent, plural, rate, whole } from "./format.js";
import { Card, Figures, Freeness, Instance, Memory, State, Words, hint, usedShare } from "./parts.js";
import { Sky } from "./flights.js";
import { LastHour } from "./charts.js";
import { News } from "./news.js";
import { WhyNot } from "./whynot.js";
import { AddInstances, Drain, Undrain, mayAct } from "./acts.js";

const MOST_ROWS = 48;
const HERE = new Set(["running", "draining", "starting"]);
const WORST = { over: 0, tight: 1, steady: 2, roomy: 3, idle: 4, leaving: 5, kept: 6 };
const GONE_SHOWN = 3;

export function Cluster() {
  return html`<h1 class="unseen">Cluster</h1>
    <${Totals} />
    <div class="two">
      <div class="stack"><${Instances} /><${LastHour} history=${known.history} /></div>
      <div class="stack"><${WhyNot} /><${News} /></div>
    </div>
    <${Words} of=${["memory", "freeness", "idle", "roomy", "steady", "tight", "over", "leaving", "kept", "running", "waiting", "in / out", "drain", "stayed", "downtime"]} />`;
}

function Totals() {
  const { sample } = known;
  const count = (state) => inState(state).length;
  const others = ["draining", "starting"].filter(count).map((state) => `${count(state)} ${state}`).join(", ");
  const now = sample || {};
  return html`<${Figures} label="The cluster now" of=${[
    ["Serving", count("running"), others || (known.scheduler?.state === "running" ? "nothing starts or leaves" : "\u00a0"), count("running") === 1 ? "instance" : "instances"],
    ["Memory", percent(now.memory), now.memory == null ? "" : `${percent(now.memory_least)} to ${percent(now.memory_most)}`, "in use"],
    ["Running", whole(now.running || 0), "in batches", ""],
    ["Waiting", whole(now.waiting || 0), now.waiting ? "in queues" : "no queue", ""],
    ["Freeness", freeness(now.freeness), "the lowest", ""],
    ["Requests", rate(now.requests_per_s), `${rate(now.moves_per_s)} moves per second`, "/ s"],
  ]} />`;
}

function Instances() {
  const rows = [...known.instances.values()];
  const here = rows.filter((row) => HERE.has(row.state)).sort((a, b) => byNumber(a.id, b.id));
  const gone = rows.filter((row) => !HERE.has(row.state)).slice(-GONE_SHOWN).reverse();
  const [asTable, setAsTable] = useState(null);
  const table = asTable ?? here.length <= MOST_ROWS;
  const choice = html`<div class="choice" role="group" aria-label="How instances are shown">
    <button type="button" aria-pressed=${table} onClick=${() => setAsTable(true)}>Table</button>
    <button type="button" aria-pressed=${!table} onClick=${() => setAsTable(false)}>Cells</button>
  </div>`;
  return html`<${Card} title="Instances" right=${html`${choice}${mayAct() && html`<${AddInstances} />`}`}>
    ${!here.length && html`<p class="none">No instance takes requests.</p>`}
    ${table ? html`<${Table} rows=${[...here, ...gone]} />` : html`<${Cells} rows=${here} />`}
  </${Card}>`;
}

function Table({ rows }) {
  if (!rows.length) return null;
  return html`<${Sky} flights=${known.flights} beside=${true}>
    <table>
      <caption class="unseen">Instances and their load</caption>
      <thead><tr>
        <th scope="col">id</th><th scope="col">state</th><th scope="col" title=${hint("memory")}>memory</th>
        <th scope="col" class="number" title=${hint("running")}>running</th>
        <th scope="col" class="number" title=${hint("waiting")}>waiting</th>
        <th scope="col" class="number wide-only" title=${hint("freeness")}>freeness</th>
        <th scope="col" class="number wide-only" title=${hint("in / out")}>in / out</th>
        ${mayAct() && html`<th scope="col" class="wide-only"><span class="unseen">actions</span></th>`}
      </tr></thead>
      <tbody>${rows.map((row) => html`<${Row} key=${row.id} row=${row} />`)}</tbody>
    </table>
  </${Sky}>`;
}

function Row({ row }) {
  if (row.state === "stopped" || row.state === "lost") {
    return html`<tr class="gone"><th scope="row">${row.id}</th><td><${State} of=${row.state} /></td>
      <td colspan=${mayAct() ? 6 : 5}><span class="why" title=${row.why}>${row.why}</span></td></tr>`;
  }
  const starting = row.state === "starting";
  return html`<tr data-instance=${row.id}>
    <th scope="row">${starting ? row.id : html`<${Instance} id=${row.id} />`}</th>
    <td><${State} of=${row.state} title=${row.load === "kept" ? hint("kept") : undefined} /></td>
    <td><${Memory} row=${row} /></td>
    <td class="number">${starting ? "" : row.running}</td>
    <td class="number">${starting ? "" : row.waiting}</td>
    <td class="number wide-only">${!starting && html`<${Freeness} row=${row} />`}</td>
    <td class="number wide-only">${!starting && `${row.migrations_in} / ${row.migrations_out}`}</td>
    ${mayAct() && html`<td class="act wide-only">${row.state === "running" ? html`<${Drain} row=${row} />` : row.load === "kept" && html`<${Undrain} row=${row} />`}</td>`}
  </tr>`;
}

// Worst first: what is over and tight is where one has to look.
function Cells({ rows }) {
  const badness = (row) => WORST[row.load] ?? 7;
  const sorted = rows.slice().sort((a, b) => badness(a) - badness(b) || (usedShare(b) ?? 0) - (usedShare(a) ?? 0) || byNumber(a.id, b.id));
  return html`<${Sky} flights=${known.flights}>
    <ul class="cells">${sorted.map((row) => html`<li key=${row.id}><${Cell} row=${row} /></li>`)}</ul>
  </${Sky}>`;
}

function Cell({ row }) {
  const used = usedShare(row);
  const words = `${percent(used)} of memory in use, ${plural(row.running, "request")} running, ${row.waiting} waiting`;
  return html`<a class=${`cell ${row.load}`} href=${`#instance/${row.id}`} title=${`${row.id}: ${words}`} data-instance=${row.id}>
    <i class=${row.load} style=${{ height: `${100 * (used ?? 0)}%` }}></i><b>${row.id}</b>
    <span>${row.load || row.state}</span>${row.waiting > 0 && html`<em>+${row.waiting}</em>`}<span class="unseen">, ${words}</span>
  </a>`;
}
