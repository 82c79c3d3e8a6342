"use strict";

// Markdown: blocks
// A block is {kind, end, source, ...}: `end` is the line after its last, `source` its text. Blocks
// at the top do not depend on the text before them, so while an answer grows only the last changes.

const DEEPEST = 8; // quotes and lists inside each other; beyond it their text is shown as it is
// subtle: no pattern here can backtrack over a long line: (?!~), and . that takes everything
const MOST_COLUMNS = 50; // of a table; a browser needs long to lay out thousands
const FENCE = /^(\s*)(`{3,}(?!`)|~{3,}(?!~))([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/s;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(?:[ \t]+(.*))?$/s;
const QUOTE = /^ {0,3}> ?/;

const isBlank = (line) => line.trim() === "";
const isRule = (line) => /^(\*{3,}|-{3,}|_{3,})$/.test(line.replace(/\s+/g, ""));

function indentOf(line) {
  let width = 0;
  for (const c of line) {
    if (c === " ") width += 1;
    else if (c === "\t") width += 4;
    else break;
  }
  return width;
}

/** The line without its first `width` columns of indentation. */
function outdented(line, width) {
  const text = line.trimStart();
  return " ".repeat(Math.max(0, indentOf(line) - width)) + text;
}

function fenceBlock(lines, start) {
  const open = FENCE.exec(lines[start]);
  if (!open) return null;
  const indent = indentOf(open[1]);
  const closes = (line) => {
    const text = line.trim();
    return text.length >= open[2].length && text === open[2][0].repeat(text.length);
  };
  let end = start + 1;
  while (end < lines.length && !closes(lines[end])) end += 1;
  const body = lines.slice(start + 1, end);
  const inside = (line) => outdented(line, Math.min(indent, indentOf(line)));
  const code = indent ? body.map(inside) : body;
  const language = open[3].trim().split(/\s/)[0].slice(0, 20);
  return { kind: "fence", end: Math.min(end + 1, lines.length), language, code: code.join("\n") };
}

function headingBlock(lines, start) {
  const match = HEADING.exec(lines[start]);
  if (!match) return null;
  let text = (match[2] ?? "").trim();
  let bare = text.length; // without the #s that may close a heading
  while (bare > 0 && text[bare - 1] === "#") bare -= 1;
  if (bare === 0 || isBlank(text[bare - 1])) text = text.slice(0, bare).trim();
  return { kind: "heading", end: start + 1, level: match[1].length, text };
}

function ruleBlock(lines, start) {
  return isRule(lines[start]) ? { kind: "rule", end: start + 1 } : null;
}

function quoteBlock(lines, start) {
  let end = start;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  if (end === start) return null;
  const quoted = lines.slice(start, end).map((line) => line.replace(QUOTE, ""));
  return { kind: "quote", end, lines: quoted };
}

/** The cells of a row; a backslash before | makes it a character of the cell. */
function tableCells(line) {
  const cells = [""];
  const text = line.trim();
  for (let at = text.startsWith("|") ? 1 : 0; at < text.length; at += 1) {
    if (text[at] === "\\" && text[at + 1] === "|") {
      cells.push(`${cells.pop()}|`);
      at += 1;
    } else if (text[at] === "|") cells.push("");
    else cells.push(cells.pop() + text[at]);
  }
  if (cells.length > 1 && text.endsWith("|") && isBlank(cells.at(-1))) cells.pop();
  return cells.map((cell) => cell.trim());
}

function tableBlock(lines, start) {
  const isRow = (line) => line !== undefined && line.includes("|") && !isBlank(line);
  if (!isRow(lines[start]) || !isRow(lines[start + 1])) return null;
  const marks = tableCells(lines[start + 1]);
  const head = tableCells(lines[start]);
  if (marks.length !== head.length || marks.length > MOST_COLUMNS) return null;
  if (!marks.every((mark) => /^:?-+:?$/.test(mark))) return null;
  const align = marks.map((mark) =>
    (!mark.endsWith(":") ? "" : mark[0] === ":" ? "center" : "right"));
  let end = start + 2;
  while (end < lines.length && isRow(lines[end])) end += 1;
  return { kind: "table", end, head, align, rows: lines.slice(start + 2, end).map(tableCells) };
}

/** How many lines, from `start`, belong to the list item whose marker stands at column `base`. */
function itemLines(lines, start, base, offset) {
  const body = [ITEM.exec(lines[start])[3] ?? ""];
  let at = start + 1;
  while (at < lines.length) {
    let next = at;
    while (next < lines.length && isBlank(lines[next])) next += 1;
    if (next === lines.length) break;
    const line = lines[next];
    const inside = indentOf(line) >= base + 2;
    const continues = next === at && !isBlank(lines[at - 1]) && !startsBlock(lines, next);
    if (!inside && (!continues || ITEM.test(line))) break;
    for (; at < next; at += 1) body.push("");
    body.push(outdented(line, Math.min(offset, indentOf(line))));
    at = next + 1;
  }
  return { body, end: at };
}

function listBlock(lines, start) {
  const first = ITEM.exec(lines[start]);
  if (!first) return null;
  const kindOf = (marker) => (/\d/.test(marker) ? marker.at(-1) : marker);
  const base = indentOf(first[1]);
  const items = [];
  let end = start;
  for (let at = start; at < lines.length; ) {
    const item = ITEM.exec(lines[at]);
    if (!item || isRule(lines[at]) || kindOf(item[2]) !== kindOf(first[2])) break;
    if (indentOf(item[1]) > base + 1) break;
    const { body, end: after } = itemLines(lines, at, base, indentOf(item[1]) + item[2].length + 1);
    items.push(body);
    end = at = after;
    while (at < lines.length && isBlank(lines[at])) at += 1;
  }
  const ordered = /\d/.test(first[2]);
  return { kind: "list", end, ordered, first: parseInt(first[2], 10), items };
}

/** Does a block other than a paragraph begin here? An ordered list inside a text begins with 1. */
function startsBlock(lines, at) {
  const item = ITEM.exec(lines[at]);
  const isFirst = item && (!/\d/.test(item[2]) || parseInt(item[2], 10) === 1);
  if (isFirst && item[3] !== undefined) return true;
  return [FENCE, HEADING, QUOTE].some((pattern) => pattern.test(lines[at])) || isRule(lines[at])
    || tableBlock(lines.slice(at, at + 2), 0) !== null;
}

function paragraphBlock(lines, start) {
  let end = start + 1;
  while (end < lines.length && !isBlank(lines[end]) && !startsBlock(lines, end)) end += 1;
  const text = lines.slice(start, end).map((line) => line.trimStart()).join("\n").trimEnd();
  return { kind: "paragraph", end, text };
}

const BLOCK_READERS = [fenceBlock, headingBlock, ruleBlock, quoteBlock, tableBlock, listBlock,
  paragraphBlock];

function blocksOf(lines) {
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (isBlank(lines[at])) {
      at += 1;
      continue;
    }
    let block = null;
    for (const read of BLOCK_READERS) block ??= read(lines, at);
    block.source = lines.slice(at, block.end).join("\n");
    blocks.push(block);
    at = block.end;
  }
  return blocks;
}

// Markdown: nodes
/** A code block; `show` replaces what changed and leaves the rest, its scrolling included. */
class CodeView {
  constructor(language) {
    this.grammar = grammarOf(language);
    this.tokens = [];
    this.source = "";
    this.code = element("code");
    this.copy = element("button", { onclick: () => copyText(this.source, this.copy) }, "Copy");
    this.node = element("div", { class: "code" },
      element("div", { class: "code-head" },
        element("span", {}, shown(language) || "text"), this.copy),
      element("pre", { tabindex: "0", "aria-label": "Code" }, this.code));
  }

  show(source) {
    this.source = source;
    const tokens = codeTokens(source, this.grammar);
    let same = 0;
    while (same < this.tokens.length && same < tokens.length
      && this.tokens[same].text === tokens[same].text
      && this.tokens[same].kind === tokens[same].kind) same += 1;
    while (this.code.childNodes.length > same) this.code.lastChild.remove();
    this.code.append(...tokens.slice(same).map(tokenNode));
    this.tokens = tokens;
    return this;
  }
}

function tokenNode({ kind, text }) {
  const node = document.createTextNode(shown(text));
  return kind ? element("span", { class: kind }, node) : node;
}

function tableNode({ head, align, rows }) {
  const row = (tag, cells) => element("tr", {}, ...cells.slice(0, head.length).map((cell, i) =>
    element(tag, { class: align[i] || null, scope: tag === "th" ? "col" : null }, inline(cell))));
  return element("div", { class: "table", tabindex: "0", role: "group", "aria-label": "Table" },
    element("table", {}, element("thead", {}, row("th", head)),
      element("tbody", {}, ...rows.map((cells) => row("td", cells)))));
}

function listNode({ ordered, first, items }, depth) {
  const node = element(ordered ? "ol" : "ul", { start: ordered && first !== 1 ? first : null });
  node.append(...items.map((lines) => element("li", {}, ...blockNodes(lines, depth + 1))));
  return node;
}

function blockNode(block, depth) {
  switch (block.kind) {
    case "fence": return new CodeView(block.language).show(block.code).node;
    // subtle: the page's own headings are h1 and h2, so a model's first level is h3
    case "heading": return element(`h${Math.min(block.level + 2, 6)}`, {}, inline(block.text));
    case "rule": return element("hr");
    case "quote": return element("blockquote", {}, ...blockNodes(block.lines, depth + 1));
    case "table": return tableNode(block);
    case "list": return listNode(block, depth);
    default: return element("p", {}, inline(block.text));
  }
}

function blockNodes(lines, depth) {
  if (depth > DEEPEST) return [element("p", {}, shown(lines.join("\n")))];
  return blocksOf(lines).map((block) => blockNode(block, depth));
}

/** Markdown on screen. `show(text)` makes new nodes only from the first block that changed on. */
class MarkdownView {
  constructor() {
    this.node = element("div", { class: "markdown" });
    this.blocks = [];
    this.lastCode = null; // the CodeView of the last block, where that is code
  }

  show(text) {
    const blocks = blocksOf(text.split(/\r\n?|\n/));
    let same = 0;
    while (same < blocks.length && blocks[same].source === this.blocks[same]?.source) same += 1;
    const grown = blocks[same];
    const growing = this.lastCode !== null && same === this.blocks.length - 1
      && grown?.kind === "fence" && grown.language === this.blocks[same].language;
    if (growing) this.lastCode.show(blocks[same++].code);
    while (this.node.childNodes.length > same) this.node.lastChild.remove();
    for (const block of blocks.slice(same)) this.add(block);
    if (blocks.at(-1)?.kind !== "fence") this.lastCode = null;
    this.blocks = blocks;
  }

  add(block) {
    this.lastCode = block.kind === "fence" ? new CodeView(block.language) : null;
    this.node.append(this.lastCode?.show(block.code).node ?? blockNode(block, 0));
  }
}
