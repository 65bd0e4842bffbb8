"""What may hold a pickle is read as plain values only; a new place that reads pickles is found here."""

import ast
import re

import pytest
from source_tree import ROOT, imports_of, module_of, package_files, tree_of, where

# Modules that may speak of pickles, and why that is safe; docs/security.md lists them.
READERS = {
    "genrec.data.saved_tasks": "an unpickler that knows arrays, paths and classes of genrec.data",
    "genrec.training.universal": "names the error that torch raises for a pickle that it refuses",
}
PICKLES = re.compile(r"^(pickle|_pickle|cloudpickle|dill|joblib|shelve|marshal|ray\.cloudpickle)(\.|$)")
SAFE = {"load": {"torch": ("weights_only", True), "np": ("allow_pickle", False), "numpy": ("allow_pickle", False)}}
# Reads DeepSpeed's files; only inside `only_weights()`.
DEEPSPEED_READERS = ("load_checkpoint", "main")


def unsafe_calls(tree: ast.Module) -> list[tuple[int, str]]:
    """(line, what) of every call that reads a pickle, or may."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, owner = node.func.attr, ast.unparse(node.func.value)
        safe = SAFE.get(name, {}).get(owner)
        if safe is not None:
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if given.get(safe[0]) != str(safe[1]):
                found.append((node.lineno, f"{owner}.load without {safe[0]}={safe[1]}"))
        elif name in ("read_pickle", "to_pickle") or (name == "load" and owner.endswith("yaml")):
            found.append((node.lineno, f"{owner}.{name}"))
    return found


def unguarded_deepspeed(tree: ast.Module) -> list[int]:
    """Lines that let DeepSpeed read files outside of `with only_weights()`."""
    guarded = {
        call
        for node in ast.walk(tree)
        if isinstance(node, ast.With) and any("only_weights()" in ast.unparse(item) for item in node.items)
        for call in ast.walk(node)
    }
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", ""))
        in DEEPSPEED_READERS
        and node not in guarded
    ]


def test_nothing_is_read_as_a_pickle() -> None:
    wrong, num_loads = [], 0
    for path in package_files():
        wrong += [f"{where(path, line)}: {what}" for line, what in unsafe_calls(tree_of(path))]
        num_loads += path.read_text(encoding="utf-8").count("weights_only=True")
        wrong += [
            f"{where(path, line)} imports {module}; make it safe and list it in {__file__} and docs/security.md"
            for module, _, line in imports_of(path)
            if PICKLES.match(module) and module_of(path) not in READERS
        ]
    assert num_loads >= 4, "nothing is loaded with weights_only: is this guard still looking at the right place?"
    assert not wrong, "\n".join(wrong)


def test_deepspeed_reads_inside_the_guard_alone() -> None:
    paths = [
        path for path in package_files() if module_of(path) in ("genrec.training.engine", "genrec.training.universal")
    ]
    assert len(paths) == 2
    wrong = [where(path, line) for path in paths for line in unguarded_deepspeed(tree_of(path))]
    assert not wrong, f"DeepSpeed's own loads run what a pickle holds; wrap them in only_weights(): {wrong}"


def test_the_page_on_security_names_every_reader() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    assert all(name.replace(".", "/") + ".py" in page for name in READERS)


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p)",
        "np.load(p, allow_pickle=True)",
        "pd.read_pickle(p)",
    ],
)
def test_the_guard_finds(code: str) -> None:
    assert unsafe_calls(ast.parse(code))


def test_the_guard_lets_safe_reading_pass() -> None:
    assert not unsafe_calls(ast.parse("torch.load(p, weights_only=True); np.load(p, allow_pickle=False); json.load(f)"))
    assert unguarded_deepspeed(ast.parse("engine.load_checkpoint(p)"))
    assert not unguarded_deepspeed(ast.parse("with only_weights():\n    engine.load_checkpoint(p)"))
