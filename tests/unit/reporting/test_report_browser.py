"""The pages in a real browser: they sort, fit a phone, print whole, and ask for nothing."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import EXECUTABLE, Chromium
from fabricated_bench import training_rows, write_bench
from fabricated_run import ENVIRONMENT, complete_records, config_values, evaluation_in_depth, write_run
from test_report_diff import write_evaluated

from genrec.reporting.diff import diff_of
from genrec.reporting.diff_document import diff_document
from genrec.reporting.document_page import document_page
from genrec.reporting.report import report_document
from genrec.reporting.run_report import write_report
from genrec.reporting.sources import read_sources

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium on PATH: the pages are not looked at in a browser"),
]

PAGES = ("bench", "runs", "diff", "run")
WIDER = """[...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll, pre, svg, .skip")
  && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
FIRST_COLUMN = "[...document.querySelector('.sortable').tBodies[0].rows].map(row => row.cells[0].textContent)"
HEAD = ".sortable thead th:nth-child(7)"  # of the first table


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The file of each kind of page."""
    folder = tmp_path_factory.mktemp("pages")
    before = write_bench(folder / "before.json", training_rows(2))
    after = write_bench(folder / "after.json", training_rows(2, faster=0.8))
    runs = [write_evaluated(folder / "a-run-with-quite-a-long-name", 0), write_evaluated(folder / "b", 5)]
    texts = {
        "bench": document_page(report_document([before])),
        "runs": document_page(report_document(runs)),
        "diff": document_page(diff_document(diff_of(read_sources([before, after]), 0.05, strict=False))),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text)
    config = config_values(name="one")
    run = write_run(
        folder / "one", complete_records(600), evaluated=evaluation_in_depth(), environment=ENVIRONMENT, config=config
    )
    write_report(run, folder / "run.html")
    return {name: folder / f"{name}.html" for name in PAGES}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """One browser for all tests: its start takes a second or two."""
    with Chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(autouse=True)
def nothing_noted(browser: Chromium) -> None:
    browser.complaints.clear()
    browser.requests.clear()


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1_200, "dark")])
def test_a_page_fits_and_asks_for_nothing(
    browser: Chromium, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    browser.open(pages[name], width, scheme=scheme)
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value(WIDER) == []
    assert browser.complaints == []
    assert browser.requests == [pages[name].resolve().as_uri()]
    ground = browser.value("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(253, 253, 251)" if scheme == "light" else "rgb(19, 21, 23)")


def test_a_click_sorts_a_table(browser: Chromium, pages: dict[str, Path]) -> None:
    browser.open(pages["bench"], 1_200)
    written = browser.value(FIRST_COLUMN)
    assert browser.value(f"document.querySelector('{HEAD}').textContent") == "Events/s"
    browser.click(f"{HEAD} button")
    rising = browser.value(FIRST_COLUMN)
    assert rising[0] == "zero3-1w"
    assert rising[-3] == "zero0-4w"
    assert set(rising[-2:]) == {"long", "slow"}  # without a value: last, whatever the direction
    assert browser.value(f"document.querySelector('{HEAD}').getAttribute('aria-sort')") == "ascending"
    browser.press_enter()
    falling = browser.value(FIRST_COLUMN)
    assert falling[0] == "zero0-4w"
    assert set(falling[-2:]) == {"long", "slow"}
    assert browser.value(f"document.querySelector('{HEAD}').getAttribute('aria-sort')") == "descending"
    browser.click(".sortable thead th:first-child button")
    assert browser.value(FIRST_COLUMN) == sorted(written)
    assert browser.value("document.querySelectorAll('[aria-sort]').length") == 1
    assert browser.complaints == []


def test_paper_has_no_dark_ground_and_whole_tables(browser: Chromium, pages: dict[str, Path]) -> None:
    browser.open(pages["bench"], 780, scheme="dark", media="print")
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 251)"
    assert browser.value(WIDER) == []
    cut = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert browser.value(cut) == 0
    pdf = base64.b64decode(browser.call("Page.printToPDF")["data"])
    assert pdf.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 8


def test_folded_parts_open_for_the_printer(browser: Chromium, pages: dict[str, Path]) -> None:
    closed = "document.querySelectorAll('details:not([open])').length"
    browser.open(pages["bench"], 1_200)
    before = browser.value(closed)
    assert before > 0
    browser.value("dispatchEvent(new Event('beforeprint')) && 1")
    assert browser.value(closed) == 0
    browser.value("dispatchEvent(new Event('afterprint')) && 1")
    assert browser.value(closed) == before
