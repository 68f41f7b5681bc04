// Small parts that several views share.
import { html, useEffect, useState } from "./html.js";
import { freeness, percent } from "./format.js";

let words = {};
fetch("page/words.json").then(async (answer) => (words = await answer.json()), () => {});

// What a word means, as a hint; the list at the end of a view has them for those who cannot hover.
export const hint = (word) => words[word];

export function Words({ of }) {
  return html`<details class="words">
    <summary>What these words mean</summary>
    <dl>${of.map((word) => html`<dt>${word}</dt><dd>${words[word]}</dd>`)}</dl>
  </details>`;
}

export const Card = ({ title, right, children, label }) => html`<section class="card" aria-label=${label || title}>
  <header><h2>${title}</h2><div class="right">${right}</div></header>${children}
</section>`;

// What is wider than its place can be moved there, by the keyboard, too.
export const Wide = ({ label, kind = "", children }) => html`<div class=${`wide ${kind}`} tabindex="0" role="region" aria-label=${label}>${children}</div>`;

export const Figures = ({ of, label }) => html`<dl class="figures" aria-label=${label}>
  ${of.map(([name, value, below, unit]) => html`<div key=${name}>
    <dt title=${hint(name.toLowerCase())}>${name}</dt><dd>${value}${unit && html` <small>${unit}</small>`}</dd><dd>${below || "\u00a0"}</dd>
  </div>`)}
</dl>`;

export const State = ({ of, title }) => html`<span class=${`state ${of}`} title=${title || hint(of)}>${of}</span>`;

export const usedShare = (row) => (row.total_blocks ? 1 - row.free_blocks / row.total_blocks : null);

// tight and over colour a bar, beside the word that says the same.
export function Memory({ row }) {
  const used = usedShare(row);
  if (used === null) return html`<span class="soft">–</span>`;
  const free = `${row.free_blocks} of ${row.total_blocks} blocks free`;
  return html`<div class="bar" title=${free}>
    <div role="meter" aria-label=${`memory of ${row.id}`} aria-valuemin="0" aria-valuemax="100" aria-valuenow=${Math.round(100 * used)} aria-valuetext=${free}>
      <i class=${row.load} style=${{ width: `${100 * used}%` }}></i>
    </div><span>${percent(used)}</span>
  </div>`;
}

export const Freeness = ({ row }) => html`${freeness(row.freeness)}<span class=${`load ${row.load}`} title=${hint(row.load)}>${row.load}</span>`;

export const Id = ({ children }) => html`<span class="id">${children}</span>`;

export const Instance = ({ id }) => html`<a href=${`#instance/${encodeURIComponent(id)}`}>${id}</a>`;

export const Request = ({ id }) => html`<a class="id" href=${`#story/${encodeURIComponent(id)}`} title=${id}>${short(id)}</a>`;

const short = (id) => (id.length > 22 ? `${id.slice(0, 14)}…${id.slice(-5)}` : id);

// What `load` resolves to, asked again every so many seconds until it `isOver`; {value, why}. While the server cannot be
// reached, which the page says elsewhere, it is what it was.
export function usePolled(load, seconds, deps, isOver = () => false) {
  const [answer, setAnswer] = useState({});
  useEffect(() => {
    let ended = false;
    const once = async () => {
      if (document.hidden) return;
      const said = await load().then((value) => ({ value }), (error) => error.status && { why: error.message });
      if (ended || !said) return;
      setAnswer(said);
      if (said.value && isOver(said.value)) clearInterval(timer);
    };
    const timer = setInterval(once, 1000 * seconds);
    once();
    return () => {
      ended = true;
      clearInterval(timer);
    };
  }, deps);
  return answer;
}

// How many rows are shown, and the button for all of them.
export function useMore(few, all) {
  const [open, setOpen] = useState(false);
  const button = all > few && html`<p class="more"><button type="button" aria-expanded=${open} onClick=${() => setOpen(!open)}>${open ? `Only ${few}` : `Show all ${all}`}</button></p>`;
  return [open ? all : few, button];
}
