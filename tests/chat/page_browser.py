"""Fixtures of the chat page's tests: a browser, a scripted server, a tab that watches itself."""

import shutil
from dataclasses import dataclass, field

import pytest
from page_server import PageServer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


@dataclass
class Tab:
    """One page of the chat on a scripted server. What went wrong in it is in `problems`."""

    page: object
    server: PageServer
    problems: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)  # parts of problems that a test provokes

    def on_console(self, line) -> None:
        if line.type in ("error", "warning"):
            self.problems.append(f"console: {line.text}")

    def on_request(self, request) -> None:
        origin = self.server.url.rstrip("/")
        own = (f"{origin}/", "data:image/svg+xml", f"blob:{origin}", "about:blank")
        if not request.url.startswith(own):
            self.problems.append(f"request: {request.url[:200]}")

    def on_dialog(self, dialog) -> None:
        self.problems.append("dialog")
        dialog.dismiss()

    def on_error(self, error) -> None:
        self.problems.append(f"error: {error}")

    def on_popup(self, popup) -> None:
        self.problems.append(f"popup: {popup.url}")

    def watchers(self) -> dict:
        return {
            "console": self.on_console,
            "request": self.on_request,
            "dialog": self.on_dialog,
            "pageerror": self.on_error,
            "popup": self.on_popup,
        }

    def watch(self) -> None:
        for event, watcher in self.watchers().items():
            self.page.on(event, watcher)

    def leave(self) -> None:
        """Empties the page, which another test may use, and stops watching it."""
        self.page.goto("about:blank")
        self.page.unroute_all()
        for event, watcher in self.watchers().items():
            self.page.remove_listener(event, watcher)

    def unexpected(self) -> list[str]:
        return [p for p in self.problems if not any(part in p for part in self.expected)]

    def open(self) -> "Tab":
        self.page.goto(self.server.url)
        self.page.wait_for_selector("#examples button")
        return self

    def ask(self, text: str, *pieces, **settings) -> None:
        """Types a question that the server will answer with `pieces`, and sends it."""
        if pieces or settings:
            self.server.answer(*pieces, **settings)
        self.page.fill("#question", text)
        self.page.press("#question", "Enter")

    def wait(self, number: int) -> None:
        """Until `number` answers are on screen and none is being written."""
        self.page.wait_for_function(
            "n => document.querySelectorAll('.assistant').length === n &&"
            " !document.querySelector('[aria-busy=true]')",
            arg=number,
        )

    def answered(self, text: str, *pieces, **settings) -> None:
        before = self.page.locator(".assistant").count()
        self.ask(text, *pieces, **settings)
        self.wait(before + 1)

    def answers(self) -> list[str]:
        return self.page.locator(".assistant .parts").all_inner_texts()

    def questions(self) -> list[str]:
        return self.page.locator(".bubble").all_inner_texts()

    def titles(self) -> list[str]:
        return self.page.locator("#conversations .title").all_inner_texts()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs Debian's chromium (apt-get install chromium), which is not here")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def server():
    with PageServer() as running:
        yield running


@pytest.fixture
def new_tab(browser, server):
    """Opens tabs in contexts of their own (another profile each); checks all of them at the end."""
    tabs = []

    def open_tab(context=None, **options) -> Tab:
        settings = {"viewport": {"width": 1200, "height": 800}, "locale": "en", **options}
        context = context or browser.new_context(**settings)
        context.set_default_timeout(15000)
        tab = Tab(context.new_page(), server)
        tab.watch()
        tabs.append(tab)
        return tab.open()

    yield open_tab
    for tab in tabs:
        tab.page.context.close()
    assert [problem for tab in tabs for problem in tab.unexpected()] == []


@pytest.fixture(scope="module")
def shared_page(browser):
    page = browser.new_page(viewport={"width": 1200, "height": 800}, locale="en")
    page.set_default_timeout(15000)
    return page


@pytest.fixture
def tab(shared_page, server):
    """A tab with empty storage: the page is shared, but every test's server has its own port."""
    tab = Tab(shared_page, server)
    tab.watch()
    yield tab.open()
    tab.leave()
    assert tab.unexpected() == []
