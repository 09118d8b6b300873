"""The pages in a real browser: nothing is fetched, nothing complained of, they fit a phone. Skipped without one."""

import shutil
from pathlib import Path

import pytest
from reported import command, images, texts

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")

NOT_DRAWN = """
[...document.querySelectorAll("figure > svg, img")].filter(drawn => {
  const box = drawn.getBoundingClientRect();
  return box.width < 40 || box.height < 40 || (drawn.tagName === "IMG" && !drawn.naturalWidth);
}).map(drawn => drawn.parentElement.id || drawn.alt)
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory, tiny) -> dict[str, Path]:
    """One page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    one, two, seen = texts(folder, tiny), texts(folder, tiny, "other", "--seed", "1"), images(folder)
    found = {"report": one / "report.html", "images": seen / "report.html", "compare": folder / "compare.html"}
    for words in (["report", one], ["report", seen], ["compare", one, two, "--out", found["compare"]]):
        result = command(*words)
        assert result.code == 0, result.err
    return found


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield launched
        launched.close()


class Opened:
    """A page in a window of its own, with all that it asked for and said."""

    def __init__(self, browser, file: Path, width: int, height: int, **options):
        self.context = browser.new_context(viewport={"width": width, "height": height}, **options)
        self.page, self.said, self.asked = self.context.new_page(), [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()


KINDS = ("report", "images", "compare")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_it_opens_quietly_draws_every_figure_and_fits(browser, pages, kind, width, height):
    with Opened(browser, pages[kind], width, height) as opened:
        assert opened.said == []
        assert [url for url in opened.asked if not url.startswith("data:")] == [pages[kind].as_uri()]
        assert opened.page.locator("figure").count() >= 5
        assert opened.page.evaluate(NOT_DRAWN) == []
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width


def test_text_of_figures_is_legible_on_a_phone(browser, pages):
    smallest = (
        "Math.min(...[...document.querySelectorAll('figure#loss svg text')].map(t => t.getBoundingClientRect().height))"
    )
    with Opened(browser, pages["report"], 390, 844) as opened:
        assert opened.page.evaluate(smallest) >= 9


def test_dark_and_light(browser, pages):
    colours = {}
    for scheme in ("light", "dark"):
        with Opened(browser, pages["report"], 1280, 900, color_scheme=scheme) as opened:
            colours[scheme] = opened.page.evaluate(
                "['body', 'figure#loss svg text'].map((name, at) => "
                "getComputedStyle(document.querySelector(name))[at ? 'fill' : 'backgroundColor'])"
            )
    assert colours["light"][0] == "rgb(255, 255, 255)"
    back, text = ([int(part) for part in colour[4:-1].split(",")] for colour in colours["dark"])
    assert max(back) < 60
    assert min(text) > 180


def test_the_csv_is_saved_and_a_table_is_sorted(browser, pages, tmp_path):
    with Opened(browser, pages["report"], 1280, 900) as opened:
        with opened.page.expect_download() as waiting:
            opened.page.click("figure#loss a.data")
        waiting.value.save_as(tmp_path / "loss.csv")
        assert (tmp_path / "loss.csv").read_text().startswith("curve,step,value\ntrain,1,")
        table = opened.page.locator("table.sortable").first
        head = table.locator("th", has_text="f1")
        column = "rows => rows.map(row => +row.cells[4].textContent)"
        for order in ("descending", "ascending"):
            head.locator("button").click()
            assert head.get_attribute("aria-sort") == order
            values = table.locator("tbody tr").evaluate_all(column)
            assert values == sorted(values, reverse=order == "descending")
        assert opened.said == []


def test_it_is_whole_without_scripts_and_prints_light(browser, pages):
    with Opened(browser, pages["report"], 1280, 900, java_script_enabled=False, color_scheme="dark") as opened:
        assert opened.page.locator("figure").first.is_visible()
        opened.page.emulate_media(media="print")
        assert not opened.page.locator("nav").is_visible()
        assert opened.page.pdf().startswith(b"%PDF")
