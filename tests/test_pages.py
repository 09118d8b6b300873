"""The pages in a real browser, if there is one: they fetch nothing, log nothing and fit a phone."""

import shutil
from pathlib import Path

import pytest
from reported import run_ftloop, train_on_images, train_on_texts

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
]

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium: apt-get install chromium"
)

UNDRAWN_FIGURES = """
[...document.querySelectorAll("figure > svg, img")].filter(drawn => {
  const box = drawn.getBoundingClientRect();
  return box.width < 40 || box.height < 40 || (drawn.tagName === "IMG" && !drawn.naturalWidth);
}).map(drawn => drawn.parentElement.id || drawn.alt)
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory, tiny) -> dict[str, Path]:
    """A page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    run = train_on_texts(folder, tiny)
    other = train_on_texts(folder, tiny, "other", "--seed", "1")
    images = train_on_images(folder)
    compare = folder / "compare.html"
    commands = (["report", run], ["report", images], ["compare", run, other, "--out", compare])
    for words in commands:
        result = run_ftloop(*words)
        assert result.code == 0, result.err
    return {"report": run / "report.html", "images": images / "report.html", "compare": compare}


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


class OpenPage:
    """A page in a window of its own, with its requests and everything that it logs."""

    def __init__(self, browser, file: Path, width: int, height: int, **options):
        self.context = browser.new_context(viewport={"width": width, "height": height}, **options)
        self.page = self.context.new_page()
        self.messages, self.requests = [], []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("dialog", lambda dialog: self.messages.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()


@pytest.mark.parametrize("kind", ["report", "images", "compare"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_it_opens_without_messages_draws_every_figure_and_fits(browser, pages, kind, width, height):
    with OpenPage(browser, pages[kind], width, height) as opened:
        assert opened.messages == []
        fetched = [url for url in opened.requests if not url.startswith("data:")]
        assert fetched == [pages[kind].as_uri()]
        assert opened.page.locator("figure").count() >= 5
        assert opened.page.evaluate(UNDRAWN_FIGURES) == []
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width


def test_text_of_figures_is_legible_on_a_phone(browser, pages):
    smallest = (
        "Math.min(...[...document.querySelectorAll('figure#loss svg text')]"
        ".map(text => text.getBoundingClientRect().height))"
    )
    with OpenPage(browser, pages["report"], 390, 844) as opened:
        assert opened.page.evaluate(smallest) >= 9


def test_dark_and_light(browser, pages):
    colours = {}
    script = (
        "['body', 'figure#loss svg text'].map((name, index) => "
        "getComputedStyle(document.querySelector(name))[index ? 'fill' : 'backgroundColor'])"
    )
    for scheme in ("light", "dark"):
        with OpenPage(browser, pages["report"], 1280, 900, color_scheme=scheme) as opened:
            colours[scheme] = opened.page.evaluate(script)
    assert colours["light"][0] == "rgb(255, 255, 255)"
    background, text = (
        [int(part) for part in colour[4:-1].split(",")] for colour in colours["dark"]
    )
    assert max(background) < 60
    assert min(text) > 180


def test_a_csv_can_be_saved_and_a_table_can_be_sorted(browser, pages, tmp_path):
    with OpenPage(browser, pages["report"], 1280, 900) as opened:
        with opened.page.expect_download() as download:
            opened.page.click("figure#loss a.data")
        download.value.save_as(tmp_path / "loss.csv")
        assert (tmp_path / "loss.csv").read_text().startswith("curve,step,value\ntrain,1,")
        table = opened.page.locator("table.sortable").first
        header = table.locator("th", has_text="f1")
        column = "rows => rows.map(row => +row.cells[4].textContent)"
        for order in ("descending", "ascending"):
            header.locator("button").click()
            assert header.get_attribute("aria-sort") == order
            values = table.locator("tbody tr").evaluate_all(column)
            assert values == sorted(values, reverse=order == "descending")
        assert opened.messages == []


def test_it_is_complete_without_scripts_and_prints_in_light_colours(browser, pages):
    options = {"java_script_enabled": False, "color_scheme": "dark"}
    with OpenPage(browser, pages["report"], 1280, 900, **options) as opened:
        assert opened.page.locator("figure").first.is_visible()
        opened.page.emulate_media(media="print")
        assert not opened.page.locator("nav").is_visible()
        assert opened.page.pdf().startswith(b"%PDF")
