// What happened, newest first: moves with their reasons, and what became of instances.
import { html, useState } from "./html.js";
import { known } from "./store.js";
import { ms, time, whyStayed } from "./format.js";
import { Card, Request, State } from "./parts.js";

const SHOWN = 60;
const FILTERS = {
  All: () => true,
  Moved: ({ move }) => move?.outcome === "moved",
  Stayed: ({ move }) => move && move.outcome !== "moved",
  Instances: ({ kind }) => kind === "instance",
};

export function News({ title = "Now and why", only = () => true }) {
  const [filter, setFilter] = useState("All");
  const entries = known.news.filter(only).filter(FILTERS[filter]).slice(0, SHOWN);
  const choice = html`<div class="choice row" role="group" aria-label="What is listed">
    ${Object.keys(FILTERS).map((name) => html`<button type="button" key=${name} aria-pressed=${filter === name} onClick=${() => setFilter(name)}>${name}</button>`)}
  </div>`;
  return html`<${Card} title=${title} right=${choice}>
    ${entries.length ? html`<ol class="news" tabindex="0" aria-label=${title}>${entries.map((entry) => html`<li key=${entry.key}><${Entry} entry=${entry} /></li>`)}</ol>` : html`<p class="none">${nothing(filter)}</p>`}
  </${Card}>`;
}

function nothing(filter) {
  if (filter !== "All") return "Nothing of the kind since this page was opened, nor among the last hundred moves.";
  if (known.server && !known.server.migration) return "Migration is off (--no-migration): requests stay where they were placed, unless somebody moves them.";
  return "Nothing has moved yet. Requests move when one instance is short of memory and another one has room, when an instance drains, or when you say so.";
}

const Entry = ({ entry }) => (entry.kind === "move" ? html`<${Move} move=${entry.move} />` : html`<${Change} at=${entry.at} row=${entry.row} />`);

function Move({ move }) {
  const moved = move.outcome === "moved";
  return html`<div><b>${move.source} → ${move.target}</b><span class=${moved ? "" : "state stayed"}>${moved ? "moved" : "stayed"}</span>
      ${moved && html`<span class="soft">${move.downtime_ms == null ? "" : ms(move.downtime_ms)}</span>`}<time>${time(move.at)}</time></div>
    <p>${!moved && html`${whyStayed(move)}<br />`}${move.reason} · <${Request} id=${move.request_id} /></p>`;
}

const Change = ({ at, row }) => html`<div><b>${row.id}</b><${State} of=${row.state} /><time>${time(at)}</time></div>${row.why && html`<p>${row.why}</p>`}`;
