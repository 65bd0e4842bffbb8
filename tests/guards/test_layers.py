"""Imports go down only, heavy packages are imported only where the design allows it, and all are declared."""

import ast
import importlib.metadata
import re
import subprocess
import sys

import pytest
from source_tree import ROOT, imports_of, module_of, package_files, tree_of, where

# From the bottom to the top; a module may import modules of its own row and of the rows below it.
# A package stands for its modules; the longest name that fits counts.
ROWS: tuple[tuple[str, ...], ...] = (
    ("genrec.errors", "genrec.overrides"),
    (
        "genrec.config_errors",
        "genrec.config_neutral",
        "genrec.config_secrets",
        "genrec.config_workers",
        "genrec.cpu_op",
        "genrec.doctor",
        "genrec.file_lock",
        "genrec.log_lines",
        "genrec.machine_facts",
        "genrec.whole_file",
    ),
    (
        "genrec.config",
        "genrec.config_cluster",
        "genrec.config_data",
        "genrec.config_engine",
        "genrec.config_heads",
        "genrec.config_losses",
        "genrec.config_models",
        "genrec.config_semantic",
        "genrec.config_sequences",
        "genrec.config_optimizer",
        "genrec.data.schema",
    ),
    (
        "genrec.run_dir",
        "genrec.storage",
        "genrec.stored_folder",
        "genrec.data",
        "genrec.evaluation.metrics",
        "genrec.evaluation.rank_counts",
        "genrec.bench.result",
    ),
    ("genrec.semantic",),
    ("genrec.models", "genrec.losses"),
    ("genrec.evaluation",),
    (
        "genrec.evaluation.run_evaluation",
        "genrec.training",
        "genrec.planning",
        "genrec.reporting",
        "genrec.inference",
        # What makes a map reads exports and writes pages; what reads one is below the models.
        "genrec.semantic.extend",
        "genrec.semantic.map_folder",
        "genrec.semantic.tokenize",
        "genrec.semantic.vectors",
    ),
    ("genrec.cluster",),
    ("genrec.bench", "genrec.tuning"),
    ("genrec.launch",),
    (
        "genrec.__main__",
        "genrec.cli",
        "genrec.cli_bench",
        "genrec.cli_checkpoints",
        "genrec.cli_compare",
        "genrec.cli_options",
        "genrec.cli_plan",
        "genrec.cli_report",
        "genrec.cli_submit",
        "genrec.cli_tokenize",
        "genrec.cli_tune",
        "genrec",
    ),
)
ROW_OF = {name: number for number, row in enumerate(ROWS) for name in row}

# Packages of one row that know nothing of each other.
STRANGERS = (
    ("genrec.reporting", ("genrec.training", "genrec.inference", "genrec.models", "genrec.cluster")),
    ("genrec.models", ("genrec.config_errors", "genrec.config_workers", "genrec.run_dir")),
)

RAY_MODULES = re.compile(
    r"genrec\.(data\.prepare\w*|data\.ray_\w+|inference\.batch|bench\.ray_\w+|semantic\.ray_\w+|tuning\.ray_\w+|launch\.ray_\w+|cluster(\..*)?)$"
)
DEEPSPEED_MODULES = re.compile(r"genrec\.training\.(deepspeed_setup|engine|universal)$")
# Must start fast, and work where torch is broken.
TORCH_FREE_MODULES = re.compile(r"genrec(\.(errors|overrides|config\w*|cpu_op|doctor|run_dir|cli\w*|reporting\..*))?$")


def _entry(module: str) -> str | None:
    """The longest entry of the rows that covers a module."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in ROW_OF and (name != "genrec" or length == len(parts)):
            return name
    return None


def test_every_module_has_a_row() -> None:
    homeless = [module_of(path) for path in package_files() if _entry(module_of(path)) is None]
    assert not homeless, f"give these modules a row in {__file__}: {homeless}"


def test_imports_go_down() -> None:
    known = {module_of(path) for path in package_files() if path.name != "__init__.py"}
    wrong, num_imports = [], 0
    for path in package_files():
        importer = module_of(path)
        row = ROW_OF[_entry(importer) or "genrec"]
        for module, _, line in imports_of(path):
            # Packages are empty (tested below), so only modules carry anything upwards.
            if module not in known or module == importer:
                continue
            num_imports += 1
            if ROW_OF[_entry(module) or "genrec"] > row:
                wrong.append(f"{where(path, line)} imports {module}, which is above {importer}")
            for name, others in STRANGERS:
                if importer.startswith(name) and module.startswith(others):
                    wrong.append(f"{where(path, line)}: {name} must not know {module}")
    assert num_imports > 0
    assert not wrong, "\n".join(wrong)


def test_packages_hold_a_docstring_only() -> None:
    inits = [path for path in package_files() if path.name == "__init__.py" and module_of(path) != "genrec"]
    assert inits
    for path in inits:
        assert ast.get_docstring(tree_of(path)), f"{where(path, 1)}: say what the package is for"
        assert len(tree_of(path).body) == 1, f"{where(path, 1)}: import from the module itself, not through its package"


@pytest.mark.parametrize(
    ("package", "allowed", "inside_functions_only"),
    [("ray", RAY_MODULES, False), ("deepspeed", DEEPSPEED_MODULES, True)],
)
def test_heavy_imports(package: str, allowed: re.Pattern[str], inside_functions_only: bool) -> None:
    wrong, num_imports = [], 0
    for path in package_files():
        for module, inside_function, line in imports_of(path):
            if module.split(".")[0] != package:
                continue
            num_imports += 1
            if not allowed.match(module_of(path)):
                wrong.append(f"{where(path, line)} imports {package}, which only {allowed.pattern} may")
            elif inside_functions_only and not inside_function:
                wrong.append(f"{where(path, line)} imports {package} outside a function")
    assert num_imports > 0, f"nothing imports {package}: is this guard still looking at the right place?"
    assert not wrong, "\n".join(wrong)


def test_torch_is_not_imported_at_the_top_of_light_modules() -> None:
    light = [path for path in package_files() if TORCH_FREE_MODULES.match(module_of(path))]
    assert light
    wrong = [
        where(path, line)
        for path in light
        for module, inside_function, line in imports_of(path)
        if module.split(".")[0] == "torch" and not inside_function
    ]
    assert not wrong, f"import torch inside the function that needs it: {wrong}"


@pytest.mark.parametrize("module", ["genrec", "genrec.config", "genrec.doctor", "genrec.cli"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{'torch', 'ray', 'deepspeed'}} & sys.modules.keys()))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.split() == [], f"import {module} loads {shown.stdout}"


def test_imported_packages_are_declared() -> None:
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    declared = {name.lower() for name in re.findall(r'^\s+"([A-Za-z][\w-]*)', setup, flags=re.MULTILINE)}
    assert {"torch", "ray", "deepspeed"} <= declared
    # The second halves of packages that are declared.
    declared |= {"pydantic_core", "markupsafe"}
    homes = importlib.metadata.packages_distributions()
    found = {module.split(".")[0] for path in package_files() for module, _, _ in imports_of(path)}
    found -= {"genrec", *sys.stdlib_module_names}
    assert found
    undeclared = [top for top in found if not {name.lower() for name in homes.get(top, [top])} & declared]
    assert not undeclared, f"setup.py does not ask for what the package imports: {sorted(undeclared)}"
