"use strict";

// Messages on screen
const views = new WeakMap(); // message -> its view
const drawing = new Set(); // messages to draw at the next animation frame
let following = true; // the end is in sight: keep it there while text grows

function drawSoon(message) {
  if (!drawing.size) requestAnimationFrame(drawAll);
  drawing.add(message);
}

function drawAll() {
  for (const message of drawing) views.get(message)?.show();
  drawing.clear();
  followEnd();
}

function followEnd() {
  const log = byId("log");
  if (following) log.scrollTop = log.scrollHeight;
  byId("to-end").hidden = following;
}

class QuestionView {
  constructor(message) {
    this.message = message;
    this.bubble = element("div", { class: "bubble" }, shown(message.text));
    const copy = iconButton("copy", "Copy question", () => copyText(message.text, copy));
    this.node = element("li", { class: "message user" },
      element("h2", { class: "visually-hidden" }, "You"), this.bubble,
      element("div", { class: "actions" },
        iconButton("edit", "Edit question", () => this.edit()), copy));
  }

  show() {}

  edit() {
    const text = element("textarea", { "aria-label": "Edit question", rows: "2" });
    text.value = this.message.text;
    const end = (question) => {
      form.replaceWith(this.bubble);
      this.node.querySelector(".actions").hidden = false;
      const index = current.messages.indexOf(this.message);
      if (question && index >= 0) askQuestion(question, index);
      byId("question").focus();
    };
    text.addEventListener("keydown", (event) => {
      if (isSendKey(event)) end(text.value.trim());
      else if (event.key === "Escape") end("");
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    const form = element("div", { class: "edit" }, text, element("div", {},
      element("button", { class: "plain-button", onclick: () => end("") }, "Cancel"),
      element("button", { class: "main-button", onclick: () => end(text.value.trim()) }, "Send")));
    this.bubble.replaceWith(form);
    this.node.querySelector(".actions").hidden = true;
    text.focus();
  }
}

/** A tool call that folds: its code, and its result once there is one. */
class ToolView {
  constructor() {
    this.brief = element("code");
    this.code = element("code");
    this.result = element("code");
    this.node = element("details", { class: "tool", ontoggle: followEnd },
      element("summary", {}, icon("fold"), element("span", {}, "Tool"), this.brief),
      element("dl", {}, element("dt", {}, "Code"), element("dd", {}, element("pre", {}, this.code)),
        element("dt", {}, "Result"), element("dd", {}, element("pre", {}, this.result))));
  }

  show({ code, result }) {
    const line = code.trim().replace(/\s+/g, " ");
    this.brief.textContent = shown(`${line} = ${result ?? "..."}`);
    this.code.replaceChildren(...codeTokens(code, PYTHON).map(tokenNode));
    this.result.textContent = shown(result ?? "not there yet");
  }
}

/** The parts of an answer as they are shown: a call and its output are one. */
function shownParts(parts) {
  const groups = [];
  for (const part of parts) {
    const last = groups.at(-1);
    if (part.type === "text") groups.push({ kind: "text", text: part.text });
    else if (part.type === "python") groups.push({ kind: "tool", code: part.text, result: null });
    else if (last?.kind === "tool" && last.result === null) last.result = part.text;
    else groups.push({ kind: "tool", code: "", result: part.text });
  }
  return groups;
}

class AnswerView {
  constructor(message, conversation) {
    this.message = message;
    this.conversation = conversation;
    this.partViews = [];
    this.parts = element("div", { class: "parts" });
    this.state = element("div", { class: "state" });
    this.timing = element("span", { class: "timing" });
    const copy = iconButton("copy", "Copy answer", () => copyText(textOf(message), copy));
    this.actions = element("div", { class: "actions" }, copy,
      iconButton("again", "Answer again", () => answerAgain(message)), this.timing);
    this.node = element("li", { class: "message assistant" },
      element("h2", { class: "visually-hidden" }, "nanochat"),
      this.parts, this.state, this.actions);
    this.show();
  }

  show() {
    const { message } = this;
    this.node.setAttribute("aria-busy", String(message.status === "writing"));
    shownParts(message.parts).forEach((part, i) => this.showPart(part, i));
    this.showState();
    this.timing.textContent = timingText(message.timing);
    this.actions.hidden = !message.parts.length && message.status !== "done";
  }

  showPart(part, i) {
    if (this.partViews[i]?.kind !== part.kind) { // parts are only added at the end
      const view = part.kind === "text" ? new MarkdownView() : new ToolView();
      this.partViews[i] = { kind: part.kind, view, drawn: null };
      this.parts.append(view.node);
    }
    const drawn = JSON.stringify(part);
    if (drawn === this.partViews[i].drawn) return;
    this.partViews[i].view.show(part.kind === "text" ? part.text : part);
    this.partViews[i].drawn = drawn;
  }

  showState() {
    const { status, problem, finish, parts } = this.message;
    const waiting = answers.get(this.conversation.id)?.waiting ?? "";
    const again = (label) => element("button",
      { class: "plain-button", onclick: () => answerAgain(this.message) }, label);
    let content = [];
    if (status === "writing" && waiting) content = [waiting];
    else if (status === "writing" && !parts.length) content = [waitingDots()];
    else if (status === "failed") {
      content = [element("span", {}, shown(problem)), again("Try again")];
    } else if (status === "interrupted") {
      content = [element("span", {}, `Interrupted. ${shown(problem)}`), again("Answer again")];
    } else if (status === "stopped") content = ["Stopped."];
    else content = [endNotes(this.message)].filter(Boolean);
    const shownState = JSON.stringify([status, waiting, problem, finish, content.length]);
    if (shownState === this.shownState) return;
    this.shownState = shownState;
    this.state.classList.toggle("boxed", status === "failed" || status === "interrupted");
    this.state.classList.toggle("problem", status === "failed");
    this.state.hidden = !content.length;
    this.state.replaceChildren(...content);
  }
}

/** What a whole answer's reader should know about how it came to be. */
function endNotes({ finish, forgotten }) {
  const notes = [];
  const cuts = new Map([["length", "this is the longest answer that the settings allow"],
    ["time", "the server's time for one answer was up"]]);
  if (cuts.has(finish)) notes.push(`Cut off: ${cuts.get(finish)}.`);
  if (forgotten) {
    notes.push(`The context is full: the model no longer sees the first ${forgotten} turn(s).`);
  }
  return notes.join(" ");
}

function waitingDots() {
  return element("span", { class: "dots" }, element("span", { class: "visually-hidden" },
    "Waiting for the answer"), element("i"), element("i"), element("i"));
}

/** "12.3 tokens/s · 0.21 s to the first · 48 tokens": what is known of it. */
function timingText(timing) {
  if (!timing) return "";
  const { tokensPerSecond, timeToFirstToken, tokens } = timing;
  const known = [];
  const digits = tokensPerSecond < 100 ? 1 : 0;
  if (tokensPerSecond) known.push(`${tokensPerSecond.toFixed(digits)} tokens/s`);
  if (timeToFirstToken) known.push(`${timeToFirstToken.toFixed(2)} s to the first`);
  if (tokens) known.push(`${tokens} ${tokens === 1 ? "token" : "tokens"}`);
  return known.join(" · ");
}

function viewOf(message) {
  if (!views.has(message)) {
    views.set(message, message.role === "user" ? new QuestionView(message)
      : new AnswerView(message, current));
  }
  return views.get(message);
}

function showConversation() {
  const nodes = current.messages.map((message) => viewOf(message).node);
  byId("messages").replaceChildren(...nodes);
  byId("empty").hidden = nodes.length > 0;
  byId("title").textContent = titleOf(current);
  document.title = current.messages.length ? `${titleOf(current)} · nanochat` : "nanochat";
  byId("system").value = current.system;
  following = true;
  followEnd();
  showComposer();
}

async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyBySelection(text); // no clipboard outside https and localhost
  }
  const before = [...button.childNodes];
  if (button.dataset.copied) return;
  button.dataset.copied = "1";
  button.replaceChildren(button.classList.contains("icon-button") ? icon("done") : "Copied");
  byId("announcer").textContent = "Copied.";
  setTimeout(() => {
    button.replaceChildren(...before);
    delete button.dataset.copied;
  }, 1400);
}

function copyBySelection(text) {
  const area = element("textarea", { class: "visually-hidden" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

// Notices
const NOTICE_TIME = 9000; // milliseconds
let noticeTimer = null;

/** A line over the composer for a while, with a button if there is something to do. */
function showNotice(text, label = "", act = null) {
  const notice = byId("notice");
  const [words, button] = notice.children;
  words.textContent = text;
  button.hidden = !label;
  button.textContent = label;
  button.onclick = () => {
    notice.hidden = true;
    act();
    byId("question").focus();
  };
  notice.hidden = false;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => (notice.hidden = true), NOTICE_TIME);
}

function offerUndo(text, conversation, restore) {
  showNotice(text, "Undo", () => {
    answers.get(conversation.id)?.stop();
    restore(conversation);
    saveConversation(conversation);
    openConversation(conversation);
  });
}
