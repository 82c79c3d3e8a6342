"""The real page on the real server, in a real browser: what one sends, the other understands."""

import shutil

import pytest
from test_server import SAYS_SUM, Running

from nanochat.chat.server import PAGE


@pytest.mark.slow
def test_the_page_gets_its_answers_here_and_its_policy_lets_it_work():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None or not PAGE.is_dir():
        pytest.skip("needs Chromium and nanochat/chat/page/")
    complaints: list[str] = []
    with Running(*SAYS_SUM, hosts=["127.0.0.1"]) as running, playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(running.url)
        page.fill("#question", "What is 1 + 2?")
        page.keyboard.press("Enter")
        page.get_by_text("tokens/s").wait_for(timeout=30_000)
        said = page.inner_text("main")
        page.goto(f"{running.url}/docs")
        browser.close()
    assert "1+2" in said and "3" in said and said.index("S:") < said.index("1+2") < said.index("!")
    assert complaints == []
