// What the page can do. Each act says first what will happen, and is done by the admin route that commands use.
import { html, useEffect, useRef, useState } from "./html.js";
import { inState, known } from "./store.js";
import { ask } from "./server.js";
import { byNumber, plural } from "./format.js";

export const mayAct = () => Boolean(known.server?.acts);

// A button, for those who listen with what it is `of`, and the dialog that it opens. `act` returns what is asked of the server.
function Act({ button, of, title, yes, act, ready = true, children }) {
  const [open, setOpen] = useState(false);
  return html`<button type="button" aria-haspopup="dialog" onClick=${() => setOpen(true)}>${button}<span class="unseen">${" "}${of}</span></button>
    ${open && html`<${Confirm} title=${title} yes=${yes} act=${act} ready=${ready} leave=${() => setOpen(false)}>${children}</${Confirm}>`}`;
}

function Confirm({ title, yes, act, ready, leave, children }) {
  const dialog = useRef();
  const [problem, setProblem] = useState("");
  const [busy, setBusy] = useState(false);
  useEffect(() => {
    const opener = document.activeElement;
    dialog.current.showModal();
    return () => opener?.isConnected && opener.focus();
  }, []);
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    setProblem("");
    try {
      await act();
      leave();
    } catch (error) {
      setProblem(error.status ? error.message : "The server cannot be reached.");
      setBusy(false);
    }
  };
  return html`<dialog ref=${dialog} aria-labelledby="act" onClose=${leave}>
    <form onSubmit=${submit}>
      <h2 id="act">${title}</h2>${children}
      ${problem && html`<p class="problem" role="alert">${problem}</p>`}
      <footer><button type="button" onClick=${leave}>Cancel</button><button class="first" disabled=${busy || !ready}>${yes}</button></footer>
    </form>
  </dialog>`;
}

export function Drain({ row }) {
  const [keep, setKeep] = useState(false);
  const [typed, setTyped] = useState("");
  const others = inState("running").filter((each) => each.id !== row.id);
  const last = !others.length;
  const act = () => ask(`instances/${row.id}/drain?keep=${keep}&force=${last}`, { method: "POST" });
  return html`<${Act} button="Drain…" of=${row.id} title=${`Drain ${row.id}?`} yes=${`Drain ${row.id}`} act=${act} ready=${!last || typed === row.id}>
    <p>${what(row, others)} ${keep ? "Then it stays, empty, until it is undrained." : "Then it stops."}</p>
    <label><input type="checkbox" checked=${keep} onChange=${(event) => setKeep(event.target.checked)} /> Keep it running, empty</label>
    ${last && html`<p class="problem">It is the last one that takes requests: until another one serves, new requests are refused.</p>
      <label class="label">Type ${row.id} to go on<input value=${typed} autocomplete="off" onInput=${(event) => setTyped(event.target.value)} /></label>`}
  </${Act}>`;
}

function what(row, others) {
  const requests = row.running + row.waiting;
  const where = others.length === 1 ? others[0].id : `${others.length} other instances`;
  const stay = others.length === 1 ? "1 instance goes on" : `${others.length} instances go on`;
  if (!others.length) return `${plural(requests, "request")} would have nowhere to go, and would end here or be computed again elsewhere.`;
  return `${requests ? `${plural(requests, "request")} ${requests === 1 ? "moves" : "move"} to ${where}, while ${requests === 1 ? "it generates" : "they generate"}; none is lost` : "It has no request"}. ${stay} to take new ones.`;
}

export function Undrain({ row }) {
  const act = () => ask(`instances/${row.id}/undrain`, { method: "POST" });
  return html`<${Act} button="Undrain…" of=${row.id} title=${`Undrain ${row.id}?`} yes=${`Undrain ${row.id}`} act=${act}>
    <p>It takes requests again, new ones and some from the others.</p>
  </${Act}>`;
}

export function AddInstances() {
  const [count, setCount] = useState(1);
  const act = () => ask("instances", { method: "POST", body: { count } });
  const valid = Number.isInteger(count) && count >= 1 && count <= 64;
  return html`<${Act} button="Add…" of="instances" title="Add instances?" yes=${valid ? `Start ${count}` : "Start"} act=${act} ready=${valid}>
    <label class="label">How many<input type="number" min="1" max="64" value=${count} onInput=${(event) => setCount(event.target.valueAsNumber)} /></label>
    <p>${valid ? `${plural(inState("running").length, "instance")} ${inState("running").length === 1 ? "serves" : "serve"} now. ${plural(count, "more one", "more")} will load the model, and take requests when ready.` : "From 1 to 64."}</p>
  </${Act}>`;
}

export function Move({ request }) {
  const targets = inState("running").filter((row) => row.id !== request.instance).sort((a, b) => byNumber(a.id, b.id));
  const freest = targets.reduce((best, row) => (best && (row.freeness ?? -Infinity) <= (best.freeness ?? -Infinity) ? best : row), null);
  const [chosen, setChosen] = useState("");
  const target = chosen || freest?.id || "";
  const act = () => ask("migrations", { method: "POST", body: { request_id: request.id, target } });
  return html`<${Act} button="Move…" of=${request.id} title="Move this request?" yes=${target ? `Move to ${target}` : "Move"} act=${act} ready=${Boolean(target)}>
    <p class="id">${request.id}</p>
    <label class="label">From ${request.instance} to<select value=${target} onChange=${(event) => setChosen(event.target.value)}>
      ${targets.map((row) => html`<option key=${row.id} value=${row.id}>${row.id}, ${row.load}</option>`)}</select></label>
    <p>${targets.length ? "It goes on generating while its memory is copied; its client notices a pause of some milliseconds." : "No other instance takes requests."}</p>
  </${Act}>`;
}
