"""Every test file has its own name: pytest imports them by it, and stops at the second of two."""

from collections import defaultdict

from source_tree import ROOT, python_files


def test_names_of_test_files() -> None:
    by_name = defaultdict(list)
    for path in python_files():
        if path.is_relative_to(ROOT / "tests") and path.name not in ("conftest.py", "__init__.py"):
            by_name[path.name].append(str(path.parent.relative_to(ROOT)))
    wrong = [f"{name}: {', '.join(folders)}" for name, folders in by_name.items() if len(folders) > 1]
    assert not wrong, "give each of these files a name of its own:\n" + "\n".join(wrong)
