// The story of a request, or of each of its sequences: where it was, where its time went, what happened, why it stays.
import { html } from "./html.js";
import { ask } from "./server.js";
import { exactly, percent, plural, shellWord, span, time, whole } from "./format.js";
import { Card, Figures, Instance, State, Words, usePolled } from "./parts.js";
import { Move, mayAct } from "./acts.js";

const FIRST_KEPT = 8; // entries that a story keeps from its beginning: what is left out of a long one follows them
const PARTS = {
  placing_s: "before it was placed",
  queue_s: "in the queue",
  prefill_s: "prefill",
  decode_s: "decoding",
  preempted_s: "preempted",
  moving_s: "lost to moves",
  replay_s: "lost with an instance",
};

export function Story({ of: id }) {
  const load = () => ask(`requests/${encodeURIComponent(id)}/story`);
  const { value, why } = usePolled(load, 1, [id], ({ stories }) => stories.every((told) => told.ended));
  if (!value) return html`<h1 class="id">${id}</h1><p class="soft" role="status">${why || "Its story is on its way."} <a href="#requests">All requests</a></p>`;
  const { stories, words, now, stays, left_out: earlier } = value;
  return html`${earlier > 0 && html`<p class="soft">… ${plural(earlier, "earlier sequence")} …</p>`}
    ${stories.map((told, index) => html`<${Sequence} key=${told.sequence} told=${told} words=${words[told.sequence]} now=${now[told.sequence]} stays=${stays[told.sequence]} place=${earlier + stories.length > 1 && `${earlier + index + 1} of ${earlier + stories.length}`} />`)}
    <${Words} of=${["before it was placed", "in the queue", "prefill", "decoding", "preempted", "lost to moves", "lost with an instance", "freeness"]} />`;
}

function Sequence({ told, words, now, stays, place }) {
  return html`<div class="head"><h1 class="id">${told.request}</h1>${place && html`<span class="soft">sequence ${place}</span>`}
      ${now ? html`<${State} of=${now.state} /><span>on <${Instance} id=${now.instance} /></span>` : html`<span class="soft">${told.ended ? "ended" : "no instance tells of it just now"}</span>`}
      ${now?.priority === "high" && html`<span class="soft">high priority</span>`}
      <span class="right">${mayAct() && now?.movable && html`<${Move} request=${now} />`}</span></div>
    <p>It ${words.how_it_is}.</p>
    <${Totals} told=${told} now=${now} />
    <div class="two">
      <div class="stack"><${Where} told=${told} /><${Events} told=${told} words=${words.entries} /></div>
      <div class="stack"><${Times} told=${told} />
        ${!told.ended && html`<${Card} title="Why it stays where it is"><div class="inside prose"><p>${stays ? `${stays}.` : "Its instance does not tell of it just now."}</p></div></${Card}>`}
        <${Card} title="The same as a command"><div class="inside prose"><code>llumnix explain ${told.request.startsWith("-") && "-- "}${shellWord(told.request)}</code></div></${Card}></div>
    </div>`;
}

const kindsIn = (told, kind) => told.entries.filter(({ what }) => what.kind === kind).length;

function Totals({ told, now }) {
  const first = told.entries.find(({ what }) => what.kind === "dispatch")?.what;
  const last = told.entries.at(-1)?.what;
  const made = now?.output_tokens ?? last?.output_tokens;
  const atLeast = told.left_out ? "at least, of what is kept" : "\u00a0";
  return html`<${Figures} label="This request" of=${[
    ["Arrived", time(told.arrived_at), "\u00a0"],
    [told.ended ? "Took" : "So far", exactly(told.latency_s), told.ended ? "until its end" : "since then"],
    ["Tokens", made == null ? "–" : whole(made), first ? `behind ${whole(first.prompt_tokens)} of its prompt` : "\u00a0", "made"],
    ["Moves", whole(now?.migrations ?? kindsIn(told, "moved")), now ? "\u00a0" : atLeast],
    ["Preempted", whole(kindsIn(told, "preempted")), atLeast, "times"],
  ]} />`;
}

// -- where it was

// {instance, from, to} in seconds since it arrived; and copies, {…, copy: true}, while it ran on.
function staysOf(told) {
  const stays = [];
  let here = null;
  let before = 0;
  const leave = (at) => here && at > here.from && stays.push({ ...here, to: at });
  told.entries.forEach(({ at, instance, what }, index) => {
    const now = Math.max(0, at - told.arrived_at);
    if (index === FIRST_KEPT && told.left_out) {
      leave(before);
      here = instance && { instance, from: now }; // how it came there is left out
    }
    const copied = what.kind === "moved" ? (what.copy_ms + what.handover_ms) / 1000 : 0;
    if (copied) stays.push({ instance, from: Math.max(0, now - copied), to: now, copy: true });
    before = now;
    const next = { dispatch: instance, replayed: instance, moved: what.target }[what.kind];
    if (!next && what.kind !== "parked" && what.kind !== "ended") return;
    leave(now);
    here = next ? { instance: next, from: now } : null;
  });
  leave(told.latency_s);
  return stays;
}

function Where({ told }) {
  const stays = staysOf(told);
  const lanes = [...new Set(stays.map(({ instance }) => instance))];
  const share = (seconds) => `${told.latency_s ? (100 * seconds) / told.latency_s : 0}%`;
  const said = stays.filter(({ copy }) => !copy).map(({ instance, from, to }) => `${instance} for ${span(to - from)}`).join(", then ");
  const right = html`<span class="key copy">copied to the next one while it went on</span>`;
  return html`<${Card} title="Where it was" right=${stays.some(({ copy }) => copy) && right}>
    ${lanes.length ? html`<div class="inside lanes" role="img" aria-label=${`On ${said}`}>
      ${lanes.map((name) => html`<div key=${name} class="lane"><b>${name}</b><div>${stays.filter(({ instance }) => instance === name).map(({ from, to, copy }, index) => html`<i key=${index} class=${copy ? "copy" : ""} title=${`${exactly(from)} to ${exactly(to)}${copy ? ", copied" : ""}`} style=${{ left: share(from), width: share(to - from) }}></i>`)}</div></div>`)}
      <div class="lane soft"><span>${plural(lanes.length, "instance")}</span><div class="ends"><span>0</span><span>${span(told.latency_s)}</span></div></div>
    </div>` : html`<p class="none">It has not been placed on an instance.</p>`}
  </${Card}>`;
}

// -- where its time went

function Times({ told }) {
  const parts = Object.keys(PARTS).filter((name) => told.spent[name] >= 0.0005);
  const sum = Object.keys(PARTS).reduce((all, name) => all + told.spent[name], 0);
  return html`<${Card} title="Where its time went"><div class="inside prose">
    <div class="split times" aria-hidden="true">${parts.map((name) => html`<i key=${name} class=${name} style=${{ flexGrow: told.spent[name] / sum }}></i>`)}</div>
    <table><caption class="unseen">Where its time went</caption>
      <tbody>${parts.map((name) => html`<tr key=${name}><th scope="row"><span class=${`part ${name}`}>${PARTS[name]}</span></th><td class="number">${exactly(told.spent[name])}</td><td class="number soft">${percent(told.spent[name] / sum)}</td></tr>`)}
        <tr class="sum"><th scope="row">together</th><td class="number">${exactly(sum)}</td><td></td></tr></tbody></table>
  </div></${Card}>`;
}

// -- what happened

function Events({ told, words }) {
  return html`<${Card} title="What happened" right=${html`<small>seconds since it arrived</small>`}>
    <ol class="events">${told.entries.map((entry, index) => html`
      ${index === FIRST_KEPT && told.left_out > 0 && html`<li key="left out"><span></span><p class="soft">… ${whole(told.left_out)} more …</p></li>`}
      <li key=${entry.seq}><time title=${time(entry.at)}>+${Math.max(0, entry.at - told.arrived_at).toFixed(3)}</time>
        <div><p>${words[index]}</p>${entry.what.reason?.candidates && html`<${Candidates} of=${entry.what.reason} />`}</div></li>`)}</ol>
  </${Card}>`;
}

function Candidates({ of: { rule, unit, candidates, considered } }) {
  const rest = considered - candidates.length;
  return html`<ul class="candidates" aria-label=${`Weighed by ${rule}`}>
    ${candidates.map(({ instance, number, has_room: room, cached_tokens: cached }, index) => html`<li key=${instance} class=${index ? "" : "chosen"}><b>${instance}</b> ${Number(number.toPrecision(4)).toLocaleString("en")} ${unit}${cached > 0 && html`, ${whole(cached)} cached`}${!room && ", no room"}</li>`)}
    ${rest > 0 && html`<li class="soft">${whole(rest)} more</li>`}
  </ul>`;
}
