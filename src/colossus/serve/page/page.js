// The page: asks for a key where the server wants one, joins chat and engine, keeps nothing beyond this window.

import { Chat } from "./chat.js";
import { Engine } from "./engine.js";
import { element } from "./markdown.js";

const at = (id) => document.getElementById(id);
let key = "";
let asking = null;

// fetch with the key; where the server wants another one, asks the user and tries again.
async function ask(path, options) {
  for (;;) {
    const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    const used = key;
    const response = await fetch(path, { ...options, headers, credentials: "omit" });
    if (response.status !== 401) return response;
    if (used === key) await (asking ??= askForKey(used !== ""));
  }
}

function askForKey(wasWrong) {
  const dialog = at("key");
  at("key-wrong").hidden = !wasWrong;
  at("key-value").value = "";
  return new Promise((resolve) => {
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener("close", () => {
      key = at("key-value").value.trim();
      at("key-value").value = "";
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
}

// Once an engine is ready; false where it is not after all.
async function models(chat) {
  const response = await ask("v1/models", {});
  if (response.ok) choose(chat, (await response.json()).data.map((model) => model.id));
  return response.ok;
}

function choose(chat, names) {
  const use = (name) => {
    chat.model = name;
    at("model").textContent = name;
    document.title = `${name} · Colossus`;
  };
  at("choice").replaceChildren(...names.map((name) => element("option", name)));
  at("choice").addEventListener("change", () => use(at("choice").value));
  at("models").hidden = names.length < 2;
  if (names.length) use(names[0]);
  at("send").disabled = !names.length;
}

function view(name) {
  document.body.dataset.view = name;
  at("show-chat").setAttribute("aria-pressed", String(name === "chat"));
  at("show-engine").setAttribute("aria-pressed", String(name === "engine"));
}

at("show-chat").addEventListener("click", () => view("chat"));
at("show-engine").addEventListener("click", () => view("engine"));
at("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme:dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
view("chat");
const chat = new Chat(ask);
new Engine(ask, () => models(chat));
at("said").focus();
