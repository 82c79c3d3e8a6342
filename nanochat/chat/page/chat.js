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
  byId("question").value = text;
  recalled = text ? recalled : 0;
  showQuestion();
}

function showQuestion() {
  const question = byId("question");
  if (!CSS.supports("field-sizing", "content")) { // where style alone does not let it grow
    question.style.height = "auto";
    question.style.height = `${question.scrollHeight}px`;
  }
  showHints();
  showComposer();
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

function questionKey(event) {
  if (isComposing(event)) return;
  const question = byId("question");
  const unchanged = !question.value || recalled > 0;
  if (event.key === "Enter" && !event.shiftKey) submit();
  else if (event.key === "ArrowUp" && unchanged && recall(1)) question.select();
  else if (event.key === "ArrowDown" && recalled > 0 && recall(-1)) question.select();
  else if (event.key === "Tab" && !event.shiftKey && !byId("hints").hidden) {
    completeCommand(byId("hints").querySelector("code").textContent.split(" ")[0]);
  } else return;
  event.preventDefault();
}

function pageKey(event) {
  if (isComposing(event)) return;
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
  else answers.get(current.id)?.stop();
  event.preventDefault();
}

// Start
function listenToComposer() {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    const answer = answers.get(current.id);
    if (answer) answer.stop();
    else submit();
  });
  byId("question").addEventListener("keydown", questionKey);
  byId("question").addEventListener("input", () => {
    recalled = 0;
    showQuestion();
  });
  byId("log").addEventListener("scroll", () => {
    const log = byId("log");
    following = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    byId("to-end").hidden = following;
  });
}

function listenToPanels() {
  const clicks = {
    "to-end": () => {
      following = true;
      followEnd();
    },
    "new-chat": newChat,
    "open-side": () => showSide(document.body.dataset.side !== "open"),
    "close-side": () => showSide(false),
    scrim: () => showSide(false),
    import: () => byId("file").click(),
    "export-all": saveAllFiles,
    theme: nextTheme,
    "open-settings": () => openSettings(byId("settings").hidden),
    "open-help": () => byId("help").showModal(),
    "retry-server": () => serverAnswers(),
    "cancel-key": () => byId("key-dialog").close(),
    "default-settings": () => changeSettings({}),
  };
  for (const [id, act] of Object.entries(clicks)) byId(id).addEventListener("click", act);
  for (const slider of sliders()) {
    slider.addEventListener("input", () =>
      changeSettings({ ...settings, [slider.name]: Number(slider.value) }));
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
  for (const node of document.querySelectorAll("[data-icon]")) {
    node.prepend(icon(node.dataset.icon));
    if (node.hasAttribute("aria-label")) node.title = node.getAttribute("aria-label");
  }
  const begin = (text) => {
    askQuestion(text);
    if (matchMedia("(hover: hover)").matches) byId("question").focus(); // no keyboard on a phone
  };
  byId("examples").append(...EXAMPLES.map((text) =>
    textButton(text, () => begin(text))));
  const entry = (term, meaning) => [element("dt", {}, term), element("dd", {}, meaning)];
  byId("help-list").append(
    ...KEYS.flatMap(([keys, meaning]) => entry(element("kbd", {}, keys), meaning)),
    ...[...COMMANDS].flatMap(([name, [argument, meaning]]) =>
      entry(element("code", {}, `${name} ${argument}`), meaning)));
  const isApple = /Mac|iP/.test(navigator.platform);
  byId("new-chat").querySelector("kbd").textContent = isApple ? "⌘ K" : "Ctrl K";
}

function start() {
  fillPage();
  showTheme(storedTheme());
  readSettings();
  showSettings();
  listenToComposer();
  listenToPanels();
  listenToBrowser();
  readAllStored();
  current = conversations.get(attempt(() => sessionStorage.getItem(OPEN_CONVERSATION)))
    ?? newConversation();
  openConversation(current);
  showSide(!isNarrow());
  byId("question").focus();
  loadModel();
}

start();
