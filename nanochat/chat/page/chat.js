"use strict";

// Composer and keyboard
const EXAMPLES = ["What is the capital of France?", "What is 37 * 12?",
  "How many r are in strawberry?", "Who are you?"];
const KEYS = [["Enter", "send"], ["Shift Enter", "new line"],
  ["Esc", "stop the answer, or close what is open"],
  ["/", "to the question"], ["Up, Down", "earlier questions, in an empty field"],
  ["Ctrl K", "new chat (⌘ K on a Mac)"], ["Tab", "complete a command"]];
let recalled = 0; // how many questions back the field shows

function showComposer() {
  const stops = answers.has(current.id);
  const send = byId("send");
  send.toggleAttribute("data-stops", stops);
  send.setAttribute("aria-label", stops ? "Stop" : "Send");
  send.title = stops ? "Stop (Esc)" : "Send (Enter)";
  send.disabled = !stops && !byId("question").value.trim();
}

function submit() {
  const question = byId("question");
  const text = question.value.trim();
  if (!text) return;
  if (isCommand(text)) {
    if (runCommand(text)) setQuestion("");
    return;
  }
  if (answers.has(current.id)) return showNotice("An answer is being written. Esc stops it.");
  setQuestion("");
  askQuestion(text);
}

function setQuestion(text) {
  const question = byId("question");
  question.value = text;
  recalled = text ? recalled : 0;
  fitQuestion();
  showHints();
  showComposer();
}

/** The field grows with its text; where style alone does not do it, this does. */
function fitQuestion() {
  if (CSS.supports("field-sizing", "content")) return;
  const question = byId("question");
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

/** Puts an earlier question of this conversation into the field; true if there is one. */
function recall(step) {
  const asked = current.messages.filter((message) => message.role === "user");
  const back = recalled + step;
  if (back < 0 || back > asked.length) return false;
  recalled = back;
  setQuestion(back ? asked.at(-back).text : "");
  return true;
}

const isSendKey = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;

function questionKey(event) {
  const question = byId("question");
  const unchanged = !question.value || recalled > 0;
  if (isSendKey(event)) submit();
  else if (event.key === "ArrowUp" && unchanged && recall(1)) question.select();
  else if (event.key === "ArrowDown" && recalled > 0 && recall(-1)) question.select();
  else if (event.key === "Tab" && !event.shiftKey && !byId("hints").hidden) {
    completeCommand(byId("hints").querySelector("code").textContent.split(" ")[0]);
  } else return;
  event.preventDefault();
}

function pageKey(event) {
  const typing = event.target.closest("input, textarea, dialog") !== null;
  if (event.key === "Escape") return closeOrStop(event);
  const commanding = event.ctrlKey || event.metaKey;
  if (event.key.toLowerCase() === "k" && commanding && !event.shiftKey) newChat();
  else if (event.key === "/" && !typing && !commanding) byId("question").focus();
  else return;
  event.preventDefault();
}

/** Escape: closes the innermost thing that is open, else stops the answer. */
function closeOrStop(event) {
  if (document.querySelector("dialog[open]")) return; // the browser closes it
  if (!byId("hints").hidden) setQuestion("");
  else if (!byId("settings").hidden) openSettings(false);
  else if (isNarrow() && document.body.dataset.side === "open") showSide(false);
  else stopAnswer();
  event.preventDefault();
}

// Start
function listenToComposer() {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (answers.has(current.id)) stopAnswer();
    else submit();
  });
  byId("question").addEventListener("keydown", questionKey);
  byId("question").addEventListener("input", () => {
    recalled = 0;
    fitQuestion();
    showHints();
    showComposer();
  });
  byId("to-end").addEventListener("click", () => {
    following = true;
    followEnd();
  });
  byId("log").addEventListener("scroll", () => {
    const log = byId("log");
    following = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    byId("to-end").hidden = following;
  });
}

function listenToPanels() {
  const onclick = (id, act) => byId(id).addEventListener("click", act);
  onclick("new-chat", newChat);
  onclick("open-side", () => showSide(document.body.dataset.side !== "open"));
  onclick("close-side", () => showSide(false));
  onclick("scrim", () => showSide(false));
  onclick("import", () => byId("file").click());
  onclick("export-all", saveAllFiles);
  onclick("theme", nextTheme);
  onclick("open-settings", () => openSettings(byId("settings").hidden));
  onclick("open-help", () => byId("help").showModal());
  onclick("retry-server", () => serverAnswers());
  onclick("cancel-key", () => byId("key-dialog").close());
  onclick("default-settings", () => {
    for (const [name, number] of Object.entries(DEFAULTS)) changeSetting(name, number);
  });
  for (const [name, id] of Object.entries(SLIDERS)) {
    byId(id).addEventListener("input", () => changeSetting(name, Number(byId(id).value)));
  }
  byId("system").addEventListener("change", () => changeSystem(byId("system").value.trim()));
  byId("file").addEventListener("change", () => {
    const [file] = byId("file").files;
    if (file) loadFile(file);
    byId("file").value = "";
  });
  document.addEventListener("pointerdown", (event) => {
    const outside = !event.target.closest("#settings, #open-settings");
    if (outside && !byId("settings").hidden) openSettings(false);
  });
}

/** Another tab of this page changed what is stored. */
function takeOtherTab(event) {
  if (!event.key?.startsWith(STORED)) return;
  const id = event.key.slice(STORED.length);
  if (answers.has(id)) return; // the answer that is written here will be stored over it
  if (event.newValue === null) conversations.delete(id);
  else readStored(event.key);
  if (current.id === id && conversations.has(id)) openConversation(conversations.get(id));
  else showList();
}

function listenToBrowser() {
  document.addEventListener("keydown", pageKey);
  addEventListener("storage", takeOtherTab);
  addEventListener("beforeunload", () => {
    leaving = true;
    setTimeout(() => (leaving = false), 3000); // a download begins like this too
  });
  addEventListener("pagehide", () => {
    leaving = true;
    for (const answer of answers.values()) answer.save();
  });
  addEventListener("pageshow", (event) => event.persisted && location.reload());
  addEventListener("online", () => goneChecks && serverAnswers());
}

function fillPage() {
  const begin = (text) => {
    askQuestion(text);
    if (matchMedia("(hover: hover)").matches) byId("question").focus(); // no keyboard on a phone
  };
  byId("examples").append(...EXAMPLES.map((text) =>
    element("button", { onclick: () => begin(text) }, text)));
  const entry = (term, meaning) => [element("dt", {}, term), element("dd", {}, meaning)];
  byId("help-list").append(
    ...KEYS.flatMap(([keys, meaning]) => entry(element("kbd", {}, keys), meaning)),
    ...[...COMMANDS].flatMap(([name, [argument, meaning]]) =>
      entry(element("code", {}, `${name} ${argument}`), meaning)));
  const isApple = /Mac|iP/.test(navigator.platform);
  byId("new-chat").querySelector("kbd").textContent = isApple ? "⌘ K" : "Ctrl K";
}

function start() {
  showTheme(storedTheme());
  readSettings();
  showSettings();
  fillPage();
  listenToComposer();
  listenToPanels();
  listenToBrowser();
  readAllStored();
  let id = null;
  try {
    id = sessionStorage.getItem(OPEN_CONVERSATION);
  } catch {
    // no storage: nothing was open
  }
  current = newConversation();
  openConversation(conversations.get(id) ?? current);
  showSide(!isNarrow());
  byId("question").focus();
  loadModelName();
}

start();
