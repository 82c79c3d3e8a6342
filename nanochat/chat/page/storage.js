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

const storage = {
  read(key) {
    try {
      return localStorage.getItem(key);
    } catch {
      return null; // no storage here (a private window, say): the first write says so
    }
  },
  write(key, value) {
    try {
      localStorage.setItem(key, value);
    } catch (error) {
      showNotice(`This browser stores nothing more (${error.name}). Export conversations to keep `
        + "them, or delete some to make room.");
    }
  },
  remove(key) {
    try {
      localStorage.removeItem(key);
    } catch {
      // nothing was stored either
    }
  },
  keys() {
    try {
      return Object.keys(localStorage);
    } catch {
      return [];
    }
  },
};

function newId() {
  const bytes = [...crypto.getRandomValues(new Uint8Array(10))];
  return bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function newConversation() {
  return { id: newId(), title: "", system: "", updated: Date.now(), messages: [] };
}

function newAnswer() {
  return { role: "assistant", parts: [], status: "writing", problem: "", finish: "", forgotten: 0,
    timing: null };
}

function titleOf(conversation) {
  const question = conversation.messages[0]?.text.trim().replace(/\s+/g, " ") ?? "";
  return shown(conversation.title || question.slice(0, 60) || "New conversation");
}

const textOf = (message) => message.text ?? message.parts.filter((part) => part.type === "text")
  .map((part) => part.text).join("").trim();

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

function timingFrom(value) {
  const known = ["tokens", "tokensPerSecond", "timeToFirstToken"];
  const timing = Object.fromEntries(known.filter((key) => Number.isFinite(value?.[key]))
    .map((key) => [key, value[key]]));
  return Object.keys(timing).length ? timing : null;
}

function messageFrom(value, role, where) {
  if (value?.role !== role) {
    const found = JSON.stringify(value?.role);
    throw new FormatError(`${where}: expected role "${role}", found ${found}`);
  }
  const parts = partsFrom(value.content, where);
  if (role !== "assistant") return { role, text: parts.map((part) => part.text).join("") };
  // subtle: an answer stored as "writing" was being written when its page went away
  const status = value.status === "writing" ? "interrupted"
    : STATUSES.includes(value.status) ? value.status : "done";
  const words = (text) => (typeof text === "string" ? text : "");
  const problem = value.status === "writing" ? "The page was left while it was written."
    : words(value.problem);
  const forgotten = Number.isInteger(value.forgotten) ? value.forgotten : 0;
  return { role, parts, status, problem, finish: words(value.finish), forgotten,
    timing: timingFrom(value.timing) };
}

/** A conversation from parsed JSON; raises FormatError. Only the keys that are known are read. */
function conversationFrom(value, id = newId()) {
  if (!Array.isArray(value?.messages)) {
    throw new FormatError('expected {"messages": [...]}, found no list of messages');
  }
  const conversation = { ...newConversation(), id };
  if (typeof value.title === "string") conversation.title = value.title.slice(0, 200);
  if (Number.isFinite(value.updated)) conversation.updated = value.updated;
  let rest = value.messages;
  if (rest[0]?.role === "system") {
    conversation.system = messageFrom(rest[0], "system", "message 1").text;
    rest = rest.slice(1);
  }
  const before = value.messages.length - rest.length;
  conversation.messages = rest.map((message, i) =>
    messageFrom(message, i % 2 ? "assistant" : "user", `message ${i + before + 1}`));
  if (rest.length % 2) {
    conversation.messages.push({ ...newAnswer(), status: "failed", problem: "Not answered yet." });
  }
  return conversation;
}

function contentOf(message) {
  if (message.role === "user") return message.text;
  const plain = message.parts.every((part) => part.type === "text");
  return plain ? message.parts.map((part) => part.text).join("") : message.parts;
}

function exported(conversation) {
  const system = conversation.system ? [{ role: "system", content: conversation.system }] : [];
  const messages = conversation.messages.map((message) => {
    const { role, status, problem, finish, forgotten, timing } = message;
    const said = { role, content: contentOf(message) };
    return role === "user" ? said : { ...said, status, problem, finish, forgotten, timing };
  });
  const { title, updated } = conversation;
  return { title, updated, messages: [...system, ...messages] };
}

function saveConversation(conversation) {
  if (!conversation.messages.length && !conversation.system) return;
  conversations.set(conversation.id, conversation);
  storage.write(STORED + conversation.id, JSON.stringify(exported(conversation)));
}

function forgetConversation(conversation) {
  answers.get(conversation.id)?.stop();
  conversations.delete(conversation.id);
  storage.remove(STORED + conversation.id);
}

function readStored(key) {
  const text = storage.read(key);
  const conversation = text && conversationFrom(JSON.parse(text), key.slice(STORED.length));
  if (conversation) conversations.set(conversation.id, conversation);
}

function readAllStored() {
  let unreadable = 0;
  for (const key of storage.keys().filter((name) => name.startsWith(STORED))) {
    try {
      readStored(key);
    } catch {
      unreadable += 1; // it stays stored as it is
    }
  }
  if (unreadable) {
    showNotice(`${unreadable} stored conversation(s) could not be read and are left out.`);
  }
}

const byTime = () => [...conversations.values()].sort((a, b) => b.updated - a.updated);
