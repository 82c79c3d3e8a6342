"use strict";

// Markdown: text inside a block
const MOST_OPEN = 24; // emphasis and brackets open at once; the oldest beyond it stay characters

/** The address, if it may be a link: absolute, of a known kind, without a user's name in it. */
function safeAddress(text) {
  let url;
  try {
    url = new URL(text);
  } catch {
    return null;
  }
  const known = ["http:", "https:", "mailto:"].includes(url.protocol);
  return known && !url.username && !url.password ? url.href : null;
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
    if (c === "\\") this.escape();
    else if (c === "`") this.codeSpan();
    else if (c === "\n") this.lineBreak();
    else if (c === "*" || c === "_" || c === "~") this.emphasis(c);
    else if (c === "[" || (c === "!" && this.text[this.at + 1] === "[")) this.bracket(c);
    else if (c === "]") this.linkEnd();
    else if (c === "<" || c === "h") this.address(c);
    else this.take(/[^\\`\n*_~\[\]!<h]+|./suy);
  }

  /** Matches at the place reached and takes it as plain text. */
  take(pattern) {
    pattern.lastIndex = this.at;
    const [text] = pattern.exec(this.text);
    this.plain += text;
    this.at += text.length;
  }

  flush() {
    if (this.plain) this.out.append(shown(this.plain));
    this.plain = "";
  }

  add(node) {
    this.flush();
    this.out.append(node);
  }

  escape() {
    const next = this.text[this.at + 1] ?? "";
    if (next === "\n") return void (this.at += 1);
    const marks = /[!-/:-@[-`{-~]/.test(next);
    this.plain += marks ? next : "\\";
    this.at += marks ? 2 : 1;
  }

  lineBreak() {
    this.plain = this.plain.trimEnd();
    this.add(element("br"));
    this.at += 1;
  }

  codeSpan() {
    let start = this.at;
    while (this.text[start] === "`") start += 1;
    const ticks = this.text.slice(this.at, start);
    const end = this.closingTicks(ticks, start);
    if (end < 0) {
      this.plain += ticks;
      this.at = start;
      return;
    }
    let code = this.text.slice(start, end).replace(/\n/g, " ");
    if (/^ .* $/s.test(code) && !isBlank(code)) code = code.slice(1, -1);
    this.add(element("code", {}, shown(code)));
    this.at = end + ticks.length;
  }

  closingTicks(ticks, from) {
    if (this.unclosedTicks.has(ticks.length)) return -1;
    for (let at = this.text.indexOf("`", from); at >= 0; at = this.text.indexOf("`", at)) {
      let end = at;
      while (this.text[end] === "`") end += 1;
      if (end - at === ticks.length) return at;
      at = end;
    }
    this.unclosedTicks.add(ticks.length);
    return -1;
  }

  emphasis(mark) {
    let end = this.at;
    while (this.text[end] === mark) end += 1;
    const run = this.text.slice(this.at, end);
    const before = this.text[this.at - 1] ?? " ";
    const after = this.text[end] ?? " ";
    this.at = end;
    if (run.length > 3 || (mark === "~" && run.length !== 2)) return void (this.plain += run);
    const sign = (c) => /[\p{P}\p{S}]/u.test(c);
    const left = !isBlank(after) && (!sign(after) || isBlank(before) || sign(before));
    const right = !isBlank(before) && (!sign(before) || isBlank(after) || sign(after));
    const within = mark === "_" && left && right; // snake_case is no emphasis
    let count = run.length;
    if (right && !(within && !sign(after))) count = this.close(mark, count);
    if (count === 0) return;
    if (left && !(within && !sign(before))) this.push(mark, count, mark.repeat(count));
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

  bracket(c) {
    const text = c === "!" ? "![" : "["; // an image is shown as a link: nothing is loaded
    this.push("[", 1, text);
    this.at += text.length;
  }

  linkEnd() {
    const index = this.open.findLastIndex((one) => one.mark === "[");
    const target = index >= 0 ? this.linkTarget(this.at + 1) : null;
    if (!target) {
      if (index >= 0) this.open.splice(index, 1);
      return this.take(/\]/y);
    }
    const opening = this.open[index];
    const address = safeAddress(target.address);
    this.open.length = index;
    if (!address) {
      this.plain += this.text.slice(this.at, target.end);
    } else {
      const anchor = this.wrapped(opening, linkTo(address));
      for (const inner of anchor.querySelectorAll("a")) inner.replaceWith(...inner.childNodes);
      if (!anchor.hasChildNodes()) anchor.append(shown(address));
      opening.node.remove();
      this.add(anchor);
      this.open = this.open.filter((one) => one.mark !== "["); // no link in a link
    }
    this.at = target.end;
  }

  /** {address, end} of `(address "title")` at `at`, or null. */
  linkTarget(at) {
    const bare = String.raw`[^\s()<>]*(?:\([^\s()<>]*\)[^\s()<>]*)*`;
    const title = String.raw`(?:\s+(?:"[^"\n]*"|'[^'\n]*'))?`;
    const pattern = new RegExp(String.raw`\(\s*(?:<([^<>\n]*)>|(${bare}))${title}\s*\)`, "y");
    pattern.lastIndex = at;
    const match = pattern.exec(this.text);
    return match && { address: match[1] ?? match[2], end: pattern.lastIndex };
  }

  /** An address between < and >, or one that stands in the text by itself. */
  address(c) {
    const pattern = c === "<" ? /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/iy
      : /(https?:\/\/[^\s<>"`]{1,2000})/y;
    pattern.lastIndex = this.at;
    const inWord = c === "h" && /\w/.test(this.text[this.at - 1] ?? "");
    const match = inWord ? null : pattern.exec(this.text);
    if (!match) return this.take(/./suy);
    let text = match[1];
    if (c === "h") {
      text = text.replace(/[.,;:!?'"*_~\]]{1,20}$/, "");
      if (text.endsWith(")") && !text.includes("(")) text = text.slice(0, -1);
    }
    const address = safeAddress(text);
    if (!address) return this.take(/./suy);
    this.add(linkTo(address, shown(text)));
    this.at += c === "<" ? match[0].length : text.length;
  }
}

const inline = (text) => new InlineReader(text).read();
