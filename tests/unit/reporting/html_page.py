"""A written page, parsed, and what every page must be: whole, self-contained, accessible."""

import re
from html.parser import HTMLParser
from itertools import pairwise

VOID = {"meta", "link", "br", "wbr", "img", "input", "hr"}


class Page(HTMLParser):
    """The elements of a page; raises AssertionError where tags do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.html = text
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "script"):
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        """Everything that is read, on one line."""
        return " ".join(" ".join(self.texts).split())


def check_self_contained(page: Page, *, with_script: bool = False) -> None:
    """The page names no other file, its links lead to its own parts, and it has no script unless it may."""
    assert "http://" not in page.html
    assert "https://" not in page.html
    assert "@import" not in page.html
    assert not re.search(r"url\((?!#)", page.html)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [value for _, attributes in page.elements for key, value in attributes.items() if key == "href"]
    assert targets
    assert all(target and target.startswith("#") and target[1:] in ids for target in targets)
    assert not any("src" in attributes for _, attributes in page.elements)
    assert len(page.all("script")) == with_script
    assert not {"link", "iframe", "img", "object"} & {tag for tag, _ in page.elements}


def check_accessible(page: Page) -> None:
    """Headings step down one by one, charts have names, wide tables can be scrolled with the keyboard."""
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(deeper - level <= 1 for level, deeper in pairwise(levels))
    assert page.all("html")[0]["lang"] == "en"
    assert page.all("meta")[1]["name"] == "viewport"
    assert all(svg["role"] == "img" and len(svg["aria-label"] or "") > 40 for svg in page.all("svg"))
    scrollers = [attributes for attributes in page.all("div") if "scroll" in (attributes.get("class") or "").split()]
    assert scrollers
    assert all(
        scroller["tabindex"] == "0" and (scroller.get("aria-label") or scroller.get("aria-labelledby"))
        for scroller in scrollers
    )
    assert all("scope" in attributes for attributes in page.all("th"))
