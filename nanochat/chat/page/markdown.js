"use strict";

// Markdown: blocks
// A block is {kind, end, source, ...}: `end` is the line after its last, `source` its text. Blocks
// at the top do not depend on the text before them, so while an answer grows only the last changes.

const DEEPEST = 8; // quotes and lists inside each other; beyond it their text is shown as it is
const MOST_COLUMNS = 50; // of a table; a browser needs long to lay out thousands
// subtle: no pattern here can backtrack over a long line: (?!~), and . that takes everything
const FENCE = /^(\s*)(`{3,}(?!`)|~{3,}(?!~))([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/s;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(?:[ \t]+(.*))?$/s;
const QUOTE = /^ {0,3}> ?/;

const isBlank = (line) => line.trim() === "";
const isRule = (line) => /^(\*{3,}|-{3,}|_{3,})$/.test(line.replace(/\s+/g, ""));
const isRow = (line) => line.includes("|") && !isBlank(line);

/** The first line from `start` on for which `test` does not hold, or the end. */
function endOf(lines, start, test) {
  let end = start;
  while (end < lines.length && test(lines[end], end)) end += 1;
  return end;
}

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
const outdented = (line, width) =>
  " ".repeat(Math.max(0, indentOf(line) - width)) + line.trimStart();

function fenceBlock(lines, start) {
  const open = FENCE.exec(lines[start]);
  if (!open) return null;
  const indent = indentOf(open[1]);
  const end = endOf(lines, start + 1, (line) => {
    const text = line.trim();
    return text.length < open[2].length || text !== open[2][0].repeat(text.length);
  });
  const body = lines.slice(start + 1, end);
  const code = (indent ? body.map((line) => outdented(line, indent)) : body).join("\n");
  const language = open[3].trim().split(/\s/)[0].slice(0, 20);
  return { kind: "fence", end: Math.min(end + 1, lines.length), language, code };
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
  const end = endOf(lines, start, (line) => QUOTE.test(line));
  const quoted = lines.slice(start, end).map((line) => line.replace(QUOTE, ""));
  return end > start ? { kind: "quote", end, lines: quoted } : null;
}

/** The cells of a row; a backslash before | makes it a character of the cell. */
function tableCells(line) {
  const cells = line.trim().replace(/^\|/, "").split(/(?<!\\)\|/)
    .map((cell) => cell.replaceAll("\\|", "|").trim());
  if (cells.length > 1 && cells.at(-1) === "") cells.pop();
  return cells;
}

function tableBlock(lines, start) {
  if (!isRow(lines[start]) || !isRow(lines[start + 1] ?? "")) return null;
  const [head, marks] = [tableCells(lines[start]), tableCells(lines[start + 1])];
  if (marks.length !== head.length || marks.length > MOST_COLUMNS) return null;
  if (!marks.every((mark) => /^:?-+:?$/.test(mark))) return null;
  const align = marks.map((mark) =>
    (!mark.endsWith(":") ? "" : mark[0] === ":" ? "center" : "right"));
  const end = endOf(lines, start + 2, isRow);
  return { kind: "table", end, head, align, rows: lines.slice(start + 2, end).map(tableCells) };
}

/** {body, end}: the lines of the list item at `start`, whose list's markers stand at column `base`
 * and whose text at column `offset`. */
function itemLines(lines, start, base, offset) {
  const body = [ITEM.exec(lines[start])[3] ?? ""];
  let end = start + 1;
  for (;;) {
    const next = endOf(lines, end, isBlank);
    if (next === lines.length) break;
    const line = lines[next];
    const continues = next === end && !isBlank(lines[end - 1]) && !startsBlock(lines, next);
    if (indentOf(line) < base + 2 && (!continues || ITEM.test(line))) break;
    for (; end < next; end += 1) body.push("");
    body.push(outdented(line, offset));
    end = next + 1;
  }
  return { body, end };
}

function listBlock(lines, start) {
  const first = ITEM.exec(lines[start]);
  if (!first) return null;
  const kindOf = (marker) => (/\d/.test(marker) ? marker.at(-1) : marker);
  const base = indentOf(first[1]);
  const items = [];
  let end = start;
  for (let at = start; at < lines.length; at = endOf(lines, end, isBlank)) {
    const item = ITEM.exec(lines[at]);
    if (!item || isRule(lines[at]) || kindOf(item[2]) !== kindOf(first[2])) break;
    const indent = indentOf(item[1]);
    if (indent > base + 1) break;
    const { body, end: after } = itemLines(lines, at, base, indent + item[2].length + 1);
    items.push(body);
    end = after;
  }
  return { kind: "list", end, items, ordered: /\d/.test(first[2]), first: parseInt(first[2], 10) };
}

/** Does a block other than a paragraph begin here? An ordered list inside a text begins with 1. */
function startsBlock(lines, at) {
  const item = ITEM.exec(lines[at]);
  if (item?.[3] !== undefined && (!/\d/.test(item[2]) || parseInt(item[2], 10) === 1)) return true;
  return [FENCE, HEADING, QUOTE].some((pattern) => pattern.test(lines[at])) || isRule(lines[at])
    || tableBlock(lines.slice(at, at + 2), 0) !== null;
}

function paragraphBlock(lines, start) {
  const end = endOf(lines, start + 1, (line, at) => !isBlank(line) && !startsBlock(lines, at));
  const text = lines.slice(start, end).map((line) => line.trimStart()).join("\n").trimEnd();
  return { kind: "paragraph", end, text };
}

const BLOCK_READERS = [fenceBlock, headingBlock, ruleBlock, quoteBlock, tableBlock, listBlock,
  paragraphBlock];

function blocksOf(lines) {
  const blocks = [];
  for (let at = endOf(lines, 0, isBlank); at < lines.length; at = endOf(lines, at, isBlank)) {
    let block = null;
    for (const read of BLOCK_READERS) block ??= read(lines, at);
    block.source = lines.slice(at, block.end).join("\n");
    blocks.push(block);
    at = block.end;
  }
  return blocks;
}

// Markdown: nodes
/** A code block. Its `showCode` replaces what changed and leaves the rest, its scrolling included. */
function codeNode(language) {
  const rules = grammarOf(language);
  let source = "";
  let tokens = [];
  const code = element("code");
  const copy = element("button", { class: "quiet", onclick: () => copyText(source, copy) }, "Copy");
  const head = element("div", { class: "code-head" },
    element("span", {}, shown(language) || "text"), copy);
  const pre = element("pre", { tabindex: "0", "aria-label": "Code" }, code);
  const node = element("div", { class: "code" }, head, pre);
  node.showCode = (text) => {
    const old = tokens;
    source = text;
    tokens = codeTokens(source, rules);
    const changed = tokens.findIndex((token, i) =>
      token.text !== old[i]?.text || token.kind !== old[i].kind);
    const same = changed < 0 ? tokens.length : changed;
    while (code.childNodes.length > same) code.lastChild.remove();
    code.append(...tokens.slice(same).map(tokenNode));
  };
  return node;
}

function tokenNode({ kind, text }) {
  return kind ? element("span", { class: kind }, shown(text)) : document.createTextNode(shown(text));
}

function tableNode({ head, align, rows }) {
  const row = (tag, cells) => element("tr", {}, ...cells.slice(0, head.length).map((cell, i) =>
    element(tag, { class: align[i] || null, scope: tag === "th" ? "col" : null }, inline(cell))));
  return element("div", { class: "table", tabindex: "0", role: "group", "aria-label": "Table" },
    element("table", {}, element("thead", {}, row("th", head)),
      element("tbody", {}, ...rows.map((cells) => row("td", cells)))));
}

function blockNode(block, depth) {
  const inside = (lines) => blockNodes(lines, depth + 1);
  if (block.kind === "fence") {
    const node = codeNode(block.language);
    node.showCode(block.code);
    return node;
  }
  // subtle: the page's own headings are h1 and h2, so a model's first level is h3
  if (block.kind === "heading") {
    return element(`h${Math.min(block.level + 2, 6)}`, {}, inline(block.text));
  }
  if (block.kind === "rule") return element("hr");
  if (block.kind === "quote") return element("blockquote", {}, ...inside(block.lines));
  if (block.kind === "table") return tableNode(block);
  if (block.kind === "list") {
    const start = block.ordered && block.first !== 1 ? block.first : null;
    return element(block.ordered ? "ol" : "ul", { start },
      ...block.items.map((lines) => element("li", {}, ...inside(lines))));
  }
  return element("p", {}, inline(block.text));
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
  }

  show(text) {
    const blocks = blocksOf(text.split(/\r\n?|\n/));
    let same = 0;
    while (same < blocks.length && blocks[same].source === this.blocks[same]?.source) same += 1;
    const [last, grown] = [this.blocks[same], blocks[same]];
    const isSameCode = same === this.blocks.length - 1 && last.kind === "fence"
      && grown?.kind === "fence" && grown.language === last.language;
    if (isSameCode) this.node.children[same++].showCode(grown.code);
    while (this.node.childNodes.length > same) this.node.lastChild.remove();
    this.node.append(...blocks.slice(same).map((block) => blockNode(block, 0)));
    this.blocks = blocks;
  }
}
