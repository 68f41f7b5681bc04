// What moved, how it went, and who gives to whom.
import { html, useEffect } from "./html.js";
import { known, loadMoves } from "./store.js";
import { byNumber, bytes, ms, percent, quantile, time, whole, whyStayed } from "./format.js";
import { Card, Figures, Instance, Request, State, Wide, Words, useMore } from "./parts.js";

const SHOWN = 50;
const LARGEST_MATRIX = 16;
const MOVED = "moved";

const CAUSES = {
  balance: "balance",
  room: "room for the first in a queue",
  relief: "relief, before a preemption",
  pace: "tokens come faster there",
  decode: "its tokens are made elsewhere",
  drain: "a drain",
  by_hand: "by hand",
};
const STAYED_BY = {
  not_started: "nothing to give",
  refused: "refused by the target",
  no_adapter: "no place there for its adapter",
  began: "began there meanwhile",
  preempted: "preempted meanwhile",
  target_lost: "the target was lost",
  timeout: "took too long",
  unconfirmed: "not confirmed in time",
  ended: "the request ended meanwhile",
};

export function Moves() {
  useEffect(() => void loadMoves(), []);
  const { moves } = known;
  return html`<h1 class="unseen">Moves</h1>
    <${Totals} moves=${moves} />
    <div class="two"><${List} moves=${moves} /><div class="stack"><${Whence} moves=${moves} /><${Counts} title="Why they were tried" of=${count(moves, (move) => CAUSES[move.cause])} /><${Counts} title="Why some stayed" of=${count(moves.filter((move) => move.outcome !== MOVED), (move) => STAYED_BY[move.stayed_by])} /></div></div>
    <${Words} of=${["stayed", "downtime", "freeness", "drain"]} />`;
}

function Totals({ moves }) {
  const moved = moves.filter((move) => move.outcome === MOVED);
  const downtimes = moved.map((move) => move.downtime_ms).filter((each) => each != null).sort((a, b) => a - b);
  const copied = moved.reduce((sum, move) => sum + move.bytes, 0);
  const since = moves.length ? `since ${time(moves.at(-1).at)}` : "none yet";
  return html`<${Figures} label="The last moves" of=${[
    ["Attempts", whole(moves.length), since],
    ["Moved", whole(moved.length), moves.length ? percent(moved.length / moves.length) : "\u00a0"],
    ["Stayed", whole(moves.length - moved.length), "went on where they were"],
    ["Downtime", ms(quantile(downtimes, 0.5)), `P99 ${ms(quantile(downtimes, 0.99))}`, "median"],
    ["Copied", bytes(copied), moved.length ? `${bytes(copied / moved.length)} each` : "\u00a0"],
  ]} />`;
}

function List({ moves }) {
  const [shown, more] = useMore(SHOWN, moves.length);
  return html`<${Card} title="Attempts" right=${html`<small>${moves.length > shown ? `the last ${shown} of ${whole(moves.length)}` : "newest first"}</small>`}>
    ${moves.length ? html`<${Wide} label="Attempts, newest first"><table><caption class="unseen">Attempts to move a request, newest first</caption>
      <thead><tr><th scope="col">at</th><th scope="col">from, to</th><th scope="col">outcome</th><th scope="col" class="number">downtime</th><th scope="col" class="number wide-only">copied</th><th scope="col" class="wide-only">request and reason</th></tr></thead>
      <tbody>${moves.slice(0, shown).map((move) => html`<${Attempt} key=${`${move.at}${move.request_id}`} move=${move} />`)}</tbody></table></${Wide}>${more}` : html`<p class="none">Nothing has moved yet.</p>`}
  </${Card}>`;
}

const Attempt = ({ move }) => html`<tr>
  <th scope="row">${time(move.at)}</th><td><${Instance} id=${move.source} /> → <${Instance} id=${move.target} /></td>
  <td><${State} of=${move.outcome === MOVED ? MOVED : "stayed"} title=${move.outcome} /></td><td class="number">${move.outcome === MOVED ? ms(move.downtime_ms) : ""}</td>
  <td class="number wide-only">${bytes(move.bytes)}</td>
  <td class="wide-only"><span class="why" title=${move.reason}><${Request} id=${move.request_id} /> <span class="soft">${move.outcome === MOVED ? move.reason : whyStayed(move)}</span></span></td></tr>`;

function count(moves, wordOf) {
  const counts = {};
  for (const move of moves) counts[wordOf(move)] = (counts[wordOf(move)] || 0) + 1;
  return Object.entries(counts).sort((a, b) => b[1] - a[1]);
}

function Counts({ title, of }) {
  const most = Math.max(1, ...of.map(([, number]) => number));
  return html`<${Card} title=${title}>${of.length ? html`<dl class="inside counts">${of.map(([word, number]) => html`<dt key=${word}>${word}</dt>
    <dd class="bar"><div class="track" aria-hidden="true"><i style=${{ width: `${(100 * number) / most}%` }}></i></div><span>${whole(number)}</span></dd>`)}</dl>` : html`<p class="none">Nothing.</p>`}</${Card}>`;
}

function Whence({ moves }) {
  const moved = moves.filter((move) => move.outcome === MOVED);
  const counts = count(moved, (move) => `${move.source} ${move.target}`);
  const names = [...new Set(counts.flatMap(([pair]) => pair.split(" ")))].sort(byNumber);
  if (names.length > LARGEST_MATRIX) return html`<${Card} title="Who gives to whom most"><ol class="inside pairs">${counts.slice(0, 12).map(([pair, number]) => html`<li key=${pair}>${pair.replace(" ", " → ")}<span>${whole(number)}</span></li>`)}</ol></${Card}>`;
  const most = Math.max(1, ...counts.map(([, number]) => number));
  const table = new Map(counts);
  return html`<${Card} title="Who gives to whom">${names.length ? html`<${Wide} kind="inside matrix" label="Moves by source and target"><table><caption class="unseen">Moves: rows give, columns take</caption>
    <thead><tr><td><span class="unseen">gives, takes</span></td>${names.map((name) => html`<th scope="col" key=${name}>${name}</th>`)}</tr></thead>
    <tbody>${names.map((giver) => html`<tr key=${giver}><th scope="row">${giver}</th>${names.map((taker) => html`<${Cell} key=${taker} number=${table.get(`${giver} ${taker}`) || 0} most=${most} />`)}</tr>`)}</tbody></table></${Wide}>` : html`<p class="none">Nobody, so far.</p>`}</${Card}>`;
}

const Cell = ({ number, most }) => html`<td style=${{ background: number ? `color-mix(in srgb, var(--fill) ${12 + Math.round((34 * number) / most)}%, transparent)` : "" }}>${number || ""}</td>`;
