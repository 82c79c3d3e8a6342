"use strict";

// Settings
const SETTINGS = "nanochat:settings";
const THEME = "nanochat:theme";
const THEMES = ["system", "light", "dark"];
let defaults = {}; // the server's: temperature, top_k, max_tokens
let settings = {}; // what the person chose instead, by the same names

const sliders = () => [...document.querySelectorAll("#settings [type=range]")];
const inRange = (slider, number) => number >= Number(slider.min) && number <= Number(slider.max);

function readSettings() {
  const value = attempt(() => JSON.parse(localStorage.getItem(SETTINGS)));
  for (const slider of sliders()) {
    const number = value?.[slider.name];
    if (typeof number === "number" && inRange(slider, number)) settings[slider.name] = number;
  }
}

function changeSettings(changed) {
  settings = changed;
  writeStorage(SETTINGS, JSON.stringify(settings));
  showSettings();
}

function showSettings() {
  for (const slider of sliders()) {
    const value = settings[slider.name] ?? defaults[slider.name] ?? "default";
    const text = slider.name === "top_k" && value === 0 ? "all" : String(value);
    slider.value = value;
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

function storedTheme() {
  const theme = attempt(() => localStorage.getItem(THEME));
  return THEMES.includes(theme) ? theme : "system";
}

function showTheme(theme) {
  document.documentElement.dataset.theme = theme;
  const label = `Colours: ${theme === "system" ? "as the system" : theme}`;
  byId("theme").setAttribute("aria-label", label);
  byId("theme").title = label;
}

function nextTheme() {
  const theme = THEMES[(THEMES.indexOf(storedTheme()) + 1) % THEMES.length];
  writeStorage(THEME, theme);
  showTheme(theme);
}
