"""The drawing of the house holds: imports go one way, the two applications do not know each other, configurations know no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A module may import from rows above its own, and from its own row.
ROWS = [
    {
        "errors",
        "files",
        "interrupts",
        "launch",
        "memory",
        "progress",
        "config",
        "tensors",
        "arrays",
        "unpickling",
        "grids",
        "pictures",
        "image_sets",
        "sharding",
    },
    {"settings", "operators", "noise", "noise_level", "foreign", "solvers", "nn"},
    {"observations", "denoiser", "augmentation"},
    {"compute", "distributed"},
    {"objectives", "sampling", "posterior", "metrics"},
    {"distillation", "consistency", "theory", "checkpoints"},
    {"tracking"},
    {"logs"},
    {"training", "jobs"},
    {"domain"},
    {"ahead", "steps", "runs", "generation", "samples", "teachers", "importing", "restoring"},
    {"selection_table", "report_charts", "report_images", "report_tables", "reporting"},
    {"evaluation"},
    {"evaluating", "selection"},
    {"pipeline", "page_parts", "page_images", "pages"},
    {"baselines"},
    {"cli"},
    {"verbs"},
]
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row}
DOMAIN = RANK["domain"]


def imported(path):
    """The modules of the project that a file imports, as dotted names."""
    package = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in ("rsdmri", "rsdmri_natural"))
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level]) if node.level else []
            module = [*base, *(node.module.split(".") if node.module else [])]
            if module[:1] not in (["rsdmri"], ["rsdmri_natural"]):
                continue
            if len(module) == 1 or module in (["rsdmri", "mri"],):
                yield from (".".join([*module, alias.name]) for alias in node.names)
            else:
                yield ".".join(module)


def files(folder):
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", [p for p in files("rsdmri") if p.parent.name != "mri" and p.name != "__init__.py"], ids=str)
def test_the_engine_imports_upwards_only(path):
    inside = path.relative_to(ROOT / "rsdmri").parts
    own = inside[0].removesuffix(".py")
    for name in imported(path):
        parts = name.split(".")
        assert parts[0] == "rsdmri", f"the engine must not know {name}"
        assert parts[1] != "mri", f"the engine must not know {name}"
        assert RANK[parts[1]] <= RANK[own], f"{own} imports {parts[1]}, which stands above it"


@pytest.mark.parametrize("path", files("rsdmri/mri") + files("rsdmri_natural"), ids=str)
def test_applications_use_the_engine_up_to_domain(path):
    other = "rsdmri_natural" if "mri" in path.parts[-2:-1] else "rsdmri.mri"
    for name in imported(path):
        assert not name.startswith(other), f"{path.name} imports the other application: {name}"
        parts = name.split(".")
        if parts[0] == "rsdmri" and parts[1] != "mri" and path.name != "__main__.py":
            assert RANK[parts[1]] <= DOMAIN, f"{path.name} imports {name}"


def test_every_module_has_a_row():
    known = {p.relative_to(ROOT / "rsdmri").parts[0].removesuffix(".py") for p in files("rsdmri")}
    assert known - {"__init__", "mri"} == set(RANK)


def loaded(code, *modules):
    """Which of ``modules`` are imported after ``code`` ran in a fresh interpreter."""
    script = f"import sys\n{code}\nprint([m for m in {modules!r} if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("module", ["rsdmri.config", "rsdmri.mri.config", "rsdmri_natural.config", "rsdmri.settings"])
def test_configurations_know_no_torch(module):
    assert loaded(f"import {module}", "torch", "sigpy", "monai", "fastmri") == "[]"


def test_the_training_core_needs_few_packages():
    heavy = ("sigpy", "fastmri", "monai", "skimage", "pydantic", "tyro", "pywt", "yaml")
    code = "import rsdmri.training, rsdmri.steps, rsdmri.distillation, rsdmri.generation, rsdmri.mri.domain"
    assert loaded(code, *heavy) == "[]"
