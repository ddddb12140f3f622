// Small charts of the last two minutes, as SVG drawn anew each second; values show under the pointer.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300, HEIGHT = 54, TOP = 3;
const tip = document.getElementById("tip");

// series: [{ tone, values, area, bars }] of equal length, oldest first, null where nothing is known; tell(index) gives the words of one moment.
export function draw(svg, series, { high, tell }) {
  const most = Math.max(high ?? 0, ...series.flatMap(({ values }) => values.filter((value) => value !== null)), 1e-9);
  const x = (index, count) => (count > 1 ? (index / (count - 1)) * WIDTH : WIDTH);
  const y = (value) => HEIGHT - (value / most) * (HEIGHT - TOP);
  const parts = [shape("path", { class: "base", d: `M0 ${HEIGHT}H${WIDTH}` })];
  for (const { tone, values, area, bars } of series) {
    if (bars) {
      const known = values.map((value, index) => (value === null ? "" : `M${x(index, values.length).toFixed(1)} ${HEIGHT}V${(y(value) - 1).toFixed(1)}`));
      parts.push(shape("path", { class: `line bars ${tone}`, d: known.join("") }));
      continue;
    }
    for (const [first, points] of pieces(values)) {
      const line = points.map((value, index) => `${x(first + index, values.length).toFixed(1)} ${y(value).toFixed(1)}`).join("L");
      const begin = x(first, values.length).toFixed(1);
      if (area) parts.push(shape("path", { class: `area ${tone}`, d: `M${line}V${HEIGHT}H${begin}Z` }));
      parts.push(shape("path", { class: `line ${tone}`, d: `M${line}` + (points.length === 1 ? "h0.1" : "") }));
    }
  }
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.replaceChildren(...parts);
  listen(svg, series[0].values.length, tell);
}

// Runs of known values, each with where it begins.
function pieces(values) {
  const found = [];
  values.forEach((value, index) => {
    if (value === null) return;
    if (index && values[index - 1] !== null) found.at(-1)[1].push(value);
    else found.push([index, [value]]);
  });
  return found;
}

export function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const state = new WeakMap();

function listen(svg, count, tell) {
  const known = state.has(svg);
  const mine = state.get(svg) ?? { x: null };
  Object.assign(mine, { count, tell });
  state.set(svg, mine);
  if (!known) {
    svg.addEventListener("pointermove", (event) => point(svg, mine, event.clientX, event.clientY));
    svg.addEventListener("pointerleave", () => point(svg, mine, null));
  } else if (mine.x !== null) point(svg, mine, mine.x, mine.y);
}

function point(svg, mine, clientX, clientY) {
  mine.x = clientX;
  mine.y = clientY;
  svg.querySelector(".here")?.remove();
  tip.style.visibility = "hidden";
  if (clientX === null || !mine.count) return;
  const box = svg.getBoundingClientRect();
  const index = Math.max(0, Math.min(mine.count - 1, Math.round(((clientX - box.left) / box.width) * (mine.count - 1))));
  const at = mine.count > 1 ? (index / (mine.count - 1)) * WIDTH : WIDTH;
  svg.append(shape("path", { class: "here", d: `M${at} 0V${HEIGHT}` }));
  tip.textContent = mine.tell(index);
  tip.style.left = `${Math.min(clientX + 12, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${clientY + 14}px`;
  tip.style.visibility = "visible";
}
