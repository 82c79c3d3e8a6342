"use strict";

// Settings
const SETTINGS = "nanochat:settings";
const THEME = "nanochat:theme";
const DEFAULTS = { temperature: 0.6, topK: 50, maxTokens: 512 };
const RANGES = { temperature: [0, 2], topK: [0, 200], maxTokens: [16, 2048] };
const SLIDERS = { temperature: "temperature", topK: "top-k", maxTokens: "max-tokens" };
let settings = { ...DEFAULTS };

function readSettings() {
  let value = null;
  try {
    value = JSON.parse(storage.read(SETTINGS) ?? "null");
  } catch {
    // not ours any more: the defaults
  }
  for (const name of Object.keys(DEFAULTS)) {
    const [lowest, highest] = RANGES[name];
    const number = value?.[name];
    if (number >= lowest && number <= highest) settings[name] = Number(number);
  }
}

function changeSetting(name, number) {
  settings[name] = number;
  storage.write(SETTINGS, JSON.stringify(settings));
  showSettings();
}

function showSettings() {
  for (const [name, id] of Object.entries(SLIDERS)) {
    const slider = byId(id);
    slider.value = settings[name];
    const text = name === "topK" && !settings.topK ? "all" : String(settings[name]);
    slider.previousElementSibling.querySelector("output").textContent = text;
    slider.setAttribute("aria-valuetext", text);
  }
}

function changeSystem(text) {
  current.system = text;
  saveConversation(current);
  showList();
}

function openSettings(open) {
  byId("settings").hidden = !open;
  byId("open-settings").setAttribute("aria-expanded", String(open));
  (open ? byId("temperature") : byId("open-settings")).focus();
}

const THEMES = ["system", "light", "dark"];

function showTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const label = `Colours: ${theme === "system" ? "as the system" : theme}`;
  byId("theme").setAttribute("aria-label", label);
  byId("theme").title = label;
}

function storedTheme() {
  const theme = storage.read(THEME);
  return THEMES.includes(theme) ? theme : "system";
}

function nextTheme() {
  const theme = THEMES[(THEMES.indexOf(storedTheme()) + 1) % THEMES.length];
  storage.write(THEME, theme);
  showTheme(theme);
}
