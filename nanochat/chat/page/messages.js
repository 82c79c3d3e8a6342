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
    const send = () => end(text.value.trim());
    onKeys(text, { Enter: send, Escape: () => end("") });
    const form = element("div", { class: "edit" }, text, element("div", { class: "dialog-foot" },
      textButton("Cancel", () => end("")),
      element("button", { class: "main-button", onclick: send }, "Send")));
    this.bubble.replaceWith(form);
    this.node.querySelector(".actions").hidden = true;
    text.focus();
  }
}

/** A tool call that folds: its code, and its result once there is one. */
class ToolView {
  constructor() {
    [this.brief, this.code, this.result] = [1, 2, 3].map(() => element("code"));
    this.brief.className = "one-line";
    const entry = (name, code) =>
      [element("dt", {}, name), element("dd", {}, element("pre", {}, code))];
    this.node = element("details", { class: "tool", ontoggle: followEnd },
      element("summary", {}, icon("fold"), element("span", {}, "Tool"), this.brief),
      element("dl", {}, ...entry("Code", this.code), ...entry("Result", this.result)));
  }

  show({ code, result }) {
    const line = code.trim().replace(/\s+/g, " ");
    this.brief.textContent = shown(`${line} = ${result ?? "..."}`);
    this.code.replaceChildren(...codeTokens(code, PYTHON).map(tokenNode));
    this.result.textContent = shown(result ?? "not there yet");
  }
}

/** The parts of an answer as they are shown, text or {code, result}: a call and its output are one. */
function shownParts(parts) {
  const groups = [];
  for (const { type, text } of parts) {
    const last = groups.at(-1);
    if (type === "text") groups.push(text);
    else if (type === "python") groups.push({ code: text, result: null });
    else if (last?.result === null) last.result = text;
    else groups.push({ code: "", result: text });
  }
  return groups;
}

class AnswerView {
  constructor(message, conversation) {
    this.message = message;
    this.conversation = conversation;
    this.partViews = []; // {view, drawn}
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
    shownParts(message.parts).forEach((part, i) => { // parts are only added at the end
      if (!this.partViews[i]) {
        const view = typeof part === "string" ? new MarkdownView() : new ToolView();
        this.partViews.push({ view, drawn: null });
        this.parts.append(view.node);
      }
      const { view, drawn } = this.partViews[i];
      this.partViews[i].drawn = JSON.stringify(part);
      if (this.partViews[i].drawn !== drawn) view.show(part);
    });
    this.showState();
    this.timing.textContent = timingText(message.timing);
    this.actions.hidden = !message.parts.length && message.status !== "done";
  }

  showState() {
    const { status, problem, parts } = this.message;
    const waiting = answers.get(this.conversation.id)?.waiting ?? "";
    const text = {
      writing: waiting,
      done: endNotes(this.message),
      stopped: "Stopped.",
      interrupted: `Interrupted. ${shown(problem)}`,
      failed: shown(problem),
    }[status];
    const isWaiting = status === "writing" && !waiting && !parts.length;
    const shownState = `${status} ${isWaiting} ${text}`;
    if (shownState === this.shownState) return;
    this.shownState = shownState;
    const canRetry = status === "failed" || status === "interrupted";
    this.state.classList.toggle("boxed", canRetry);
    this.state.classList.toggle("problem", status === "failed");
    this.state.hidden = !text && !isWaiting;
    this.state.replaceChildren(isWaiting ? waitingDots() : element("span", {}, text));
    if (!canRetry) return;
    this.state.append(textButton(status === "failed" ? "Try again" : "Answer again",
      () => answerAgain(this.message)));
  }
}

/** What a whole answer's reader should know about how it came to be. */
function endNotes({ finish, forgotten }) {
  const notes = [];
  if (finish === "length") {
    notes.push("Cut off: this is the longest answer that the settings allow.");
  }
  if (finish === "time") notes.push("Cut off: the server's time for one answer was up.");
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
  const { tokensPerSecond: speed, timeToFirstToken: first, tokens } = timing ?? {};
  return [
    speed && `${speed.toFixed(speed < 100 ? 1 : 0)} tokens/s`,
    first && `${first.toFixed(2)} s to the first`,
    tokens && `${tokens} ${tokens === 1 ? "token" : "tokens"}`,
  ].filter(Boolean).join(" · ");
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
  document.title = nodes.length ? `${titleOf(current)} · nanochat` : "nanochat";
  byId("system").value = current.system;
  following = true;
  followEnd();
  showComposer();
}

async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // no clipboard outside https and localhost
    const area = element("textarea", { class: "visually-hidden" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  byId("announcer").textContent = "Copied.";
  if (button.dataset.copied) return;
  button.dataset.copied = "1";
  const before = [...button.childNodes];
  button.replaceChildren(button.classList.contains("icon-button") ? icon("done") : "Copied");
  setTimeout(() => {
    button.replaceChildren(...before);
    delete button.dataset.copied;
  }, 1400);
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
