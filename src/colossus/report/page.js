// Values under the pointer; the page is complete without it.
const tip = document.getElementById("tip");
for (const svg of document.querySelectorAll("svg[data-chart]")) {
  const chart = JSON.parse(svg.dataset.chart);
  const [from, to, left, right] = chart.x;
  const place = chart.log_x ? Math.log : (x) => x; // straight or by logarithm
  const low = place(from), high = place(to);
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  line.setAttribute("class", "axis");
  svg.append(line);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const pixel = ((event.clientX - box.left) * svg.viewBox.baseVal.width) / box.width;
    const x = low + ((pixel - left) / (right - left)) * (high - low);
    const nearest = (points) => points.reduce((best, point) => (Math.abs(place(point[0]) - x) < Math.abs(place(best[0]) - x) ? point : best));
    const shown = chart.series.filter((series) => series.points.length).map((series) => [series.name, nearest(series.points)]);
    if (!shown.length || pixel < left - 4 || pixel > right + 4) return hide();
    const at = left + ((place(shown[0][1][0]) - low) / (high - low)) * (right - left);
    line.setAttribute("d", `M${at} ${chart.y[0]}V${chart.y[1]}`);
    tip.textContent = shown.map(([name, [where, value]]) => `${name} ${value} at ${chart.x_name} ${where}`).join("\n");
    tip.style.visibility = "visible";
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = event.clientY + 14 + "px";
  });
  const hide = () => { tip.style.visibility = "hidden"; line.removeAttribute("d"); };
  svg.addEventListener("pointerleave", hide);
}
