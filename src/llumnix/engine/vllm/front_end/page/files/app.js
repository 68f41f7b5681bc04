// The page: which view is open, how the connection is, and the frame around both.
import { html, render, useEffect, useRef, useState } from "./html.js";
import { connect, inState, known, listen } from "./store.js";
import { key } from "./server.js";
import { plural, rate, time } from "./format.js";
import { Cluster } from "./cluster.js";
import { OneInstance } from "./instance.js";
import { Moves } from "./moves.js";
import { Requests } from "./requests.js";
import { Scaling } from "./scaling.js";
import { Story } from "./story.js";
import { WhatIf } from "./whatif.js";

// One without a title has no tab.
const VIEWS = {
  cluster: ["Cluster", Cluster],
  requests: ["Requests", Requests],
  moves: ["Moves", Moves],
  scaling: ["Scaling", Scaling],
  whatif: ["What if", WhatIf],
  instance: ["", OneInstance],
  story: ["", Story],
};

const place = () => {
  const [view, ...rest] = location.hash.slice(1).split("/");
  return { view: Object.hasOwn(VIEWS, view) ? view : "cluster", of: plain(rest.join("/")) };
};

function plain(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // typed by somebody, with a % that begins nothing
  }
}

function App() {
  const [, redraw] = useState(0);
  const [here, setHere] = useState(place);
  useEffect(() => {
    const went = () => setHere(place());
    addEventListener("hashchange", went);
    const unlisten = listen(() => redraw((count) => count + 1));
    return () => (removeEventListener("hashchange", went), unlisten());
  }, []);
  const main = useRef();
  const first = useRef(true);
  useEffect(() => {
    document.title = `${here.of || VIEWS[here.view][0]} · Llumnix`;
    if (!first.current) main.current.focus();
    first.current = false;
    scrollTo(0, 0);
  }, [here.view, here.of]);
  const View = VIEWS[here.view][1];
  return html`<a class="skip" href="#main" onClick=${(event) => (event.preventDefault(), main.current.focus())}>Skip to the content</a>
    <${Top} view=${here.view} />
    <main ref=${main} tabindex="-1" id="main">
      <${Notice} />
      ${known.connection.name === "locked" ? html`<${Locked} />` : known.server && html`<${View} of=${here.of} key=${here.view + here.of} />`}
    </main>
    ${known.server && html`<${Foot} />`}`;
}

function Top({ view }) {
  return html`<header class="top"><div>
    <a class="brand" href="#cluster"><img src="page/mark.svg" alt="" />Llumnix</a>
    <nav class="tabs" aria-label="Views">${Object.entries(VIEWS).filter(([, [title]]) => title).map(([name, [title]]) => html`<a key=${name} href=${`#${name}`} aria-current=${name === view ? "page" : undefined}>${title}</a>`)}</nav>
    <${Pulse} />
  </div></header>`;
}

const CONNECTION = { live: ["live", ""], connecting: ["connecting", "waiting"], lost: ["not reached", "lost"], locked: ["locked", "waiting"], refused: ["refused", "lost"] };

function Pulse() {
  const [word, kind] = CONNECTION[known.connection.name];
  const serving = inState("running").length;
  return html`<div class="pulse">
    ${known.sample && html`<span class="extra"><b>${serving}</b> serving</span><span class="extra"><b>${rate(known.sample.requests_per_s)}</b> requests/s</span>`}
    ${known.server && html`<span class="extra">${known.server.model}</span>`}
    <span class=${`live ${kind}`}>${word}</span><${Spoken} serving=${serving} />
  </div>`;
}

// For those who listen: one line, at most every ten seconds, and only when it is another one.
function Spoken({ serving }) {
  const [line, setLine] = useState("");
  const next = useRef("");
  next.current = known.sample ? `${plural(serving, "instance")} serving, ${plural(known.sample.waiting, "request")} waiting` : "";
  useEffect(() => {
    const timer = setInterval(() => setLine(next.current), 10000);
    return () => clearInterval(timer);
  }, []);
  return html`<span class="unseen" role="status" aria-live="polite">${line}</span>`;
}

function Notice() {
  const { name, why } = known.connection;
  if (name === "lost") return html`<p class="banner bad" role="alert">The server cannot be reached. This page goes on trying; what it shows is how it was.</p>`;
  if (name === "refused") return html`<p class="banner bad" role="alert">${why}</p>`;
  if (name === "live" && known.scheduler?.state === "lost") return html`<p class="banner" role="status">The scheduler is silent and is being restarted. Requests are served; nothing moves by itself meanwhile.</p>`;
  return null;
}

function Locked() {
  const [typed, setTyped] = useState("");
  const fits = key.fits(typed.trim());
  const submit = (event) => {
    event.preventDefault();
    key.set(typed.trim());
    connect();
  };
  const problem = fits ? known.connection.why : "It has characters that no HTTP header can carry.";
  return html`<section class="card"><header><h1>This server has an API key</h1></header>
    <form class="inside" onSubmit=${submit}>
      <p class="soft">It is kept in this tab until you close it, and sent to this server alone.</p><br />
      <div class="fields inline"><label for="key">API key</label><input id="key" type="password" autocomplete="off" value=${typed} onInput=${(event) => setTyped(event.target.value)} />
      <button class="first" disabled=${!typed.trim() || !fits}>Watch</button></div>
      ${problem && html`<p class="problem" role="alert">${problem}</p>`}
    </form></section>`;
}

const Foot = () => html`<footer>Llumnix ${known.server.version} on vLLM ${known.server.vllm} · policy ${known.server.policy}, migration ${known.server.migration ? "on" : "off"}${" "}· told by front end ${known.server.front_end + 1} of ${known.server.front_ends}, which remembers since ${time(known.server.since_s)}</footer>`;

connect();
render(html`<${App} />`, document.getElementById("page"));
