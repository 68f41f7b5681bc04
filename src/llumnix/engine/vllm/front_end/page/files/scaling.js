// How large the cluster is, what auto-scaling makes of it, and how drains go.
import { html } from "./html.js";
import { known } from "./store.js";
import { ask } from "./server.js";
import { plural, span, time, whole } from "./format.js";
import { Card, Figures, Id, State, Wide, Words, usePolled } from "./parts.js";
import { LastHour } from "./charts.js";

const SIZE = [
  { title: "Instances", lines: [["instances", "instances"]], show: whole },
  { title: "Requests", lines: [["running", "running"], ["waiting", "waiting"]], show: whole },
];
const MODES = {
  off: "Nobody changes the size but you: with Add… and Drain…, or `llumnix start` and `llumnix drain`.",
  advise: "Auto-scaling only says what it would do.",
  on: "Auto-scaling starts and drains instances.",
};

export function Scaling() {
  const { scaling } = known;
  return html`<h1 class="unseen">Scaling</h1>
    ${scaling ? html`<${Totals} scaling=${scaling} />` : html`<p class="banner" role="status">The scheduler is silent: what auto-scaling makes of this is not known.</p>`}
    <div class="two"><div class="stack"><${LastHour} history=${known.history} charts=${SIZE} id="scaling" /><${Drains} /></div>
      ${scaling && html`<${Why} scaling=${scaling} />`}</div>
    <${Words} of=${["freeness", "drain", "kept", "leaving"]} />`;
}

function Totals({ scaling }) {
  const now = Object.entries({ draining: scaling.draining, starting: scaling.starting, failing: scaling.failing }).filter(([, count]) => count);
  return html`<${Figures} label="Size now" of=${[
    ["Serving", whole(scaling.serving), now.map(([word, count]) => `${count} ${word}`).join(", ") || "nothing starts or leaves", scaling.serving === 1 ? "instance" : "instances"],
    ["Auto-scaling", scaling.mode, scaling.mode === "off" ? "" : `${scaling.min_instances} to ${scaling.max_instances} instances`],
    ["Started", whole(scaling.starts), scaling.mode === "advise" ? "it would have" : "by auto-scaling"],
    ["Drained", whole(scaling.drains), scaling.mode === "advise" ? "it would have" : "by auto-scaling"],
    ["On average", scaling.mean_instances == null ? "–" : scaling.mean_instances.toFixed(1), `over ${span(scaling.watched_s)}`, "instances"],
  ]} />`;
}

function Why({ scaling }) {
  const { last, mode } = scaling;
  return html`<${Card} title="What it sees"><div class="inside prose">
    <p>${MODES[mode]}</p>
    ${mode !== "off" && html`<p><b>Why no new instance?</b> ${scaling.now}.</p>`}
    ${last && html`<p><b>Last, at ${time(last.at)}:</b> ${last.drain ? html`drain <${Id}>${last.drain}</${Id}>` : `start ${last.start}`}, as ${last.reason}${last.carried_out ? "" : " (only said, not done)"}.</p>`}
    ${mode !== "off" && !last && html`<p class="soft">It has had no reason to change anything.</p>`}
  </div></${Card}>`;
}

function Drains() {
  const { value, why } = usePolled(() => ask("drains"), 2, []);
  const drains = value?.drains || [];
  return html`<${Card} title="Drains">
    ${drains.length ? html`<${Wide} label="Drains, newest last"><table><caption class="unseen">Drains under way, and the last that ended</caption>
      <thead><tr><th scope="col">instance</th><th scope="col">how it went</th><th scope="col" class="number">requests</th><th scope="col" class="number">moved</th><th scope="col" class="number wide-only">replayed</th><th scope="col" class="number wide-only">finished</th><th scope="col" class="number">left</th><th scope="col" class="number">took</th><th scope="col" class="wide-only">why</th></tr></thead>
      <tbody>${drains.map((drain, index) => html`<tr key=${index}><th scope="row">${drain.instance}</th><td><${State} of=${drain.outcome} /></td>
        <td class="number">${drain.requests}</td><td class="number">${drain.moved}</td><td class="number wide-only">${drain.replayed}</td><td class="number wide-only">${drain.finished}</td><td class="number">${drain.left}</td><td class="number">${span(drain.seconds)}</td><td class="wide-only"><span class="why soft" title=${drain.why}>${drain.why}${drain.keep ? ", and stays" : ""}</span></td></tr>`)}</tbody></table></${Wide}>` : html`<p class="none">${why || `None so far. ${plural(known.scaling?.serving ?? 0, "instance")} ${known.scaling?.serving === 1 ? "serves" : "serve"}.`}</p>`}
  </${Card}>`;
}
