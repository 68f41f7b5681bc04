// Requests that moved just now, as arcs between instances: beside the rows of a table, or over a field of cells.
import { html, useLayoutEffect, useRef, useState } from "./html.js";

// `beside`: arcs in the margin left of the rows; else from cell to cell. Places are marked with data-instance.
export function Sky({ flights, beside, children }) {
  const sky = useRef();
  const [places, setPlaces] = useState({});
  const wanted = [...new Set(flights.flatMap((flight) => [flight.source, flight.target]))].join(" ");
  useLayoutEffect(() => {
    if (wanted) setPlaces(placesOf(sky.current, beside));
  }, [wanted, beside]);
  const seen = flights.filter((flight) => places[flight.source] && places[flight.target]);
  return html`<div class=${beside ? "sky beside" : "sky"} ref=${sky}>
    ${children}
    <svg aria-hidden="true">${seen.map((flight) => html`<${Flight} key=${flight.key} from=${places[flight.source]} to=${places[flight.target]} beside=${beside} />`)}</svg>
  </div>`;
}

function placesOf(sky, beside) {
  const frame = sky.getBoundingClientRect();
  const margin = parseFloat(getComputedStyle(sky).getPropertyValue("--margin"));
  const places = {};
  for (const element of sky.querySelectorAll("[data-instance]")) {
    const box = element.getBoundingClientRect();
    const x = beside ? margin : box.left - frame.left + box.width / 2;
    places[element.dataset.instance] = { x, y: box.top - frame.top + box.height / 2 };
  }
  return places;
}

function Flight({ from, to, beside }) {
  const far = Math.hypot(to.x - from.x, to.y - from.y);
  const out = Math.min(1.25 * from.x, 14 + far / 6);
  const path = beside
    ? `M${from.x} ${from.y}C${from.x - out} ${from.y} ${to.x - out} ${to.y} ${to.x} ${to.y}`
    : `M${from.x} ${from.y}Q${(from.x + to.x) / 2} ${Math.min(from.y, to.y) - far / 4} ${to.x} ${to.y}`;
  return html`<path class="flight" pathLength="1" d=${path} /><circle class="landing" r="3.5" cx=${to.x} cy=${to.y} />`;
}
