"use strict";

// Conversations
// In memory {id, title, system, updated, messages}; a message is {role: "user", text} or {role:
// "assistant", parts, status, ...}. Stored, and in files, they have the form that the terminal's
// /save writes: {"messages": [{"role", "content"}]}, with "title" and "updated" beside it.

const STORED = "nanochat:conversation:";
const PART_TYPES = ["text", "python", "python_output"];
const STATUSES = ["done", "stopped", "interrupted", "failed"];
const SAVE_EVERY = 400; // milliseconds, while an answer is written
const conversations = new Map(); // by id
let current = null; // the conversation on screen

class FormatError extends Error {}

function writeStorage(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch (error) {
    showNotice(`This browser stores nothing more (${error.name}). Export conversations to keep `
      + "them, or delete some to make room.");
  }
}

/** A random id; crypto.randomUUID exists only on https and localhost. */
const newId = () => Array.from(crypto.getRandomValues(new Uint32Array(3)),
  (number) => number.toString(36)).join("");

const newConversation = () =>
  ({ id: newId(), title: "", system: "", updated: Date.now(), messages: [] });

const newAnswer = () => ({ role: "assistant", parts: [], status: "writing", problem: "",
  finish: "", forgotten: 0, timing: null });

function titleOf(conversation) {
  const question = conversation.messages[0]?.text.trim().replace(/\s+/g, " ") ?? "";
  return shown(conversation.title || question.slice(0, 60) || "New conversation");
}

const joined = (parts) => parts.map((part) => part.text).join("");
const textOf = (message) =>
  message.text ?? joined(message.parts.filter((part) => part.type === "text")).trim();

/** The parts of a message's content, each a new object with the known keys alone. */
function partsFrom(content, where) {
  if (typeof content === "string") return content ? [{ type: "text", text: content }] : [];
  if (!Array.isArray(content)) {
    throw new FormatError(`${where}: expected content to be a string or a list of parts`);
  }
  return content.map((part) => {
    if (!PART_TYPES.includes(part?.type) || typeof part.text !== "string") {
      const types = PART_TYPES.join(" | ");
      throw new FormatError(`${where}: expected parts {"type": ${types}, "text": ...}`);
    }
    return { type: part.type, text: part.text };
  });
}

/** The finite numbers of `value` under the names that timings have; null if there are none. */
function timingFrom(value) {
  const known = ["tokens", "tokensPerSecond", "timeToFirstToken"]
    .filter((name) => Number.isFinite(value?.[name])).map((name) => [name, value[name]]);
  return known.length ? Object.fromEntries(known) : null;
}

function messageFrom(value, role, where) {
  if (value?.role !== role) {
    const found = JSON.stringify(value?.role);
    throw new FormatError(`${where}: expected role "${role}", found ${found}`);
  }
  const parts = partsFrom(value.content, where);
  if (role !== "assistant") return { role, text: joined(parts) };
  const message = { ...newAnswer(), parts, status: "done", timing: timingFrom(value.timing) };
  if (STATUSES.includes(value.status)) message.status = value.status;
  for (const name of ["problem", "finish"]) {
    if (typeof value[name] === "string") message[name] = value[name];
  }
  if (Number.isInteger(value.forgotten)) message.forgotten = value.forgotten;
  if (value.status === "writing") { // subtle: when its page went away
    message.status = "interrupted";
    message.problem = "The page was left while it was written.";
  }
  return message;
}

/** A conversation from parsed JSON; throws FormatError. Only known keys are read. */
function conversationFrom(value, id = newId()) {
  if (!Array.isArray(value?.messages)) {
    throw new FormatError('expected {"messages": [...]}, found no list of messages');
  }
  const conversation = { ...newConversation(), id };
  if (typeof value.title === "string") conversation.title = value.title.slice(0, 200);
  if (Number.isFinite(value.updated)) conversation.updated = value.updated;
  const numSystem = Number(value.messages[0]?.role === "system");
  value.messages.forEach((one, i) => {
    const role = i < numSystem ? "system" : (i - numSystem) % 2 ? "assistant" : "user";
    const message = messageFrom(one, role, `message ${i + 1}`);
    if (role === "system") conversation.system = message.text;
    else conversation.messages.push(message);
  });
  if (conversation.messages.length % 2) {
    conversation.messages.push({ ...newAnswer(), status: "failed", problem: "Not answered yet." });
  }
  return conversation;
}

function contentOf(message) {
  if (message.role === "user") return message.text;
  const plain = message.parts.every((part) => part.type === "text");
  return plain ? joined(message.parts) : message.parts;
}

/** The messages in the API's form, system prompt first. */
const apiMessages = (system, messages) => [
  ...(system ? [{ role: "system", content: system }] : []),
  ...messages.map((message) => ({ role: message.role, content: contentOf(message) })),
];

function exported({ title, updated, system, messages }) {
  const withState = messages.map((message) => {
    const { role, text, parts, ...state } = message;
    return { role, content: contentOf(message), ...state };
  });
  return { title, updated, messages: [...apiMessages(system, []), ...withState] };
}

function saveConversation(conversation) {
  const key = STORED + conversation.id;
  if (conversation.messages.length || conversation.system) {
    conversations.set(conversation.id, conversation);
    writeStorage(key, JSON.stringify(exported(conversation)));
  } else attempt(() => localStorage.removeItem(key));
}

function forgetConversation(conversation) {
  answers.get(conversation.id)?.stop();
  conversations.delete(conversation.id);
  attempt(() => localStorage.removeItem(STORED + conversation.id));
}

function readStored(key) {
  const conversation =
    conversationFrom(JSON.parse(localStorage.getItem(key)), key.slice(STORED.length));
  conversations.set(conversation.id, conversation);
  return conversation;
}

function readAllStored() {
  const keys = attempt(() => Object.keys(localStorage)) ?? [];
  const unreadable = keys.filter((key) => key.startsWith(STORED) && !attempt(() => readStored(key)));
  if (unreadable.length) { // they stay stored as they are
    showNotice(`${unreadable.length} stored conversation(s) could not be read and are left out.`);
  }
}

const byTime = () => [...conversations.values()].sort((a, b) => b.updated - a.updated);
