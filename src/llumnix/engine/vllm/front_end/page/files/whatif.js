// What would have been otherwise: the server has what it recorded simulated, as `llumnix whatif` does.
import { html, useState } from "./html.js";
import { inState, known } from "./store.js";
import { ask } from "./server.js";
import { figure, plural, shellWord, time } from "./format.js";
import { Card, Id, Wide, Words, hint, usePolled } from "./parts.js";
import { mayAct } from "./acts.js";

const NOT = "not credible";
const LOOKS = { good: "running", fair: "stayed", [NOT]: "lost" };

export function WhatIf() {
  return html`<h1 class="unseen">What if</h1>${known.server.records ? html`<${Asked} />` : html`<${Card} title="What if">
    <p class="none">This server writes nothing down: start it like this, and it can say here what its traffic would have met with more instances, another policy or no moves.<code>llumnix serve ${shellWord(known.server.model)} --record DIR</code></p></${Card}>`}`;
}

function Asked() {
  const [times, setTimes] = useState(0);
  const { value, why } = usePolled(() => ask("whatif"), 1, [times]);
  const again = () => setTimes((count) => count + 1);
  if (!value) return html`<p class="soft" role="status">${why || "One moment."}</p>`;
  const { running, run } = value;
  return html`<div class="two">
    <div class="stack">
      ${mayAct() && html`<${Ask} again=${again} running=${running} />`}
      ${running && html`<${UnderWay} run=${run} again=${again} />`}
      ${run?.problem && html`<p class="banner" role="status">${run.problem}</p>`}
      ${run?.found ? html`<${Found} found=${run.found} />` : !running && !run && html`<${Card} title="Nothing was asked yet"><p class="none">${mayAct() ? "Choose what to try, or nothing: then it is said how far a simulation of what was can be believed." : "This page may only be looked at. The command is llumnix whatif."}</p></${Card}>`}
    </div>
    ${run && html`<div class="stack">${run.found && html`<${Card} title="What was recorded"><div class="inside prose">${run.found.about.map((sentence, index) => html`<p key=${index}>${sentence}</p>`)}</div></${Card}>`}
      <${Card} title="The same as a command"><div class="inside prose"><code>${run.command}</code><p class="soft">Asked at ${time(run.began_at)}. Without --requests it takes all that was recorded, and --jobs shares it among processes.</p></div></${Card}></div>`}
  </div>
  <${Words} of=${["good", "fair", "not credible", "predicted", "four of five", "instance-hours"]} />`;
}

// -- to ask

function suggested() {
  const now = inState("running").length;
  const { migration, policy } = known.server;
  return [
    [`instances=${now + 1}`, "one more"],
    ...(now > 1 ? [[`instances=${now - 1}`, "one fewer"]] : []),
    migration ? ["migration=off", "nothing moves by itself"] : ["migration=on", "requests move"],
    policy === "llumnix" ? ["policy=infaas++", "requests go to the least loaded, and stay"] : ["policy=llumnix", "the default"],
  ];
}

function Ask({ again, running }) {
  const [chosen, setChosen] = useState([]);
  const [typed, setTyped] = useState("");
  const [problem, setProblem] = useState("");
  const [busy, setBusy] = useState(false);
  const choose = (text, on) => setChosen((before) => (on ? [...before, text] : before.filter((each) => each !== text)));
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    setProblem("");
    const tries = [...new Set([...chosen, ...typed.split(/\s+/).filter(Boolean)])];
    await ask("whatif", { method: "POST", body: { tries } }).then(again, (error) => setProblem(error.status ? error.message : "The server cannot be reached."));
    setBusy(false);
  };
  return html`<${Card} title="What if">
    <form onSubmit=${submit}>
      <fieldset class="fields"><legend class="unseen">What to try</legend>${suggested().map(([text, words]) => html`<label key=${text}><input type="checkbox" checked=${chosen.includes(text)} onChange=${(event) => choose(text, event.target.checked)} /> <span><${Id}>${text}</${Id}> <span class="soft">${words}</span></span></label>`)}</fieldset>
      <div class="fields"><label class="label" for="tries">Others, as --try takes them, with spaces between</label><input id="tries" class="grow" autocomplete="off" spellcheck="false" placeholder="instances=4..6 relief-steps=32,migration=on" value=${typed} onInput=${(event) => setTyped(event.target.value)} />
        <button class="first" disabled=${busy || running}>${busy ? "Asking…" : "Simulate"}</button></div>
      ${problem && html`<p class="fields problem" role="alert">${problem}</p>`}
    </form></${Card}>`;
}

function UnderWay({ run: last, again }) {
  const run = last?.found || last?.problem ? null : last; // it begins, and the one before it is known still
  const cancel = () => ask("whatif", { method: "DELETE" }).then(again, again);
  const words = run ? `${run.done} of ${plural(run.total, "simulation")}` : "It begins";
  return html`<${Card} title="Under way"><div class="inside prose">
    <p>As it was${run?.tries.map((text) => html`, <${Id} key=${text}>${text}</${Id}>`)}.</p>
    <progress aria-label="Simulations" max=${run?.total || 1} value=${run?.done || 0}></progress>
    <div class="head"><span class="soft">${words}; whatever serves goes before it.</span><span class="right">${mayAct() && html`<button type="button" onClick=${cancel}>Cancel</button>`}</span></div>
  </div></${Card}>`;
}

// -- what was found: first how far it can be believed

function Found({ found }) {
  const believed = new Map(found.known.filter(({ grade }) => grade !== NOT).map((each) => [each.metric.name, each]));
  const withheld = found.known.filter(({ grade }) => grade === NOT).map(({ metric }) => metric.name);
  return html`<${Believed} found=${found} />
    ${found.tried.length && !believed.size ? html`<p class="banner" role="status">Nothing of this simulation is credible, so nothing is predicted.</p>` : found.tried.map((tried, index) => html`<${Tried} key=${index} tried=${tried} believed=${believed} withheld=${withheld} />`)}`;
}

const Believed = ({ found }) => html`<${Card} title="How far it can be believed" right=${html`<small>simulated as it was, ${found.repeats} times</small>`}>
  <${Wide} label="Measured and simulated"><table><caption class="unseen">What was measured, and the same simulated</caption>
    <thead><tr><td><span class="unseen">number</span></td><th scope="col" class="number">measured</th><th scope="col" class="number">simulated</th><th scope="col" class="number wide-only">off by</th><th scope="col">credibility</th></tr></thead>
    <tbody>${found.known.map(({ metric, measured, simulated, error, grade, why }) => html`<tr key=${metric.name}><th scope="row">${metric.name}</th><td class="number">${figure(measured, metric.unit)}</td><td class="number">${figure(simulated, metric.unit)}</td>
      <td class="number wide-only">${error == null ? "–" : `${error < 0 ? "−" : "+"}${Math.abs(Math.round(100 * error))} %`}</td><td><span class=${`state ${LOOKS[grade]}`} title=${hint(grade)}>${grade}</span>${why && html`<span class="soft wide-only">: ${why}</span>`}</td></tr>`)}</tbody></table></${Wide}></${Card}>`;

function Tried({ tried, believed, withheld }) {
  const told = tried.predictions.filter(({ metric, value }) => believed.has(metric.name) && value != null);
  return html`<${Card} title=${tried.name} right=${html`<span class="key was">measured</span><span class="key likely">four of five</span><small>${figure(tried.instance_hours, "instance-hours")}</small>`}>
    <${Wide} label=${`Predicted with ${tried.name}`}><table class="ranges"><caption class="unseen">Predicted with ${tried.name}</caption>
      <thead><tr><td><span class="unseen">number</span></td><th scope="col" class="number">measured</th><th scope="col" class="number">predicted</th><th scope="col">four of five end in</th></tr></thead>
      <tbody>${told.map((each) => html`<${Predicted} key=${each.metric.name} each=${each} was=${believed.get(each.metric.name).measured} />`)}</tbody></table></${Wide}>
    ${withheld.length > 0 && html`<p class="none">Withheld, as not credible: ${withheld.join(", ")}.</p>`}</${Card}>`;
}

function Predicted({ each: { metric, value, low, high }, was }) {
  const most = Math.max(high, was) || 1;
  const share = (number) => `${(100 * number) / most}%`;
  return html`<tr><th scope="row">${metric.name}</th><td class="number">${figure(was, metric.unit)}</td><td class="number"><b>${figure(value, metric.unit)}</b></td>
    <td><div class="range" aria-hidden="true"><i style=${{ left: share(low), width: share(high - low) }}></i><s style=${{ left: share(value) }}></s><b style=${{ left: share(was) }}></b></div><span class="soft">${figure(low)} … ${figure(high, metric.unit)}</span></td></tr>`;
}
