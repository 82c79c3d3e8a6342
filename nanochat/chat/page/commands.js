"use strict";

// Commands
class CommandError extends Error {}

/** A command's function that sets a slider's setting to the number it is given. */
const setNumber = (id, name) => (text) => {
  const slider = byId(id);
  const whole = slider.step === "1";
  const number = Number(text);
  if (text === "" || !inRange(slider, number) || (whole && !Number.isInteger(number))) {
    throw new CommandError(`Found "${text}", expected a ${whole ? "whole " : ""}number `
      + `from ${slider.min} to ${slider.max}.`);
  }
  changeSettings({ ...settings, [slider.name]: number });
  showNotice(`${name} ${number}.`);
};

function clearConversation() {
  const conversation = current;
  const { messages } = conversation;
  if (!messages.length) return;
  answers.get(conversation.id)?.stop();
  conversation.messages = [];
  saveConversation(conversation);
  openConversation(conversation);
  offerUndo("The conversation is cleared.", conversation, (one) => (one.messages = messages));
}

const COMMANDS = new Map([
  ["/clear", ["", "forget this conversation", clearConversation]],
  ["/system", ["TEXT", "set (or remove) the system prompt", (text) => {
    changeSystem(text);
    byId("system").value = text;
    showNotice(text ? "The system prompt is set." : "No system prompt.");
  }]],
  ["/temperature", ["X", "0 to 2, how freely to choose", setNumber("temperature", "Temperature")]],
  ["/topk", ["K", "0 to 200 likeliest tokens, 0: all", setNumber("top-k", "Top-k")]],
  ["/regenerate", ["", "answer again", () => {
    if (!current.messages.length) throw new CommandError("There is no question yet.");
    answerAgain(current.messages.at(-1));
  }]],
  ["/save", ["", "download as JSON", () => saveFile(current)]],
  ["/load", ["", "open a JSON file", () => byId("file").click()]],
  ["/help", ["", "keys and commands", () => byId("help").showModal()]],
]);

const isCommand = (text) => /^\/[a-z]*(\s|$)/i.test(text);

/** Runs a command line; false, and a notice that says why, if it cannot. */
function runCommand(text) {
  const [word] = text.split(/\s/, 1);
  const command = COMMANDS.get(word.toLowerCase());
  try {
    if (!command) throw new CommandError(`There is no command ${word}. /help lists them.`);
    command[2](text.slice(word.length).trim());
    return true;
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    showNotice(error.message);
    return false;
  }
}

function showHints() {
  const text = byId("question").value.toLowerCase();
  const matching = /^\/[a-z]*$/.test(text)
    ? [...COMMANDS].filter(([name]) => name.startsWith(text)) : [];
  byId("hints").hidden = !matching.length;
  byId("hints").replaceChildren(...matching.map(([name, [argument, meaning]]) =>
    element("li", { onclick: () => completeCommand(name) },
      element("code", {}, `${name} ${argument}`), element("span", {}, meaning))));
}

function completeCommand(name) {
  const question = byId("question");
  question.value = COMMANDS.get(name)[0] ? `${name} ` : name;
  question.focus();
  showHints();
}
