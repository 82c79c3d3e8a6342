"use strict";

// Server
const BUSY_TRIES = 5; // how often a busy server is asked again
const CHECKS = [2000, 4000, 8000, 15000]; // milliseconds between looks for a server that is gone
const API_KEY = "nanochat:api-key";
let modelName = "";
let goneChecks = null; // the timer, while the server is gone

/** An answer other than success; `status` is 0 where nothing answered at all. */
class ServerError extends Error {
  constructor(message, status = 0, retryAfter = 2) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

function apiKey() {
  try {
    return sessionStorage.getItem(API_KEY) ?? "";
  } catch {
    return "";
  }
}

async function ask(path, { body, signal } = {}) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if (apiKey()) headers.Authorization = `Bearer ${apiKey()}`;
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, signal,
      cache: "no-store", body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    serverIsGone();
    throw new ServerError("The server does not answer.");
  }
  if (!response.ok) throw await errorOf(response);
  serverIsThere();
  return response;
}

async function errorOf(response) {
  const text = await response.text().catch(() => "");
  let message = "";
  try {
    message = JSON.parse(text).error.message;
  } catch {
    // no {"error": {"message"}}: a proxy's page, say
  }
  const seconds = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  message ||= `The server answered ${response.status} ${response.statusText}.`;
  const wait = Number.isFinite(seconds) ? Math.min(Math.max(seconds, 1), 120) : 2;
  return new ServerError(message, response.status, wait);
}

/** The lines of a body as they arrive. */
async function* linesOf(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (let done = false; !done; ) {
      const read = await reader.read();
      done = read.done;
      rest += done ? decoder.decode() : decoder.decode(read.value, { stream: true });
      const lines = rest.split("\n");
      rest = done ? "" : lines.pop();
      yield* lines;
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops reading lets the server's slot go
  }
}

/** The JSON values of a server-sent event stream, up to [DONE]. */
async function* eventsOf(response) {
  for await (const line of linesOf(response)) {
    if (!line.startsWith("data:")) continue; // comments, event names, the empty lines between
    const data = line.slice(5).trim();
    if (data === "[DONE]") return;
    yield JSON.parse(data);
  }
}

async function loadModelName() {
  try {
    const models = await (await ask("/v1/models")).json();
    modelName = String(models.data?.[0]?.id ?? "");
  } catch (error) {
    // subtle: without a key the name is not told; the first question asks for the key
    if (!(error instanceof ServerError) && !(error instanceof SyntaxError)) throw error;
  }
  showServer();
}

function showServer() {
  byId("model").dataset.state = goneChecks ? "gone" : modelName ? "up" : "unknown";
  byId("model-name").textContent = goneChecks ? "no server" : shown(modelName);
  byId("model").title = goneChecks ? "The server does not answer" : shown(modelName);
}

function serverIsGone() {
  if (goneChecks) return;
  byId("banner").firstElementChild.textContent =
    "The server does not answer. Is it still running? This page keeps looking for it.";
  byId("banner").hidden = false;
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
  try {
    const { status } = await fetch("/health", { cache: "no-store" });
    if (status >= 500) return false; // a proxy that answers in its place
  } catch {
    return false;
  }
  serverIsThere();
  return true;
}

function serverIsThere() {
  if (!goneChecks) return;
  clearTimeout(goneChecks);
  goneChecks = null;
  byId("banner").hidden = true;
  showServer();
  showNotice("The server is back.");
  loadModelName(); // it may serve another model now
}

/** Asks for the API key; false if the person declines. */
function askForKey(reason) {
  const dialog = byId("key-dialog");
  byId("key-reason").textContent = shown(reason);
  byId("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "ok" && byId("key").value.trim();
      if (given) sessionStorage.setItem(API_KEY, given);
      if (given && !modelName) loadModelName();
      byId("question").focus();
      resolve(Boolean(given));
    }, { once: true });
  });
}
