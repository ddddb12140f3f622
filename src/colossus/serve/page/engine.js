// The live view: GET /stats once a second while the page is seen.

import { draw, shape } from "./charts.js";
import { element } from "./markdown.js";

const at = (id) => document.getElementById(id);
const PERIOD_MS = 1000, SLOW_MS = 4000;

export const number = (value) => (value === null || value === undefined ? "–" : value >= 100 ? Math.round(value).toLocaleString("en") : Number(value.toPrecision(3)).toString());
export const percent = (value) => (value === null || value === undefined ? "–" : `${(value * 100).toFixed(value > 0 && value < 0.0995 ? 1 : 0)} %`);
export const seconds = (value) => (value === null || value === undefined ? "–" : value < 1 ? `${number(value * 1000)} ms` : value < 120 ? `${number(value)} s` : `${Math.floor(value / 60)} min`);

const column = (stats, name) => stats.history.map((each) => each[name] ?? null);
const peak = (stats, name) => Math.max(0, ...column(stats, name).filter((value) => value !== null));
const ago = (each) => `${Math.round(each.age_s)} s ago`;

// Each: what is told beside its title, and its lines.
const CARDS = [
  {
    title: "Output",
    value: (stats) => [number(stats.output_tokens_per_s), "tokens/s"],
    note: (stats) => `prompts ${number(stats.prompt_tokens_per_s)} tokens/s · peak ${number(peak(stats, "output_tokens_per_s"))}`,
    series: (stats) => [{ tone: "tone-a", values: column(stats, "output_tokens_per_s"), area: true }],
    tell: (each) => `${number(each.output_tokens_per_s)} tokens/s, ${ago(each)}`,
  },
  {
    title: "Requests",
    value: (stats) => [number(stats.running), "running"],
    note: (stats) => `${number(stats.waiting)} waiting · peak ${number(peak(stats, "running"))} running`,
    series: (stats) => [{ tone: "tone-a", values: column(stats, "running"), area: true }, { tone: "tone-b", values: column(stats, "waiting") }],
    tell: (each) => `${number(each.running)} running, ${number(each.waiting)} waiting, ${ago(each)}`,
    keys: [["tone-a", "running"], ["tone-b", "waiting"]],
  },
  {
    title: "KV cache",
    value: (stats) => [percent(stats.kv_used_fraction), "in use"],
    note: (stats) => `prefix hits ${percent(stats.prefix_hit_fraction)}`,
    series: (stats) => [{ tone: "tone-a", values: column(stats, "kv_used_fraction"), area: true }],
    high: 1,
    tell: (each) => `${percent(each.kv_used_fraction)}, ${ago(each)}`,
  },
  {
    title: "First token",
    value: (stats) => [seconds(stats.ttft_s.p50), "p50"],
    note: (stats) => `between tokens ${seconds(stats.itl_s.p50)}`,
    series: (stats) => [{ tone: "tone-b", values: column(stats, "ttft_p50_s"), bars: true }],
    tell: (each) => `${seconds(each.ttft_p50_s)}, ${ago(each)}`,
  },
];

export class Engine {
  // onReady: called until it says that it has done its work.
  constructor(ask, onReady) {
    this.ask = ask;
    this.onReady = onReady;
    this.timer = 0;
    this.cards = CARDS.map(build);
    at("numbers").append(...this.cards.map((card) => card.node));
    document.addEventListener("visibilitychange", () => document.hidden || this.look());
    this.look();
  }

  async look() {
    clearTimeout(this.timer);
    if (this.busy) return;
    this.busy = true;
    let wait = PERIOD_MS;
    try {
      const response = await this.ask("stats", {});
      if (!response.ok) throw new Error(`the server answered ${response.status}`);
      const stats = await response.json();
      this.show(stats);
      if (stats.ready && this.onReady && (await this.onReady())) this.onReady = null;
    } catch {
      status("unreachable", "failed");
      wait = SLOW_MS;
    }
    this.busy = false;
    if (!document.hidden) this.timer = setTimeout(() => this.look(), wait);
  }

  show(stats) {
    status(stats.draining ? "draining" : stats.ready ? "ready" : "starting", stats.ready && !stats.draining ? "ready" : "");
    for (const card of this.cards) card.show(stats);
    at("latency").tBodies[0].replaceChildren(...latencies(stats));
    at("replicas").replaceChildren(...stats.replicas.map(replica));
    at("facts").replaceChildren(...facts(stats));
  }
}

function status(words, css) {
  const pill = at("state");
  if (pill.textContent !== words) pill.textContent = words;
  pill.className = `pill ${css}`;
}

function build(card) {
  const node = element("section", undefined, "card");
  const row = element("div", undefined, "row");
  const value = element("span", "–", "value"), unit = element("span", "", "unit");
  row.append(element("h2", card.title), value, unit);
  const note = element("div", "", "note");
  const svg = shape("svg", { class: "chart", role: "img", "aria-label": `${card.title}, last two minutes` });
  node.append(row, note, svg);
  const keys = card.keys && element("div", undefined, "note");
  if (keys) {
    for (const [tone, words] of card.keys) keys.append(element("span", undefined, `key ${tone}`), `${words}  `);
    node.append(keys);
  }
  const show = (stats) => {
    [value.textContent, unit.textContent] = card.value(stats);
    note.textContent = card.note(stats);
    draw(svg, card.series(stats), { high: card.high, tell: (index) => card.tell(stats.history[index]) });
  };
  return { node, show };
}

function latencies(stats) {
  const rows = [["first token", stats.ttft_s], ["between tokens", stats.itl_s], ["whole answer", stats.e2e_s]];
  return rows.map(([name, values]) => {
    const row = element("tr");
    row.append(element("td", name), ...["p50", "p90", "p99"].map((share) => element("td", seconds(values[share]))));
    return row;
  });
}

function replica(each) {
  const line = element("li");
  const css = each.state === "ready" ? "ready" : each.state === "failed" ? "failed" : "";
  line.append(element("span", `${each.index}`), element("span", each.state, `pill ${css}`));
  const lost = each.num_losses ? `, restarted ${each.num_losses} x` : "";
  line.append(element("span", `${number(each.running)} running, ${number(each.waiting)} waiting, KV ${percent(each.kv_used_fraction)}${lost}`, "note"));
  if (each.state !== "ready" && each.text) line.append(element("span", each.text, "note words"));
  return line;
}

function facts(stats) {
  const engine = stats.engine ?? {};
  const ended = Object.values(stats.num_ended).reduce((sum, count) => sum + count, 0);
  const rows = [
    ["up for", seconds(stats.uptime_s)],
    ["device", engine.device],
    ["weights", engine.weights],
    ["cache", engine.cache && `${engine.cache}, ${number(engine.num_pages)} pages of ${engine.page_tokens} tokens`],
    ["context", engine.max_sequence_tokens && `${number(engine.max_sequence_tokens)} tokens`],
    ["start", engine.start_s && `${seconds(engine.start_s)}, ${number(engine.num_programs)} programs`],
    ["answered", `${number(ended)} requests, ${number(stats.num_output_tokens)} tokens`],
    ["refused", stats.num_refused ? number(stats.num_refused) : undefined],
    ["drafts accepted", stats.draft_accepted_fraction === null ? undefined : percent(stats.draft_accepted_fraction)],
  ];
  return rows.filter(([, value]) => value).flatMap(([name, value]) => [element("dt", name), element("dd", value)]);
}
