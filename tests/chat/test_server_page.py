"""The real page on the real server, in a real browser: what one sends, the other understands."""

import re

import pytest
from test_server import ROUND, SAYS_SUM, Running

pytest_plugins = ["page_browser"]
pytestmark = pytest.mark.slow


@pytest.fixture
def page(browser):
    """A page; fails the test if it complains of anything but a missing API key."""
    complaints: list[str] = []
    page = browser.new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    page.close()
    assert [text for text in complaints if "401" not in text] == []


def test_a_tool_call_and_the_documents_under_the_content_policy(page):
    with Running(*SAYS_SUM, hosts=["127.0.0.1"]) as running:
        page.goto(running.url)
        page.fill("#question", "What is 1 + 2?")
        page.keyboard.press("Enter")
        page.get_by_text("tokens/s").wait_for(timeout=30_000)
        text = page.inner_text("main")
        page.goto(f"{running.url}/docs")
        assert page.locator("td code >> text=max_completion_tokens").is_visible()
        margin = page.locator("body").evaluate("body => getComputedStyle(body).maxWidth")
        assert margin == "960px"  # docs.css was loaded
    assert "1+2" in text and "3" in text and text.index("S:") < text.index("1+2") < text.index("!")


def test_an_api_key_a_length_and_a_stop(page):
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
