"use strict";

// Side panel
const OPEN_CONVERSATION = "nanochat:open";
const isNarrow = () => matchMedia("(max-width: 860px)").matches;

function showSide(open) {
  document.body.dataset.side = open ? "open" : "closed";
  if (open && isNarrow()) byId("new-chat").focus();
}

function openConversation(conversation) {
  byId("notice").hidden = true;
  current = conversation;
  attempt(() => sessionStorage.setItem(OPEN_CONVERSATION, conversation.id));
  showConversation();
  showList();
  if (isNarrow()) showSide(false);
}

function newChat() {
  openConversation(current.messages.length || current.system ? newConversation() : current);
  byId("question").focus();
}

function deleteConversation(conversation) {
  forgetConversation(conversation);
  if (conversation === current) openConversation(byTime()[0] ?? newConversation());
  else showList();
  offerUndo(`Deleted "${titleOf(conversation)}".`, conversation, () => {});
}

function renameConversation(conversation, row) {
  const input = element("input", { "aria-label": "New name", maxlength: "200" });
  input.value = titleOf(conversation);
  let done = false; // subtle: taking the field away blurs it, which would end it once more
  const end = (keep) => {
    if (done) return;
    done = true;
    if (keep && input.value.trim()) conversation.title = input.value.trim();
    saveConversation(conversation);
    row.replaceChildren();
    showList();
    if (conversation === current) byId("title").textContent = titleOf(conversation);
  };
  input.addEventListener("blur", () => end(true));
  onKeys(input, { Enter: () => end(true), Escape: () => end(false) });
  row.replaceChildren(input);
  input.select();
}

function listRow(conversation) {
  const title = titleOf(conversation);
  const isCurrent = conversation === current;
  const row = element("li", { class: "conversation", "data-current": isCurrent });
  if (answers.has(conversation.id)) {
    row.append(element("span", { class: "writing", title: "Writing" }));
  }
  row.append(
    element("button", { class: "title one-line", title, "aria-current": isCurrent ? "true" : null,
      onclick: () => openConversation(conversation) }, title),
    element("span", { class: "tools" },
      iconButton("edit", `Rename ${title}`, () => renameConversation(conversation, row)),
      iconButton("export", `Export ${title}`, () => saveFile(conversation)),
      iconButton("delete", `Delete ${title}`, () => deleteConversation(conversation))));
  return row;
}

function showList() {
  const list = byId("conversations");
  if (list.querySelector("input")) return; // a name is being typed
  const focused = list.contains(document.activeElement) && document.activeElement;
  const label = focused && focused.getAttribute("aria-label");
  list.replaceChildren(...byTime().map(listRow));
  if (!focused) return;
  const again = [...list.querySelectorAll("button")].find((button) =>
    (label ? button.getAttribute("aria-label") === label : button.hasAttribute("aria-current")));
  (again ?? byId("new-chat")).focus();
}

// Files
const LARGEST_FILE = 20e6; // bytes

function download(name, value) {
  const file = new Blob([`${JSON.stringify(value, null, 1)}\n`], { type: "application/json" });
  const address = URL.createObjectURL(file);
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

function saveFile(conversation) {
  const words = titleOf(conversation).normalize("NFKD").replace(/[^\w]+/g, "-");
  const name = words.replace(/^-+|-+$/g, "").slice(0, 50).toLowerCase() || "conversation";
  download(`${name}.json`, exported(conversation));
}

function saveAllFiles() {
  const all = byTime();
  if (!all.length) return showNotice("There is no conversation yet.");
  download("nanochat-conversations.json", { conversations: all.map(exported) });
}

async function loadFile(file) {
  try {
    if (file.size > LARGEST_FILE) {
      throw new FormatError(`it is larger than ${LARGEST_FILE / 1e6} MB`);
    }
    const value = JSON.parse(await file.text());
    const list = Array.isArray(value?.conversations) ? value.conversations : [value];
    const loaded = list.map((one) => conversationFrom(one)); // all of them, or none
    if (!loaded.length) throw new FormatError("it holds no conversation");
    loaded.forEach(saveConversation);
    openConversation(loaded[0]);
    showNotice(loaded.length === 1 ? "Loaded." : `Loaded ${loaded.length} conversations.`);
  } catch (error) {
    const reason = error instanceof SyntaxError ? "it is not JSON" : error.message;
    showNotice(`${file.name} was not loaded: ${reason}.`);
  }
}
