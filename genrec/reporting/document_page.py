"""A report as one HTML page that needs no other file."""

from pathlib import Path

from markupsafe import Markup

from genrec.errors import RunError
from genrec.reporting.document import Document
from genrec.reporting.page import TEMPLATES, render_page
from genrec.run_dir import write_atomically


def document_page(document: Document) -> str:
    """The page, with the one script that sorts tables and opens folded parts for the printer; it reads well without."""
    script = Markup((TEMPLATES / "page.js").read_text(encoding="utf-8"))
    titles = [(section.id, section.title) for section in document.sections]
    navigation = [("summary", "Summary"), *titles] if document.summary else titles
    return render_page("document.html", document=document, navigation=navigation, script=script)


def write_file(path: Path, text: str, option: str) -> None:
    """Replaces a file by `text`; raises RunError when it cannot be written: `option` gives another one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}); choose another file with {option}.") from error
