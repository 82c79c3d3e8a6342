"use strict";

// Server
const BUSY_TRIES = 5; // how often a busy server is asked again
const CHECKS = [2000, 4000, 8000, 15000]; // milliseconds between looks for a server that is gone
const API_KEY = "nanochat:api-key";
let modelName = "";
let goneChecks = null; // the timer, while the server is gone

/** An answer other than success; `status` is 0 if nothing answered at all. */
class ServerError extends Error {
  constructor(message, status = 0, retryAfter = 2) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** Asks the server at a relative address, for the page may lie under a proxy's path. */
async function ask(path, { body, signal } = {}) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  const key = attempt(() => sessionStorage.getItem(API_KEY));
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, signal,
      cache: "no-store", body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    serverIsGone();
    throw new ServerError("The server does not answer.");
  }
  if (!response.ok) {
    const text = await response.text().catch(() => "");
    const message = attempt(() => JSON.parse(text).error.message) // null: a proxy's page, say
      || `The server answered ${response.status} ${response.statusText}.`;
    const seconds = Number.parseInt(response.headers.get("Retry-After"), 10) || 2;
    throw new ServerError(message, response.status, Math.min(Math.max(seconds, 1), 120));
  }
  serverIsThere();
  return response;
}

/** The JSON values of a server-sent event stream, up to [DONE]. */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value = "" } = await reader.read();
      const lines = (rest + value).split("\n");
      rest = done ? "" : lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue; // a comment, or the empty line between
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        yield JSON.parse(data);
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops reading lets the server's slot go
  }
}

async function loadModel() {
  try {
    const models = await (await ask("v1/models")).json();
    modelName = String(models.data?.[0]?.id ?? "");
    defaults = models.data?.[0]?.defaults ?? {};
    showSettings();
  } catch (error) {
    // subtle: without a key the server says nothing; the first question asks for the key
    if (!(error instanceof ServerError) && !(error instanceof SyntaxError)) throw error;
  }
  showServer();
}

function showServer() {
  byId("model").dataset.state = goneChecks ? "gone" : modelName ? "up" : "unknown";
  byId("model-name").textContent = goneChecks ? "no server" : shown(modelName);
  byId("model").title = goneChecks ? "The server does not answer" : shown(modelName);
  byId("banner").hidden = !goneChecks;
}

function serverIsGone() {
  if (goneChecks) return;
  byId("banner").firstElementChild.textContent =
    "The server does not answer. Is it still running? This page keeps looking for it.";
  lookForServer(0);
  showServer();
}

function lookForServer(times) {
  const wait = CHECKS[Math.min(times, CHECKS.length - 1)];
  goneChecks = setTimeout(async () => {
    if (!(await serverAnswers())) lookForServer(times + 1);
  }, wait);
}

async function serverAnswers() {
  const response = await fetch("health", { cache: "no-store" }).catch(() => null);
  if (!response || response.status >= 500) return false; // or a proxy answers in its place
  serverIsThere();
  return true;
}

function serverIsThere() {
  if (!goneChecks) return;
  clearTimeout(goneChecks);
  goneChecks = null;
  showServer();
  showNotice("The server is back.");
  loadModel(); // it may serve another model now
}

/** Asks for the API key; false if the person declines. */
function askForKey(reason) {
  const dialog = byId("key-dialog");
  byId("key-reason").textContent = shown(reason);
  byId("key").value = dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "ok" && byId("key").value.trim();
      if (given) sessionStorage.setItem(API_KEY, given);
      if (given && !modelName) loadModel();
      byId("question").focus();
      resolve(Boolean(given));
    }, { once: true });
  });
}
