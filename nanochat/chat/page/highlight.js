"use strict";

// Code colours
// A grammar is one pattern whose groups name the kinds, and the words that are keywords.

const LONGEST_COLOURED = 60000; // characters

function grammar({ comment = "(?!)", string, meta = "(?!)", words }) {
  const decimal = String.raw`\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?`;
  const number = String.raw`(?<![\w.])(?:0[xXbBoO][\da-fA-F_]+|${decimal})`;
  const groups = { c: comment, m: meta, s: string, n: number, word: String.raw`[A-Za-z_$][\w$]*` };
  const pattern = Object.entries(groups).map(([name, source]) => `(?<${name}>${source})`).join("|");
  return { pattern: new RegExp(pattern, "g"), words: new Set(words.split(/\s+/)) };
}

const STRING = String.raw`"(?:\\[^]|[^"\\\n])*"?|'(?:\\[^]|[^'\\\n])*'?`;
const SLASH_COMMENT = String.raw`//[^\n]*|/\*[^]*?(?:\*/|$)`;

const PYTHON = grammar({
  comment: "#[^\\n]*",
  string: String.raw`(?:\b[rbfuRBFU]{1,2})?(?:"""[^]*?(?:"""|$)|'''[^]*?(?:'''|$)|${STRING})`,
  meta: String.raw`@[A-Za-z_][\w.]*`,
  words: `False None True and as assert async await break case class continue def del elif else
    except finally for from global if import in is lambda match nonlocal not or pass raise return
    try while with yield self`,
});
const JAVASCRIPT = grammar({
  comment: SLASH_COMMENT,
  string: STRING + "|`(?:\\\\[^]|[^`\\\\])*`?",
  words: `async await break case catch class const continue debugger default delete do else enum
    export extends false finally for from function if implements import in instanceof interface let
    new null of return static super switch this throw true try type typeof undefined var void while
    with yield`,
});
const SHELL = grammar({
  comment: String.raw`(?<![\w$\{&])#[^\n]*`,
  string: STRING,
  meta: String.raw`\$(?:\{[^}\n]*\}?|\w+|[@#?*!$-])`,
  words: `case cd do done echo elif else esac exit export fi for function if in local read return
    select set shift source then trap unset until while`,
});
const JSON_GRAMMAR = grammar({
  meta: String.raw`"(?:\\[^]|[^"\\\n])*"(?=\s*:)`, string: STRING, words: "true false null",
});
const C = grammar({
  comment: SLASH_COMMENT,
  string: STRING,
  meta: String.raw`#[ \t]*[a-z]+`,
  words: `auto bool break case char class const constexpr continue default delete do double else
    enum extern false float for goto if inline int int32_t int64_t long namespace new
    nullptr operator private protected public register return short signed size_t sizeof
    static struct switch template this true typedef typename uint32_t uint64_t uint8_t union
    unsigned using virtual void volatile while NULL`,
});
const GRAMMARS = new Map([
  ["python", PYTHON], ["py", PYTHON], ["python3", PYTHON],
  ["javascript", JAVASCRIPT], ["js", JAVASCRIPT], ["jsx", JAVASCRIPT], ["ts", JAVASCRIPT],
  ["typescript", JAVASCRIPT], ["tsx", JAVASCRIPT],
  ["bash", SHELL], ["sh", SHELL], ["shell", SHELL], ["zsh", SHELL], ["console", SHELL],
  ["json", JSON_GRAMMAR], ["jsonl", JSON_GRAMMAR],
  ["c", C], ["h", C], ["cpp", C], ["c++", C], ["cuda", C], ["cu", C],
]);

const grammarOf = (language) => GRAMMARS.get(language.toLowerCase()) ?? null;

/** [{kind, text}] whose texts together are `source`; kind is a class of the style sheet, or "". */
function codeTokens(source, rules) {
  if (!rules || source.length > LONGEST_COLOURED) return [{ kind: "", text: source }];
  const tokens = [];
  const plain = (text) => {
    if (text && tokens.at(-1)?.kind === "") tokens.at(-1).text += text;
    else if (text) tokens.push({ kind: "", text });
  };
  let at = 0;
  for (const match of source.matchAll(rules.pattern)) {
    plain(source.slice(at, match.index));
    at = match.index + match[0].length;
    const kind = match.groups.word === undefined ? groupOf(match)
      : rules.words.has(match[0]) ? "k" : source[at] === "(" ? "f" : "";
    if (kind) tokens.push({ kind, text: match[0] });
    else plain(match[0]);
  }
  plain(source.slice(at));
  return tokens;
}

const groupOf = (match) => ["c", "m", "s", "n"].find((name) => match.groups[name] !== undefined);
