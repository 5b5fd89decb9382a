"""The package's outside: metadata, entry points, pins, and the decisions of scripts/dev.py."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
VERBS = (
    "simulate",
    "check",
    "espirit",
    "reconstruct",
    "prepare",
    "pretrain",
    "distill",
    "sample",
    "evaluate",
    "report",
    "import",
    "em",
    "restore",
)
NEEDED = {
    *("torch", "numpy", "scipy", "h5py", "safetensors", "sigpy", "fastmri", "requests", "monai", "einops"),
    *("scikit-image", "pywavelets", "pydantic", "tyro", "pyyaml", "jinja2", "pillow"),
}


def load_dev() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dev", ROOT / "scripts" / "dev.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


dev = load_dev()


def name_of(requirement: str) -> str:
    return re.split(r"[\s<>=!~\[;]", requirement, maxsplit=1)[0].lower()


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE))


# ------------------------------------------------------------------ metadata


def test_citation_has_what_the_format_requires():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert (citation["title"], str(citation["version"])) == (PROJECT["name"], PROJECT["version"])
    assert citation["license"] == PROJECT["license"]
    identifiers = [paper["identifiers"][0]["value"] for paper in citation["references"]]
    assert identifiers == ["arXiv:2505.13377", "arXiv:2503.07578"]
    for entry in [citation, *citation["references"]]:
        assert entry["title"]
        assert all("name" in author or "family-names" in author for author in entry["authors"])


def test_changelog_names_the_version():
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_verb_is_a_program_of_its_own():
    assert set(PROJECT["scripts"]) == {"rsdmri", "rsdmri-natural", *(f"rsdmri-{v}" for v in VERBS)}


@pytest.mark.parametrize("name", PROJECT["scripts"])
def test_entry_point_resolves_to_a_callable(name):
    module, _, attribute = PROJECT["scripts"][name].partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))


def test_every_needed_package_is_declared_and_pinned():
    declared = {name_of(requirement) for requirement in PROJECT["dependencies"]}
    assert declared >= NEEDED
    pinned = {name.lower() for name in pins(CONSTRAINTS)}
    tools = {name_of(tool) for extra in PROJECT["optional-dependencies"].values() for tool in extra}
    assert declared | (tools - {"rsdmri"}) <= pinned


@pytest.mark.parametrize("name", ["lightning", "pytorch-lightning"])
def test_malicious_releases_are_barred(name):
    assert f"\n{name}!=2.6.2,!=2.6.3\n" in CONSTRAINTS


# ------------------------------------------------------------------ scripts/dev.py


def test_an_old_python_reaches_the_line_that_says_so():
    source = (ROOT / "scripts" / "dev.py").read_text(encoding="utf-8")
    body = ast.parse(source, feature_version=(3, 6)).body
    check = next(i for i, node in enumerate(body) if "version_info" in ast.unparse(node))
    assert isinstance(body[check], ast.If)
    # What stands before it must run on that Python: no def, whose annotations would be evaluated.
    assert all(isinstance(node, ast.Expr | ast.Import | ast.ImportFrom | ast.Assign) for node in body[:check])


def test_dev_py_uses_the_standard_library_alone():
    tree = ast.parse((ROOT / "scripts" / "dev.py").read_text(encoding="utf-8"))
    imported = {
        (alias.name if isinstance(node, ast.Import) else node.module).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported <= sys.stdlib_module_names


def test_dev_py_reads_its_pins_from_the_constraints():
    for name in ("torch", "torchvision"):
        assert dev.pin(name) == f"{name}=={pins(CONSTRAINTS)[name]}"
    assert not re.search(r"==\d+\.", (ROOT / "scripts" / "dev.py").read_text(encoding="utf-8"))
    with pytest.raises(SystemExit, match="pins no nonesuch"):
        dev.pin("nonesuch")


@pytest.mark.parametrize("build", ["", "+cpu", "+cu130"])
def test_the_pinned_torch_is_kept_in_any_build(build):
    assert dev.keeps_torch(pins(CONSTRAINTS)["torch"] + build, own=True)


def test_another_torch_is_kept_only_in_an_environment_of_somebody_else():
    assert not dev.keeps_torch("2.11.0+cu130", own=True)
    assert dev.keeps_torch("2.11.0+cu130", own=False)
    assert not dev.keeps_torch(None, own=True)
    assert not dev.keeps_torch(None, own=False)


@pytest.mark.parametrize(
    ("platform", "nvidia", "cpu_index"),
    [("linux", False, True), ("linux", True, False), ("darwin", False, False), ("win32", False, False)],
)
def test_order_of_the_ways_to_torch(platform, nvidia, cpu_index):
    torch, torchvision = dev.pin("torch"), dev.pin("torchvision")
    first, *middle, last = dev.torch_commands(platform, nvidia)
    assert first == ["--no-index", "--no-deps", torch]
    assert middle == [["--index-url", dev.CPU_INDEX, torch, torchvision]] * cpu_index
    assert last == [torch]


def test_constraints_leave_alone_what_somebody_else_installed():
    original = pins(CONSTRAINTS)
    kept = dev.constraints_beside("2.11.0+cu130", frozenset({"torch", "numpy", "pyyaml"}))
    expected = {name: version for name, version in original.items() if name not in ("numpy", "PyYAML", "torchvision")}
    assert pins(kept) == expected | {"torch": "2.11.0"}
    assert "\nlightning!=2.6.2,!=2.6.3\n" in kept


def test_constraints_of_an_empty_environment_are_the_file():
    assert pins(dev.constraints_beside(None, frozenset())) == pins(CONSTRAINTS)


def test_stamp_changes_with_either_file_and_with_the_folder(tmp_path, monkeypatch):
    def stamp(folder: str, pyproject: str, constraints: str) -> str:
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        (root / "pyproject.toml").write_text(pyproject)
        (root / "constraints.txt").write_text(constraints)
        monkeypatch.setattr(dev, "ROOT", root)
        return dev.stamp()

    cases = [("a", "p", "c"), ("a", "p2", "c"), ("a", "p", "c2"), ("b", "p", "c"), ("a", "pc", "")]
    assert len({stamp(*case) for case in cases}) == len(cases)
    assert stamp(*cases[0]) == stamp(*cases[0])


def test_environment_is_dot_venv_or_the_one_named(tmp_path, monkeypatch):
    monkeypatch.setenv("RSDMRI_VENV", "")
    assert dev.environment() == ROOT / ".venv"
    monkeypatch.setenv("RSDMRI_VENV", str(tmp_path))
    assert dev.environment() == tmp_path.resolve()


def test_a_named_environment_is_never_made(tmp_path, monkeypatch):
    monkeypatch.setenv("RSDMRI_VENV", str(tmp_path / "missing"))
    with pytest.raises(SystemExit, match="RSDMRI_VENV"):
        dev.set_up(dev.environment())
    assert not (tmp_path / "missing").exists()


def test_debian_without_venv_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.delenv("RSDMRI_VENV", raising=False)
    monkeypatch.setattr(dev.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="apt install python3-venv"):
        dev.make_environment(tmp_path / ".venv")
    assert not (tmp_path / ".venv").exists()


def test_inspect_sees_this_environment():
    torch, names = dev.inspect(Path(sys.executable))
    assert torch == importlib.import_module("torch").__version__
    assert {"torch", "pytest-xdist", "scikit-image"} <= names


def test_a_failed_stage_shows_the_end_of_its_log(tmp_path):
    log = tmp_path / "log"
    assert not dev.run([sys.executable, "-c", "print('no space left'); raise SystemExit(3)"], log)
    with pytest.raises(SystemExit, match=r"(?s)no space left.*installing failed"):
        dev.fail("installing failed", log)


def test_unknown_verb_shows_the_verbs():
    command = [sys.executable, str(ROOT / "scripts" / "dev.py"), "tset"]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 2
    assert all(verb in answer.stdout for verb in dev.VERBS)


def test_make_targets_are_dev_verbs():
    (targets,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(targets.split()) == {*dev.VERBS, "clean"}
