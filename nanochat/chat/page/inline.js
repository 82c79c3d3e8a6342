"use strict";

// Markdown: text inside a block
const MOST_OPEN = 24; // emphasis and brackets open at once; the oldest beyond it stay characters
const ESCAPE = /\\([!-/:-@[-`{-~])?/y;
const PLAIN = /[^\\`\n*_~[\]!<h]+|./suy;
const ADDRESS = String.raw`<([^<>\n]*)>|([^\s()<>]*(?:\([^\s()<>]*\)[^\s()<>]*)*)`;
const TITLE = String.raw`(?:\s+(?:"[^"\n]*"|'[^'\n]*'))?`;
const LINK_END = new RegExp(String.raw`\](?:\(\s*(?:${ADDRESS})${TITLE}\s*\))?`, "y");
const AUTOLINK = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/iy;
const BARE_LINK = /(?<!\w)https?:\/\/[^\s<>"`]{1,2000}/y;

/** The address, if it may be a link: absolute, of a known kind, without a user's name in it. */
function safeAddress(text) {
  const url = attempt(() => new URL(text));
  const isKnown = ["http:", "https:", "mailto:"].includes(url?.protocol);
  return isKnown && !url.username && !url.password ? url.href : null;
}

function linkTo(address, ...children) {
  const where = { href: address, rel: "noopener noreferrer", target: "_blank", title: address };
  return element("a", where, ...children);
}

/** Reads the text of one block from left to right. Its work grows linearly with the text. */
class InlineReader {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.plain = "";
    this.out = document.createDocumentFragment();
    this.open = []; // {mark, count, node}: what may turn out to begin emphasis or a link
    this.unclosedTicks = new Set();
  }

  read() {
    while (this.at < this.text.length) this.step();
    this.flush();
    return this.out;
  }

  step() {
    const c = this.text[this.at];
    if (c === "\\") {
      const [, mark] = this.match(ESCAPE);
      this.plain += mark ?? (this.text[this.at] === "\n" ? "" : "\\");
    } else if (c === "`") {
      this.codeSpan();
    } else if (c === "\n") {
      this.plain = this.plain.trimEnd();
      this.add(element("br"));
      this.at += 1;
    } else if (c === "*" || c === "_" || c === "~") {
      this.emphasis(c);
    } else if (c === "[" || (c === "!" && this.text[this.at + 1] === "[")) {
      const text = c === "!" ? "![" : "["; // an image is shown as a link: nothing is loaded
      this.push("[", 1, text);
      this.at += text.length;
    } else if (c === "]") {
      this.linkEnd();
    } else if (!(c === "<" || c === "h") || !this.address(c)) {
      this.plain += this.match(PLAIN)[0];
    }
  }

  /** Matches a sticky pattern at the place reached and moves on after it. */
  match(pattern) {
    pattern.lastIndex = this.at;
    const match = pattern.exec(this.text);
    if (match) this.at = pattern.lastIndex;
    return match;
  }

  flush() {
    if (this.plain) this.out.append(shown(this.plain));
    this.plain = "";
  }

  add(node) {
    this.flush();
    this.out.append(node);
  }

  codeSpan() {
    const [ticks] = this.match(/`+/y);
    const end = this.closingTicks(ticks.length);
    if (end < 0) return void (this.plain += ticks);
    let code = this.text.slice(this.at, end).replace(/\n/g, " ");
    if (/^ .* $/s.test(code) && !isBlank(code)) code = code.slice(1, -1);
    this.add(element("code", {}, shown(code)));
    this.at = end + ticks.length;
  }

  closingTicks(length) {
    if (this.unclosedTicks.has(length)) return -1;
    const runs = /`+/g;
    runs.lastIndex = this.at;
    for (let run = runs.exec(this.text); run; run = runs.exec(this.text)) {
      if (run[0].length === length) return run.index;
    }
    this.unclosedTicks.add(length);
    return -1;
  }

  emphasis(mark) {
    const before = this.text[this.at - 1] ?? " ";
    const [run] = this.match(/\*+|_+|~+/y);
    const after = this.text[this.at] ?? " ";
    if (run.length > 3 || (mark === "~" && run.length !== 2)) return void (this.plain += run);
    const isSign = (c) => /[\p{P}\p{S}]/u.test(c);
    const left = !isBlank(after) && (!isSign(after) || isBlank(before) || isSign(before));
    const right = !isBlank(before) && (!isSign(before) || isBlank(after) || isSign(after));
    const within = mark === "_" && left && right; // snake_case is no emphasis
    let count = run.length;
    if (right && !(within && !isSign(after))) count = this.close(mark, count);
    if (left && count && !(within && !isSign(before))) this.push(mark, count, mark.repeat(count));
    else this.plain += mark.repeat(count);
  }

  push(mark, count, text) {
    const node = document.createTextNode(text);
    this.add(node);
    this.open.push({ mark, count, node });
    if (this.open.length > MOST_OPEN) this.open.shift();
  }

  /** Wraps what stands since the nearest opening `mark`; returns how many marks are left over. */
  close(mark, count) {
    while (count > 0) {
      const index = this.open.findLastIndex((one) => one.mark === mark);
      if (index < 0) break;
      const opening = this.open[index];
      const used = Math.min(count, opening.count, 2);
      this.open.length = index + 1; // what opened since then stays characters
      this.add(this.wrapped(opening, element(mark === "~" ? "del" : used === 2 ? "strong" : "em")));
      count -= used;
      opening.count -= used;
      opening.node.data = mark.repeat(opening.count);
      if (opening.count === 0) {
        this.open.pop();
        opening.node.remove();
      }
    }
    return count;
  }

  wrapped(opening, wrapper) {
    this.flush();
    while (opening.node.nextSibling) wrapper.append(opening.node.nextSibling);
    return wrapper;
  }

  linkEnd() {
    const index = this.open.findLastIndex((one) => one.mark === "[");
    const [text, quoted, bare] = this.match(index < 0 ? /\]/y : LINK_END);
    if (text === "]") {
      if (index >= 0) this.open.splice(index, 1);
      return void (this.plain += text);
    }
    const opening = this.open[index];
    const address = safeAddress(quoted ?? bare);
    this.open.length = index;
    if (!address) return void (this.plain += text);
    const anchor = this.wrapped(opening, linkTo(address));
    for (const inner of anchor.querySelectorAll("a")) inner.replaceWith(...inner.childNodes);
    if (!anchor.hasChildNodes()) anchor.append(shown(address));
    opening.node.remove();
    this.add(anchor);
    this.open = this.open.filter((one) => one.mark !== "["); // no link in a link
  }

  /** Reads an address between < and >, or one in the text; false if there is none. */
  address(c) {
    const start = this.at;
    const match = this.match(c === "<" ? AUTOLINK : BARE_LINK);
    if (!match) return false;
    let text = match[1] ?? match[0].replace(/[.,;:!?'"*_~\]]{1,20}$/, "");
    if (c === "h" && text.endsWith(")") && !text.includes("(")) text = text.slice(0, -1);
    const address = safeAddress(text);
    this.at = start;
    if (!address) return false;
    this.add(linkTo(address, shown(text)));
    this.at += c === "<" ? match[0].length : text.length;
    return true;
  }
}

const inline = (text) => new InlineReader(text).read();
