"use strict";

// Elements
const byId = (id) => document.getElementById(id);

/** An element. Attributes named on* are listeners; strings among the children become text. */
function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function icon(name) {
  const [svg, use] = ["svg", "use"].map((tag) =>
    document.createElementNS("http://www.w3.org/2000/svg", tag));
  svg.setAttribute("class", "icon");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

function iconButton(name, label, onclick) {
  return element("button", { class: "icon-button", "aria-label": label, title: label, onclick },
    icon(name));
}

function textButton(label, onclick) {
  return element("button", { class: "plain-button", onclick }, label);
}

/** Text as it is shown. Characters that reorder what stands around them are written out. */
function shown(text) {
  return text.replace(/[\u202A-\u202E\u2066-\u2069]/g,
    (c) => `[U+${c.codePointAt(0).toString(16).toUpperCase()}]`);
}

/** What `act` returns; null where the browser forbids it, as storage in a private window. */
function attempt(act) {
  try {
    return act();
  } catch {
    return null;
  }
}

/** Whether a key belongs to an input method, as in Japanese. Safari's last Enter only says 229. */
const isComposing = (event) => event.isComposing || event.keyCode === 229;

/** Calls the function named after a key that is pressed in `node`, and lets nobody else see it. */
function onKeys(node, actions) {
  node.addEventListener("keydown", (event) => {
    const isOther = isComposing(event) || (event.key === "Enter" && event.shiftKey);
    if (isOther || !Object.hasOwn(actions, event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    actions[event.key]();
  });
}
