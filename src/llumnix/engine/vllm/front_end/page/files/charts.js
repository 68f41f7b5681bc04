// The past, as four small charts with one cursor.
import { html, useEffect, useRef, useState } from "./html.js";
import { Card } from "./parts.js";
import { freeness, percent, rate, whole } from "./format.js";

const SPANS = { "5 min": 300, "1 hour": 3600 };
const HEIGHT = 132;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const CLUSTER = [
  { title: "Memory in use", lines: [["memory", "all"]], band: ["memory_least", "memory_most"], show: percent, top: 1 },
  { title: "Requests", lines: [["running", "running"], ["waiting", "waiting"]], show: whole },
  { title: "Lowest freeness", lines: [["freeness", "freeness"]], show: freeness },
  { title: "Per second", lines: [["requests_per_s", "requests ended"], ["moves_per_s", "moves"]], show: rate },
];
export const INSTANCE = [
  { title: "Memory in use", lines: [["memory", "memory"]], show: percent, top: 1 },
  { title: "Requests", lines: [["running", "running"], ["waiting", "waiting"]], show: whole },
  { title: "Freeness", lines: [["freeness", "freeness"]], show: freeness },
];

export function LastHour({ history, charts = CLUSTER, id = "cluster" }) {
  const [span, setSpan] = useState("5 min");
  const choice = html`<div class="choice" role="group" aria-label="How far back">
    ${Object.keys(SPANS).map((name) => html`<button type="button" key=${name} aria-pressed=${span === name} onClick=${() => setSpan(name)}>${name}</button>`)}
  </div>`;
  return html`<${Card} title="So far" right=${choice}>
    ${history ? html`<div class="charts">${charts.map((chart) => html`<${Chart} key=${id + chart.title} of=${chart} history=${history} seconds=${SPANS[span]} group=${id} />`)}</div>` : html`<p class="none">The past is on its way.</p>`}
  </${Card}>`;
}

function Chart({ of, history, seconds, group }) {
  const place = useRef();
  const plot = useRef();
  useEffect(() => {
    const element = place.current;
    const drawn = (plot.current = new uPlot(options(of, element.clientWidth, group), dataOf(of, history, seconds), element));
    const fit = new ResizeObserver(() => drawn.setSize({ width: element.clientWidth, height: HEIGHT }));
    fit.observe(element);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const redraw = () => drawn.redraw();
    dark.addEventListener("change", redraw);
    return () => {
      dark.removeEventListener("change", redraw);
      fit.disconnect();
      drawn.destroy();
    };
  }, [of, group]);
  const newest = history.at.at(-1);
  useEffect(() => {
    plot.current.setData(dataOf(of, history, seconds), false);
    plot.current.setScale("x", { min: newest - seconds, max: newest });
  }, [newest, history, seconds]);
  const now = of.lines.map(([name, title]) => `${title} ${of.show(history.series[name].at(-1))}`).join(", ");
  return html`<figure class="chart">
    <figcaption><b>${of.title}</b>${of.band && html`<span class="key band">emptiest to fullest</span>`}
      ${of.lines.length > 1 && of.lines.map(([, title], index) => html`<span class=${index ? "key second" : "key"}>${title}</span>`)}</figcaption>
    <div class="plot" ref=${place} role="img" aria-label=${`${of.title}: ${now}`}></div>
  </figure>`;
}

function dataOf(of, { at, series }, seconds) {
  const from = at.length && at.at(-1) - seconds;
  const first = Math.max(0, at.findIndex((each) => each >= from) - 1);
  const names = [...(of.band || []), ...of.lines.map(([name]) => name)];
  return [at.slice(first), ...names.map((name) => series[name].slice(first))];
}

function options(of, width, group) {
  const axis = { stroke: () => colour("--soft"), font: "12px system-ui, sans-serif", ticks: { show: false } };
  const grid = { stroke: () => colour("--line"), width: 1 };
  const lines = of.lines.map((_, index) => ({
    stroke: () => colour(index ? "--fill-warn" : "--fill"),
    width: 1.75,
    dash: index ? [5, 4] : undefined,
    points: { show: false },
  }));
  const edges = (of.band || []).map(() => ({ stroke: "transparent", points: { show: false } }));
  return {
    width,
    height: HEIGHT,
    legend: { show: false },
    cursor: { sync: { key: group }, points: { size: 6 }, drag: { setScale: false } },
    scales: { y: { range: (_, low, high) => [Math.min(0, low ?? 0), of.top ?? Math.max(1, 1.1 * (high ?? 1))] } },
    series: [{}, ...edges, ...lines],
    bands: of.band && [{ series: [2, 1], fill: () => `color-mix(in srgb, ${colour("--fill")} 22%, transparent)` }],
    axes: [
      { ...axis, size: 26, space: 52, grid: { show: false }, values: [[3600, "{HH}:{mm}"], [60, "{HH}:{mm}"], [1, "{HH}:{mm}:{ss}"]] },
      { ...axis, size: 44, space: 34, grid, values: (_, ticks) => ticks.map(of.top ? of.show : (tick) => tick.toLocaleString("en")) },
    ],
  };
}
