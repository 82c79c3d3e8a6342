"""The chat page in a real browser: every test drives it as a person does.

Set NANOCHAT_SCREENSHOTS to a folder to keep a picture of each state at three widths.
"""

import http.client
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from page_server import PAGE, PageServer
from test_server import ROUND, SAYS_SUM, Running

pytest_plugins = ["page_browser"]
pytestmark = pytest.mark.slow

LONG = "\n\n".join(f"Paragraph {i}: " + "some words that fill lines " * 12 for i in range(30))
CODE = "```python\ndef f(x):\n    return '" + "long " * 60 + "'\n```\n"
TABLE = "| " + " | ".join("column" * 3 for _ in range(8)) + " |\n" + "|---" * 8 + "|\n"


# ---- the file


def test_the_page_loads_only_its_own_files():
    texts = {path.name: path.read_text("utf-8") for path in PAGE.iterdir()}
    named = re.findall(
        r'<(?:script defer src|link rel="stylesheet" href)="([^"]+)"', texts["index.html"]
    )
    assert {*named, "index.html"} == set(texts)
    outside = set(re.findall(r"[a-z]+://[^\s'\"`)]+", "".join(texts.values())))
    assert outside == {"http://www.w3.org/2000/svg"}  # a name, not an address that is loaded
    assert not re.findall(r"\s(?:on\w+|style)=|<style", texts["index.html"])
    scripts = "".join(text for name, text in texts.items() if name.endswith(".js"))
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|DOMP", scripts
    )
    assert max(text.count("\n") for text in texts.values()) < 500


# ---- asking


def test_an_answer_streams_in(tab, server):
    timing = {"tokens_per_second": 41.27, "time_to_first_token": 0.083}
    tab.ask("What is **France**?", "A *coun", server.gate, "try*.", timing=timing)
    tab.page.wait_for_function("() => document.querySelector('.parts').textContent === 'A *coun'")
    assert tab.page.get_attribute(".assistant", "aria-busy") == "true"
    assert tab.page.get_attribute("#send", "aria-label") == "Stop"
    assert tab.page.inner_text("#announcer") == ""  # not a word for each token
    server.gate.set()
    tab.wait(1)
    assert tab.page.inner_html(".parts .markdown") == "<p>A <em>country</em>.</p>"
    assert tab.questions() == ["What is **France**?"]  # what a person types stays as it is
    assert tab.page.inner_text(".timing") == "41.3 tokens/s · 0.08 s to the first · 3 tokens"
    assert tab.page.text_content("#announcer") == "nanochat:  A *country*."
    assert tab.page.inner_text("#title") == "What is **France**?"
    assert tab.page.inner_text("#model-name") == "nanochat-d4"
    assert server.requests == [
        {"messages": [{"role": "user", "content": "What is **France**?"}], "stream": True,
         "stream_options": {"include_usage": True}}
    ]  # the server's defaults hold  # fmt: skip


def test_speed_is_measured_where_the_server_does_not_tell(tab):
    tab.answered("Hi", *["word "] * 8)
    assert re.fullmatch(r"[\d.]+ tokens/s · \d\.\d\d s to the first · 8 tokens",
                        tab.page.inner_text(".timing"))  # fmt: skip


def test_earlier_turns_are_sent_along_with_tool_calls(tab, server):
    tab.page.click("#open-settings")
    tab.page.fill("#system", "Be brief.")
    tab.page.press("#system", "Escape")
    tab.answered("One?", "1")
    tab.answered("Two?", ("python", "1+1"), ("output", "2"), "It is 2.")
    tab.answered("Three?", "3")
    assert server.requests[-1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": [
            {"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"},
            {"type": "text", "text": "It is 2."}]},
        {"role": "user", "content": "Three?"},
    ]  # fmt: skip


def test_tool_calls_fold(tab):
    tab.answered("?", ("python", "37*12"), ("output", "444"), ("python", "1/0"),
                 ("output", "error: division by zero"), "So 444.")  # fmt: skip
    tools = tab.page.locator("details.tool")
    assert tools.all_inner_texts() == ["Tool\n37*12 = 444", "Tool\n1/0 = error: division by zero"]
    assert not tools.nth(0).locator("pre").first.is_visible()
    tools.nth(0).locator("summary").press("Enter")
    assert tools.nth(0).locator("pre").all_inner_texts() == ["37*12", "444"]
    tab.page.reload()
    assert tools.all_inner_texts() == ["Tool\n37*12 = 444", "Tool\n1/0 = error: division by zero"]


@pytest.mark.parametrize("composing", ["keyCode: 229", "isComposing: true"])
def test_a_key_that_ends_a_composition_does_nothing_else(tab, server, composing):
    """Safari's Enter after a composition says keyCode 229 and no longer isComposing."""

    def press(selector, key):
        event = f"new KeyboardEvent('keydown', {{key: '{key}', bubbles: true, {composing}}})"
        tab.page.eval_on_selector(selector, f"(field) => field.dispatchEvent({event})")

    tab.page.fill("#question", "にほん")
    press("#question", "Enter")
    assert tab.page.input_value("#question") == "にほん" and server.requests == []
    tab.page.press("#question", "Enter")
    tab.wait(1)
    tab.page.click("[aria-label='Edit question']")
    for key in ("Enter", "Escape"):
        press(".edit textarea", key)
    tab.page.press(".edit textarea", "Escape")
    tab.page.fill("#question", "/te")
    press("#question", "Escape")
    assert tab.page.input_value("#question") == "/te" and len(server.requests) == 1
    tab.page.fill("#question", "")


def test_stop_keeps_what_there_is_and_frees_the_server(tab, server):
    tab.ask("Count.", "one two", server.gate, " three")
    tab.page.wait_for_function("() => document.querySelector('.parts').textContent === 'one two'")
    tab.page.keyboard.press("Escape")
    tab.wait(1)
    assert server.left.wait(5)
    assert tab.answers() == ["one two"] and tab.page.inner_text(".state") == "Stopped."
    tab.answered("Go on.", "three")
    sent = [message["content"] for message in server.requests[-1]["messages"]]
    assert sent == ["Count.", "one two", "Go on."]


def test_the_stop_button_stops_and_a_second_question_waits(tab, server):
    tab.ask("Count.", "one", server.gate)
    tab.page.wait_for_function("() => document.querySelector('.parts').textContent === 'one'")
    tab.ask("And?")
    assert tab.page.input_value("#question") == "And?" and len(server.requests) == 1
    tab.page.click("#send")
    tab.wait(1)
    assert tab.page.get_attribute("#send", "aria-label") == "Send"


def test_an_edited_question_drops_what_follows_and_undo_brings_it_back(tab, server):
    tab.answered("One?", "1")
    tab.answered("Two?", "2")
    tab.page.click("[aria-label='Edit question'] >> nth=0")
    server.answer("11")
    tab.page.fill(".edit textarea", "Eleven?")
    tab.page.press(".edit textarea", "Enter")
    tab.wait(1)
    assert (tab.questions(), tab.answers()) == (["Eleven?"], ["11"])
    assert [m["content"] for m in server.requests[-1]["messages"]] == ["Eleven?"]
    tab.page.click("#notice button")
    assert (tab.questions(), tab.answers()) == (["One?", "Two?"], ["1", "2"])
    tab.page.click("[aria-label='Edit question'] >> nth=1")
    tab.page.press(".edit textarea", "Escape")  # changes nothing
    assert (tab.questions(), tab.answers()) == (["One?", "Two?"], ["1", "2"])
    tab.page.reload()
    assert (tab.questions(), tab.answers()) == (["One?", "Two?"], ["1", "2"])


@pytest.mark.parametrize("how", ["button", "command"])
def test_regenerate(tab, server, how):
    tab.answered("One?", "first")
    tab.server.answer("second")
    if how == "button":
        tab.page.click("[aria-label='Answer again']")
    else:
        tab.ask("/regenerate")
    tab.page.wait_for_function("() => document.querySelector('.parts').textContent === 'second'")
    assert server.requests[0]["messages"] == server.requests[1]["messages"]
    tab.page.click("#notice button")
    assert tab.answers() == ["first"]


def test_copy(new_tab):
    tab = new_tab(permissions=["clipboard-read", "clipboard-write"])
    tab.answered("Code?", "Here **it** is:\n\n```python\nif x < 1:\n    pass\n```")
    tab.page.click(".code-head button")
    tab.page.wait_for_selector(".code-head button:text('Copied')")
    assert tab.page.evaluate("navigator.clipboard.readText()") == "if x < 1:\n    pass"
    tab.page.click("[aria-label='Copy answer']")
    copied = tab.page.evaluate("navigator.clipboard.readText()")
    assert copied == "Here **it** is:\n\n```python\nif x < 1:\n    pass\n```"


# ---- conversations


def test_several_conversations_are_kept_renamed_and_deleted(tab):
    tab.answered("First?", "1")
    tab.page.keyboard.press("Control+k")
    assert tab.page.is_visible("#empty")
    tab.answered("Second?", "2")
    assert tab.titles() == ["Second?", "First?"]
    tab.page.click("#conversations .title >> nth=1")
    assert tab.answers() == ["1"]
    tab.page.click("[aria-label='Rename First?']")
    tab.page.keyboard.type("Numbers <b>")
    tab.page.keyboard.press("Enter")
    assert tab.titles() == ["Second?", "Numbers <b>"]
    tab.page.reload()
    assert tab.titles() == ["Second?", "Numbers <b>"] and tab.answers() == ["1"]
    tab.page.click("[aria-label='Delete Numbers <b>']")
    assert tab.titles() == ["Second?"] and tab.answers() == ["2"]
    tab.page.click("#notice button")
    assert tab.titles() == ["Second?", "Numbers <b>"] and tab.answers() == ["1"]


def test_an_answer_goes_on_while_another_conversation_is_open(tab, server):
    tab.ask("Slow?", "first", server.gate, " last")
    tab.page.wait_for_function("() => document.querySelector('.parts').textContent === 'first'")
    tab.page.click("#new-chat")
    tab.answered("Quick?", "yes")
    assert tab.page.locator("#conversations .writing").count() == 1
    server.gate.set()
    tab.page.wait_for_function("() => !document.querySelector('#conversations .writing')")
    tab.page.click("#conversations .title >> text=Slow?")
    assert tab.answers() == ["first last"]


def test_a_reload_in_the_middle_keeps_what_there_was(tab, server):
    tab.ask("Count.", ("python", "1+1"), ("output", "2"), "one two", server.gate)
    tab.page.wait_for_selector(".parts >> text=one two")
    tab.page.reload()
    assert tab.page.inner_text(".parts .markdown") == "one two"
    assert "37" not in tab.page.inner_text(".tool") and tab.page.locator(".tool").count() == 1
    state = tab.page.inner_text(".state span")
    assert state == "Interrupted. The page was left while it was written."
    server.answer("one two three")
    tab.page.click(".state button")
    tab.wait(1)
    assert tab.answers() == ["one two three"] and not tab.page.is_visible(".state")


def test_export_and_import(tab, new_tab, tmp_path):
    tab.ask("/system Be kind.")
    tab.answered("What is 1+1?", ("python", "1+1"), ("output", "2"), "2")
    with tab.page.expect_download() as download:
        tab.ask("/save")
    assert download.value.suggested_filename == "what-is-1-1.json"
    path = tmp_path / "one.json"
    download.value.save_as(path)
    saved = json.loads(path.read_text())
    parts = [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"},
             {"type": "text", "text": "2"}]  # fmt: skip
    contents = [message["content"] for message in saved["messages"]]
    assert contents == ["Be kind.", "What is 1+1?", parts]
    other = new_tab()
    other.page.set_input_files("#file", path)
    other.wait(1)
    assert other.questions() == ["What is 1+1?"] and other.page.input_value("#system") == "Be kind."
    assert other.page.inner_text(".tool") == "Tool\n1+1 = 2"
    with other.page.expect_download() as download:
        other.page.click("#export-all")
    download.value.save_as(path)
    assert json.loads(path.read_text())["conversations"] == [saved]


def test_the_terminals_file_can_be_loaded(tab, tmp_path):
    answer = [{"type": "python", "text": "2*3"}, {"type": "python_output", "text": "6"}]
    messages = [{"role": "user", "content": "2*3?"}, {"role": "assistant", "content": answer},
                {"role": "user", "content": "And?"}]  # fmt: skip
    path = tmp_path / "chat.json"
    path.write_text(json.dumps({"messages": messages}))
    with tab.page.expect_file_chooser() as chooser:
        tab.ask("/load")
    chooser.value.set_files(path)
    tab.wait(2)
    assert tab.questions() == ["2*3?", "And?"]
    assert tab.page.inner_text(".state.problem span") == "Not answered yet."


def test_a_file_that_is_none_is_refused_whole(tab, tmp_path):
    reasons = {
        "{": "it is not JSON",
        "[]": 'expected {"messages": [...]}, found no list of messages',
        '{"conversations": []}': "it holds no conversation",
        '{"messages": [{"role": "assistant", "content": "x"}]}':
            'message 1: expected role "user", found "assistant"',
        '{"messages": [{"role": "user", "content": 5}]}':
            "message 1: expected content to be a string or a list of parts",
        '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}':
            'message 1: expected parts {"type": text | python | python_output, "text": ...}',
    }  # fmt: skip
    for i, (text, reason) in enumerate(reasons.items()):
        path = tmp_path / f"{i}.json"
        path.write_text(text)
        tab.page.set_input_files("#file", path)
        tab.page.wait_for_selector(f"#notice >> text={i}.json")
        assert tab.page.inner_text("#notice span") == f"{i}.json was not loaded: {reason}."
    assert tab.titles() == []


def test_two_tabs_see_each_others_conversations(new_tab):
    tab = new_tab()
    tab.answered("One?", "1")
    other = new_tab(tab.page.context)
    assert other.titles() == ["One?"]
    tab.answered("Two?", "2")
    other.page.click("#conversations .title")
    other.wait(2)
    assert other.answers() == ["1", "2"]


def test_a_full_storage_is_said_and_the_chat_goes_on(tab):
    tab.page.evaluate("""() => { for (let size = 2 ** 20; size >= 1; size /= 2) {
      try { for (let i = 0; i < 99; i++) localStorage.setItem(`${size} ${i}`, 'x'.repeat(size)); }
      catch {}
    } }""")
    tab.answered("One?", "1")
    assert "stores nothing more (QuotaExceededError)" in tab.page.inner_text("#notice")
    assert tab.answers() == ["1"]


# ---- trouble


def test_the_server_goes_and_comes_back(tab, server):
    tab.expected = ["net::ERR_CONNECTION_REFUSED"]
    tab.answered("One?", "1")
    server.__exit__()
    tab.answered("Two?")
    assert tab.page.is_visible("#banner") and tab.page.inner_text("#model-name") == "no server"
    assert tab.page.inner_text(".state.problem span") == "The server does not answer."
    tab.page.click("#retry-server")
    assert tab.page.is_visible("#banner")
    with PageServer(server.port) as again:
        tab.page.click("#retry-server")
        tab.page.wait_for_selector("#banner", state="hidden")
        again.answer("2")
        tab.page.click(".state.problem button")
        tab.wait(2)
        assert tab.answers() == ["1", "2"]
        assert [m["content"] for m in again.requests[0]["messages"]] == ["One?", "1", "Two?"]


def test_a_connection_that_breaks_keeps_the_answer(tab, server):
    tab.answered("One?", "half an", breaks=True)
    assert tab.answers() == ["half an"]
    assert tab.page.inner_text(".state span") == "Interrupted. The answer broke off."
    tab.answered("Two?", b"data: {broken\n\n")
    told = tab.page.inner_text(".state.problem span")
    assert told == "The server sent what this page cannot read."
    error = {"error": {"message": "Out of <b>memory</b>.", "type": "server_error", "code": None}}
    tab.answered("Three?", "a", f"data: {json.dumps(error)}\n\n".encode())
    assert tab.page.inner_text(".state span >> nth=-1") == "Interrupted. Out of <b>memory</b>."
    tab.answered("Four?", "4")  # a question without an answer is not sent again
    sent = [m["content"] for m in server.requests[-1]["messages"]]
    assert sent == ["One?", "half an", "Three?", "a", "Four?"]


def test_errors_say_what_the_server_said(tab):
    tab.expected = ["status of 400", "status of 502"]
    tab.answered("One?", status=400, error="The prompt is too long.")
    assert tab.page.inner_text(".state.problem span") == "The prompt is too long."
    tab.page.route("**/v1/chat/completions", lambda route: route.fulfill(status=502, body="<html>"))
    tab.answered("Two?")
    told = tab.page.inner_text(".state.problem span >> nth=1")
    assert told == "The server answered 502 Bad Gateway."


def test_a_busy_server_is_asked_again(tab, server):
    tab.expected = ["status of 429"]
    server.answer(status=429, error="Busy.", headers={"Retry_After": "1"})
    server.answer("1")
    tab.ask("One?")
    tab.page.wait_for_selector("text=The server is busy. Asking again in 1 s.")
    tab.wait(1)
    assert tab.answers() == ["1"] and len(server.requests) == 2


def test_waiting_for_a_busy_server_can_be_stopped(tab, server):
    tab.expected = ["status of 429"]
    tab.ask("One?", status=429, error="Busy.", headers={"Retry_After": "60"})
    tab.page.wait_for_selector("text=The server is busy. Asking again in 60 s.")
    tab.page.keyboard.press("Escape")
    tab.wait(1)
    assert tab.page.inner_text(".state") == "Stopped." and len(server.requests) == 1


def test_an_api_key_is_asked_for_and_not_stored_for_good(tab, server):
    tab.expected = ["status of 401"]
    server.api_key = "secret"
    tab.ask("One?")
    tab.page.fill("#key", "wrong")
    tab.page.press("#key", "Enter")
    tab.page.wait_for_selector("#key-reason >> text=Wrong API key.")
    server.answer("1")
    tab.page.fill("#key", "secret")
    tab.page.press("#key", "Enter")
    tab.wait(1)
    assert tab.answers() == ["1"]
    assert "secret" not in tab.page.evaluate("JSON.stringify(localStorage)")
    server.api_key = "another"
    tab.ask("Two?")
    tab.page.wait_for_selector("#key-dialog[open]")
    tab.page.keyboard.press("Escape")
    tab.wait(2)
    assert tab.page.inner_text(".state.problem span") == "Wrong API key."


# ---- keyboard, commands, settings


def test_everything_with_the_keyboard_alone(tab, server):
    press = tab.page.keyboard.press
    assert tab.page.evaluate("document.activeElement.id") == "question"
    tab.page.keyboard.type("One?")
    press("Shift+Enter")
    tab.page.keyboard.type("two")
    press("Enter")
    tab.wait(1)
    assert tab.questions() == ["One?\ntwo"]
    press("ArrowUp")
    assert tab.page.input_value("#question") == "One?\ntwo"
    press("ArrowDown")
    assert tab.page.input_value("#question") == ""
    press("Shift+Tab")  # the answer's buttons
    assert tab.page.evaluate("document.activeElement.ariaLabel") == "Answer again"
    press("Enter")
    tab.page.wait_for_function("() => document.querySelector('#notice:not([hidden])')")
    tab.wait(1)
    assert len(server.requests) == 2
    tab.page.evaluate("document.activeElement.blur()")
    press("/")
    assert tab.page.evaluate("document.activeElement.id") == "question"
    assert tab.page.input_value("#question") == ""
    tab.page.keyboard.type("/temp")
    assert tab.page.locator("#hints li").count() == 1
    press("Tab")
    tab.page.keyboard.type("0.25")
    press("Enter")
    assert tab.page.evaluate("settings.temperature") == 0.25
    tab.page.keyboard.type("/help")
    press("Enter")
    assert tab.page.is_visible("#help")
    press("Escape")
    assert not tab.page.is_visible("#help")
    press("Control+k")
    assert tab.page.is_visible("#empty")


def test_settings_reach_the_server_and_are_kept(tab, server):
    tab.page.click("#open-settings")
    values = tab.page.locator("#settings output").all_inner_texts()
    assert values == ["0.6", "50", "512"]  # the server's, until the person chooses
    tab.page.fill("#temperature", "1.2")
    tab.page.fill("#top-k", "0")
    tab.page.fill("#max-tokens", "64")
    assert tab.page.inner_text("output[for=top-k]") == "all"
    tab.page.reload()
    tab.answered("Hi", "a", finish="length")
    sent = server.requests[0]
    assert (sent["temperature"], sent["top_k"], sent["max_tokens"]) == (1.2, 0, 64)
    assert tab.page.inner_text(".state").startswith("Cut off: this is the longest answer")


def test_commands(tab, server):
    tab.answered("One?", "1")
    tab.ask("/topk 7")
    tab.ask("/temperature 0")
    tab.ask("/system Be kind.")
    tab.ask("/clear")
    assert tab.page.is_visible("#empty")
    tab.page.click("#notice button")
    assert tab.answers() == ["1"]
    tab.ask("/clear")
    tab.answered("Two?", "2")
    sent = server.requests[-1]
    assert (sent["temperature"], sent["top_k"]) == (0, 7)
    assert [m["content"] for m in sent["messages"]] == ["Be kind.", "Two?"]


def test_a_wrong_command_says_why_and_stays(tab, server):
    told = {
        "/topk many": 'Found "many", expected a whole number from 0 to 200.',
        "/topk 1.5": 'Found "1.5", expected a whole number from 0 to 200.',
        "/temperature 3": 'Found "3", expected a number from 0 to 2.',
        "/temperature": 'Found "", expected a number from 0 to 2.',
        "/regenerate": "There is no question yet.",
        "/nothing": "There is no command /nothing. /help lists them.",
    }
    for line, reason in told.items():
        tab.ask(line)
        assert tab.page.inner_text("#notice span") == reason
        assert tab.page.input_value("#question") == line
    assert not server.requests


def test_a_path_is_a_question(tab):
    tab.answered("/usr/bin is what?", "A folder.")
    assert tab.questions() == ["/usr/bin is what?"]


def test_colours_follow_the_system_or_the_choice(new_tab):
    tab = new_tab(color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = tab.page.evaluate(paper)
    tab.page.click("#theme")  # light
    assert tab.page.evaluate(paper) != dark
    tab.page.reload()
    assert tab.page.get_attribute("#theme", "aria-label") == "Colours: light"
    tab.page.click("#theme")
    tab.page.emulate_media(color_scheme="light")
    assert tab.page.evaluate(paper) == dark  # chosen, whatever the system says


def test_the_end_stays_in_sight_until_the_reader_scrolls_away(tab, server):
    at_end = "() => { const log = byId('log');"
    at_end += " return log.scrollHeight - log.scrollTop - log.clientHeight < 60; }"
    tab.ask("Long?", LONG[:6000], server.gate, LONG[6000:])
    tab.page.wait_for_function("() => document.querySelector('.parts').textContent.length > 5000")
    tab.page.wait_for_function(at_end)
    tab.page.mouse.move(600, 300)
    tab.page.mouse.wheel(0, -1000)
    tab.page.wait_for_selector("#to-end:not([hidden])")
    top = tab.page.evaluate("byId('log').scrollTop")
    server.gate.set()
    tab.wait(1)
    assert abs(tab.page.evaluate("byId('log').scrollTop") - top) < 300  # not dragged to the end
    assert not tab.page.evaluate(at_end)
    tab.page.click("#to-end")
    tab.page.wait_for_function(at_end)


# ---- for everybody


def test_nothing_scrolls_sideways(new_tab):
    fits = "document.documentElement.scrollWidth <= innerWidth"
    fits += " && byId('log').scrollWidth <= byId('log').clientWidth"
    tab = new_tab(viewport={"width": 820, "height": 700})
    for width in (820, 390, 320):
        tab.page.set_viewport_size({"width": width, "height": 700})
        assert tab.page.evaluate(fits), width
        call = ("python", "1+" * 300 + "1")
        tab.answered("W" * 300, CODE, TABLE, "x" * 900, call, ("output", "7" * 900))
        assert tab.page.evaluate(fits), width
        tab.page.click("#open-side")
        tab.page.click("#new-chat")
        assert tab.page.evaluate(fits) and not tab.page.is_visible("#side"), width
        tab.page.click("#open-settings")
        assert tab.page.evaluate(fits), width
        tab.page.click("#open-settings")


def test_names_for_screen_readers(tab):
    tab.answered("One?", "# A\n\n" + CODE + TABLE + "| 1 |\n", ("python", "1"), ("output", "1"))
    tab.page.click("#open-settings")
    nameless = tab.page.locator("button, input, textarea, summary, [tabindex='0']").evaluate_all(
        """all => all.filter((one) => one.checkVisibility() && !(one.ariaLabel
          || one.textContent.trim() || one.labels?.length)).map((one) => one.outerHTML)"""
    )
    assert nameless == []
    levels = tab.page.locator("h1, h2, h3").evaluate_all(
        "all => all.filter(one => one.checkVisibility()).map(one => one.tagName)"
    )
    assert levels == ["H1", "H2", "H2", "H2", "H3"]
    assert tab.page.locator("main, nav, header, footer").count() == 4


CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const light = (name) => {
    const probe = document.createElement('span');
    probe.className = 'probe';
    document.body.append(probe);
    probe.style.color = `var(--${name})`;
    canvas.fillStyle = getComputedStyle(probe).color;
    probe.remove();
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  return (pairs) => pairs.map(([a, b]) => [light(a), light(b)].sort((x, y) => y - x))
    .map(([x, y]) => x / y);
}"""


def test_text_has_the_contrast_that_wcag_aa_asks_for(new_tab):
    tab = new_tab()
    papers = {
        "ink": ["paper", "panel", "card", "hover", "bubble", "code"],
        "soft": ["paper", "panel", "card", "hover", "code"],
        "danger": ["danger-paper", "card", "paper"],
        "accent": ["paper", "card"],
        "on-accent": ["accent"],
        **{name: ["code"] for name in ("keyword", "string", "number", "comment", "call", "meta")},
    }
    pairs = [[text, paper] for text, behind in papers.items() for paper in behind]
    for scheme in ("light", "dark"):
        tab.page.emulate_media(color_scheme=scheme)
        ratios = tab.page.evaluate(f"pairs => ({CONTRAST})()(pairs)", pairs)
        low = [(p, round(r, 2)) for p, r in zip(pairs, ratios, strict=True) if r < 4.5]
        assert low == [], scheme


# ---- pictures


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width, height", [(390, 844), (820, 1180), (1440, 900)])
def test_screenshots(new_tab, server, width, height, scheme):
    folder = os.environ.get("NANOCHAT_SCREENSHOTS")
    if not folder:
        pytest.skip("set NANOCHAT_SCREENSHOTS to a folder to get the screenshots")
    tab = new_tab(viewport={"width": width, "height": height}, color_scheme=scheme)
    tab.expected = ["status of 500"]

    def shoot(name: str) -> None:
        tab.page.screenshot(path=Path(folder) / f"{width}-{scheme}-{name}.png")

    shoot("1-empty")
    gate = threading.Event()
    tab.ask("Tell me a long story.", LONG[:1500], gate, " The end.")
    tab.page.wait_for_function("() => document.querySelector('.parts').textContent.length > 1000")
    shoot("2-streaming")
    gate.set()
    tab.wait(1)
    tab.answered("How many r are in strawberry?", ("python", '("strawberry").count("r")'),
                 ("output", "3"), "There are **3** r in strawberry.")  # fmt: skip
    tab.page.click("details summary")
    shoot("3-tool")
    code = "```python\n" + Path(__file__).read_text("utf-8")[900:2600] + "\n```"
    tab.answered("Show me code.", code + "\n\n" + TABLE)
    shoot("4-code")
    tab.answered("And now?", status=500, error="The engine failed. See the server's log.")
    shoot("5-error")


# ---- on the real server: what one sends, the other understands


@pytest.fixture
def real_page(browser):
    """A page; fails the test if it complains of anything but a missing API key."""
    complaints: list[str] = []
    page = browser.new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    page.close()
    assert [text for text in complaints if "401" not in text] == []


def test_a_tool_call_and_the_documents_under_the_content_policy(real_page):
    page = real_page
    with Running(*SAYS_SUM, hosts=["127.0.0.1"]) as running:
        page.goto(running.url)
        page.fill("#question", "What is 1 + 2?")
        page.keyboard.press("Enter")
        page.get_by_text("tokens/s").wait_for(timeout=30_000)
        text = page.inner_text("main")
        page.goto(f"{running.url}/docs")
        assert "max_completion_tokens" in page.inner_text("body")
    assert "1+2" in text and "3" in text and text.index("S:") < text.index("1+2") < text.index("!")


def test_an_api_key_a_length_and_a_stop(real_page):
    page = real_page
    limits = {"max_tokens": 2000}
    with Running(ROUND, api_key="secret", limits=limits, context=2048) as running:
        page.goto(running.url)
        page.evaluate("changeSettings({max_tokens: 64})")
        page.fill("#question", "Say something.")
        page.press("#question", "Enter")
        page.fill("#key", "secret")
        page.press("#key", "Enter")
        page.wait_for_selector("text=Cut off")
        assert page.inner_text(".parts") == ("ABCDEFGHIJ" * 7)[:64]
        assert re.fullmatch(r"[\d.]+ tokens/s · [\d.]+ s to the first · 64 tokens",
                            page.inner_text(".timing"))  # fmt: skip
        assert page.inner_text("output[for=temperature]") == "0"  # the server's default
        page.evaluate("changeSettings({})")
        page.fill("#question", "More.")
        page.press("#question", "Enter")
        page.wait_for_selector(".parts >> nth=1 >> text=ABCDEFGHIJ")
        page.keyboard.press("Escape")
        page.wait_for_selector("text=Stopped.")
        page.wait_for_function(
            "() => fetch('/health').then(r => r.json()).then(h => h.in_flight === 0)"
        )


class UnderAPath(BaseHTTPRequestHandler):
    """A proxy that serves all of `upstream` under /llm/, as nginx does with `location /llm/`."""

    upstream: tuple[str, int]

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        if not self.path.startswith("/llm/"):
            return self.send_error(404)
        connection = http.client.HTTPConnection(*self.upstream, timeout=30)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {k: v for k, v in self.headers.items() if k not in ("Host", "Connection")}
        connection.request(self.command, self.path[4:], body, headers)
        response = connection.getresponse()
        self.send_response(response.status)
        for name, value in response.getheaders():
            if name not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.end_headers()
        while part := response.read1():
            self.wfile.write(part)
        self.close_connection = True

    do_POST = do_GET


def test_the_page_under_a_proxys_path(real_page):
    page, asked = real_page, []
    page.on("request", lambda request: asked.append(request.url))
    with Running(*SAYS_SUM, hosts=["127.0.0.1"]) as running:
        handler = type("Handler", (UnderAPath,), {"upstream": running.address})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
            threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True).start()
            page.goto(f"http://127.0.0.1:{proxy.server_address[1]}/llm/")
            page.wait_for_selector("text=tiny")
            page.fill("#question", "What is 1 + 2?")
            page.keyboard.press("Enter")
            page.get_by_text("tokens/s").wait_for(timeout=30_000)
            assert page.evaluate("serverAnswers()") is True
            proxy.shutdown()
    paths = {urlsplit(url).path for url in asked if url.startswith("http")}
    assert {"/llm/v1/models", "/llm/v1/chat/completions", "/llm/health"} < paths
    assert all(path.startswith("/llm/") for path in paths)
