// The chat: what is said goes to /v1/chat/completions, the answer is shown as it streams.

import { element, markdown } from "./markdown.js";

const at = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];

export class Chat {
  constructor(ask) {
    this.ask = ask; // fetch with the key
    this.model = null;
    this.turns = [];
    this.stopper = null;
    at("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.say(at("said").value);
    });
    at("said").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.say(at("said").value);
      }
    });
    at("said").addEventListener("input", grow);
    at("stop").addEventListener("click", () => this.stopper?.abort());
    at("temperature").addEventListener("input", drawing);
    drawing();
    at("fresh").addEventListener("click", () => this.clear());
    for (const hint of document.querySelectorAll(".hint")) hint.addEventListener("click", () => this.say(hint.textContent));
  }

  clear() {
    this.stopper?.abort();
    this.turns = [];
    at("talk").replaceChildren(at("empty"));
    at("empty").hidden = false;
    at("said").focus();
  }

  async say(text) {
    if (!text.trim() || this.stopper || !this.model) return;
    this.stopper = new AbortController();
    at("said").value = "";
    grow();
    at("empty").hidden = true;
    at("send").hidden = true;
    at("stop").hidden = false;
    show("user", text);
    this.turns.push({ role: "user", content: text });
    const answer = new Answer();
    const turns = this.turns;
    try {
      await this.stream(answer, this.stopper.signal);
    } catch (error) {
      if (error.name !== "AbortError") answer.fail(error.message);
      else answer.stopped = true;
    }
    answer.end();
    if (turns === this.turns) {
      if (answer.text) turns.push({ role: "assistant", content: answer.text });
      else turns.pop(); // many templates refuse two turns of the user in a row
    }
    this.stopper = null;
    at("send").hidden = false;
    at("stop").hidden = true;
  }

  async stream(answer, signal) {
    const response = await this.ask("v1/chat/completions", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(this.body()), signal });
    if (!response.ok) throw new Error(await refusal(response));
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(event.error.message ?? String(event.error));
      for (const choice of event.choices ?? []) {
        if (choice.delta?.content) answer.add(choice.delta.content);
        answer.finish = choice.finish_reason ?? answer.finish;
      }
      if (event.usage) answer.tokens = event.usage.completion_tokens;
    }
  }

  body() {
    const system = at("system").value.trim();
    const body = { model: this.model, stream: true, stream_options: { include_usage: true }, messages: [...(system ? [{ role: "system", content: system }] : []), ...this.turns] };
    for (const name of NUMBERS) if (at(name).value !== "" && at(name).checkValidity()) body[name] = Number(at(name).value);
    return body;
  }
}

// Data of server-sent events up to [DONE].
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const data = line.startsWith("data:") ? line.slice(5).trim() : "";
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

async function refusal(response) {
  const text = await response.text();
  let words = text.slice(0, 300) || response.statusText;
  try {
    words = JSON.parse(text).error.message;
  } catch {}
  return response.status === 429 ? `The server is busy (429): ${words}` : `${words} (${response.status})`;
}

class Answer {
  constructor() {
    this.text = "";
    this.began = performance.now();
    this.first = null;
    this.node = show("model", "");
    this.words = this.node.querySelector(".text");
    this.words.classList.add("waiting");
    this.drawing = 0;
  }

  add(piece) {
    this.first ??= performance.now();
    this.text += piece;
    this.drawing ||= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.drawing = 0;
    follow(() => this.words.replaceChildren(markdown(this.text)));
  }

  fail(message) {
    this.failed = true;
    this.node.append(element("p", message, "wrong"));
  }

  end() {
    cancelAnimationFrame(this.drawing);
    this.draw();
    this.words.classList.remove("waiting");
    follow(() => this.node.append(element("div", this.told(performance.now()), "meta")));
  }

  told(now) {
    const parts = [];
    if (this.tokens !== undefined) parts.push(`${this.tokens} token${this.tokens === 1 ? "" : "s"}`);
    if (this.first !== null) parts.push(`first after ${Math.round(this.first - this.began)} ms`);
    if (this.tokens > 1 && now > this.first) parts.push(`${Math.round(((this.tokens - 1) * 1000) / (now - this.first))} tokens/s`);
    if (this.finish === "length") parts.push("cut at its longest");
    if (this.stopped) parts.push("stopped");
    return parts.join(" · ");
  }
}

function show(role, text) {
  const turn = element("div", undefined, `turn ${role}`);
  turn.append(element("div", text, "text"));
  at("talk").append(turn);
  at("talk").scrollTop = at("talk").scrollHeight;
  return turn;
}

// Stays at the end of the talk while the reader is there.
function follow(change) {
  const talk = at("talk");
  const there = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 60;
  change();
  if (there) talk.scrollTop = talk.scrollHeight;
}

// Which temperature answers get, beside the closed settings too.
function drawing() {
  const field = at("temperature");
  at("drawing").textContent = field.value !== "" && field.checkValidity() ? `: temperature ${field.value}` : ": the server's temperature";
}

function grow() {
  const field = at("said");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}
