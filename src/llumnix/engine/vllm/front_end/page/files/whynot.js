// Why nothing happens: what keeps requests where they are, and the cluster as large as it is.
import { html } from "./html.js";
import { ask } from "./server.js";
import { Card, usePolled } from "./parts.js";

const useWhys = () => usePolled(() => ask("why-not"), 2, []);

export function WhyNot() {
  const { value, why } = useWhys();
  return html`<${Card} title="Why not?">${value ? html`<dl class="inside whys">
    <dt>Why is nothing moving?</dt><dd>${value.moves}</dd>
    <dt>Why no new instance?</dt><dd>${value.starts}</dd></dl>` : html`<p class="none">${why || "The answer is on its way."}</p>`}
  </${Card}>`;
}

export function WhyItKeepsAll({ id }) {
  const { value, why } = useWhys();
  return html`<${Card} title="Why does nothing leave it?"><div class="inside prose"><p>${value?.instances[id] || why || "The answer is on its way."}</p></div></${Card}>`;
}
