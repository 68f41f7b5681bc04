// Every request: where it is, how long it is, and why it stays.
import { html, useEffect, useState } from "./html.js";
import { known, lookAtRequests } from "./store.js";
import { byNumber, plural, shellWord, whole } from "./format.js";
import { Card, Figures, Instance, Request, State, Wide, Words, useMore } from "./parts.js";
import { Move, mayAct } from "./acts.js";

const SHOWN = 50;

export function Requests() {
  useEffect(lookAtRequests, []);
  const [wanted, want] = useState({ text: "", instance: "", state: "", pinned: false });
  const { requests } = known;
  const rows = requests ? [...requests.rows.values()] : [];
  const found = rows.filter((row) => fits(row, wanted)).sort(longestFirst);
  const [shown, more] = useMore(SHOWN, found.length);
  return html`<h1 class="unseen">Requests</h1>
    <${Totals} rows=${rows} total=${requests?.total ?? 0} />
    <${Card} title="Requests" right=${html`<small>${counted(found.length, shown, rows.length, requests?.total ?? 0)}</small>`}>
      <${Filter} wanted=${wanted} want=${want} />
      ${found.length ? html`<${Table} rows=${found.slice(0, shown)} />${more}` : html`<${Nothing} wanted=${wanted} heard=${requests?.heard} why=${requests?.connection.why} any=${rows.length} />`}
    </${Card}>
    <${Words} of=${["running", "waiting", "preempted"]} />`;
}

export const longestFirst = (a, b) => tokens(b) - tokens(a) || byNumber(a.key, b.key);

export const tokens = (row) => row.prompt_tokens + row.output_tokens;

const fits = (row, { text, instance, state, pinned }) =>
  (!text || row.id.includes(text)) && (!instance || row.instance === instance) && (!state || row.state === state) && (!pinned || !row.movable);

function counted(found, shown, told, total) {
  const words = found > shown ? `the ${shown} longest of ${whole(found)}` : plural(found, "request");
  return total > told ? `${words}, among the ${whole(told)} longest of ${whole(total)}` : words;
}

function Totals({ rows, total }) {
  const count = (test) => whole(rows.filter(test).length);
  const sum = rows.reduce((all, row) => all + tokens(row), 0);
  return html`<${Figures} label="Requests now" of=${[
    ["Requests", whole(total), rows.length < total ? `of the ${whole(rows.length)} longest:` : "running or waiting"],
    ["Running", count((row) => row.state === "running"), "in batches"],
    ["Waiting", count((row) => row.state === "waiting"), "in queues"],
    ["Moved", count((row) => row.migrations > 0), "at least once"],
    ["Cannot move", count((row) => !row.movable), "for now"],
    ["Tokens", whole(sum), "prompts and outputs"],
  ]} />`;
}

function Filter({ wanted, want }) {
  const change = (name) => (event) => want({ ...wanted, [name]: event.target.type === "checkbox" ? event.target.checked : event.target.value.trim() });
  const instances = [...known.instances.values()].filter((row) => row.running + row.waiting).sort((a, b) => byNumber(a.id, b.id));
  return html`<div class="fields" role="search">
    <input type="search" aria-label="Part of an id" placeholder="Part of an id" value=${wanted.text} onInput=${change("text")} />
    <select aria-label="Instance" value=${wanted.instance} onChange=${change("instance")}><option value="">every instance</option>${instances.map(({ id }) => html`<option key=${id}>${id}</option>`)}</select>
    <select aria-label="State" value=${wanted.state} onChange=${change("state")}><option value="">every state</option><option>running</option><option>waiting</option><option>migrating</option></select>
    <label><input type="checkbox" checked=${wanted.pinned} onChange=${change("pinned")} /> Cannot move</label>
  </div>`;
}

export function Table({ rows, instance = true }) {
  const most = Math.max(...rows.map(tokens), 1);
  return html`<${Wide} label="Requests, the longest first"><table>
    <caption class="unseen">Requests, the longest first</caption>
    <thead><tr><th scope="col">id</th>${instance && html`<th scope="col">on</th>`}<th scope="col">state</th>
      <th scope="col">tokens</th><th scope="col" class="number wide-only">moves</th><th scope="col" class="wide-only">why it stays</th>
      ${mayAct() && html`<th scope="col" class="wide-only"><span class="unseen">actions</span></th>`}</tr></thead>
    <tbody>${rows.map((row) => html`<tr key=${row.key}>
      <th scope="row"><${Request} id=${row.id} />${row.priority === "high" && html` <small>high</small>`}</th>
      ${instance && html`<td><${Instance} id=${row.instance} /></td>`}
      <td><${State} of=${row.state} /></td>
      <td><${Length} row=${row} most=${most} /></td>
      <td class="number wide-only">${row.migrations}</td>
      <td class="wide-only"><span class="why soft" title=${row.why_pinned}>${row.why_pinned}</span></td>
      ${mayAct() && html`<td class="act wide-only">${row.movable && html`<${Move} request=${row} />`}</td>`}
    </tr>`)}</tbody>
  </table></${Wide}>`;
}

const Length = ({ row, most }) => html`<div class="bar lengths" title=${`${whole(row.prompt_tokens)} of the prompt, ${whole(row.output_tokens)} made`}>
  <div aria-hidden="true" class="track"><i class="prompt" style=${{ width: `${(100 * row.prompt_tokens) / most}%` }}></i><i style=${{ width: `${(100 * row.output_tokens) / most}%` }}></i></div>
  <span>${whole(row.prompt_tokens)} + ${whole(row.output_tokens)}</span></div>`;

// An id that is not among the longest may still run, or have ended: its story says.
function Nothing({ wanted, heard, why, any }) {
  if (!heard) return html`<p class="none">${why || "The list is on its way."}</p>`;
  if (!any) return html`<div class="none">No request runs or waits.<${Example} /></div>`;
  return html`<div class="none">No request here is like that. ${wanted.text && html`<a href=${`#story/${encodeURIComponent(wanted.text)}`}>The story of exactly this id</a>`}</div>`;
}

function Example() {
  const { example_path: path, model } = known.server;
  if (!path) return null;
  const words = path === "/pooling" ? { input: "Hello" } : { prompt: "Hello", max_tokens: 256 };
  return html` This makes one:<code>curl ${location.origin}${path} -H 'Content-Type: application/json' -d ${shellWord(JSON.stringify({ model, ...words }))}</code>`;
}
