"""The package's outside: metadata, entry points, pins, and the decisions of scripts/dev.py."""

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
NEEDED = """torch numpy scipy h5py safetensors sigpy fastmri requests monai einops scikit-image
            pywavelets pydantic tyro pyyaml rich jinja2 pillow""".split()
VERBS = "simulate espirit prepare pretrain distill sample evaluate report".split()


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
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
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
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_verb_is_a_program_of_its_own():
    assert set(PROJECT["scripts"]) == {"rsdmri", "rsdmri-natural", *(f"rsdmri-{v}" for v in VERBS)}


@pytest.mark.parametrize("name", PROJECT["scripts"])
def test_entry_point_resolves_to_a_callable(name):
    module, _, attribute = PROJECT["scripts"][name].partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))


def test_every_needed_package_is_declared_and_pinned():
    declared = {name_of(requirement) for requirement in PROJECT["dependencies"]}
    assert declared == set(NEEDED)
    pinned = {name.lower() for name in pins(CONSTRAINTS)}
    tools = {name_of(tool) for extra in PROJECT["optional-dependencies"].values() for tool in extra}
    assert declared | (tools - {"rsdmri"}) <= pinned


@pytest.mark.parametrize("name", ["lightning", "pytorch-lightning"])
def test_malicious_releases_are_barred(name):
    assert f"\n{name}!=2.6.2,!=2.6.3\n" in CONSTRAINTS


# ------------------------------------------------------------------ scripts/dev.py


def test_an_old_python_can_parse_dev_py_and_say_that_it_is_too_old():
    ast.parse((ROOT / "scripts" / "dev.py").read_text(), feature_version=(3, 6))


def test_dev_py_uses_the_standard_library_alone():
    tree = ast.parse((ROOT / "scripts" / "dev.py").read_text())
    imported = {
        (alias.name if isinstance(node, ast.Import) else node.module).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported <= sys.stdlib_module_names


def test_dev_py_reads_its_pins_from_the_constraints():
    for name in ("torch", "torchvision"):
        assert dev.pin(CONSTRAINTS, name) == pins(CONSTRAINTS)[name]
    assert not re.search(r"==\d", (ROOT / "scripts" / "dev.py").read_text())
    with pytest.raises(dev.SetupError, match="nonesuch==VERSION"):
        dev.pin(CONSTRAINTS, "nonesuch")


@pytest.mark.parametrize(
    ("torch", "own", "kept"),
    [
        (None, True, False),
        (None, False, False),
        ("2.13.0+cpu", True, True),
        ("2.13.0", True, True),
        ("2.12.1", True, False),  # the pin has moved: .venv follows
        ("2.11.0+cu130", False, True),  # a cluster's own build stays
    ],
)
def test_which_torch_is_kept(torch, own, kept):
    assert dev.keeps_torch(torch, own, "2.13.0") is kept


@pytest.mark.parametrize(
    ("system", "nvidia", "cpu_index"),
    [
        ("Linux", False, True),
        ("Linux", True, False),
        ("Darwin", False, False),
        ("Windows", False, False),
    ],
)
def test_order_of_the_ways_to_torch(system, nvidia, cpu_index):
    text = "torch==2.13.0\ntorchvision==0.28.0\n"
    first, *middle, last = dev.torch_steps(text, system, nvidia)
    assert first.pip == ("--no-index", "--no-deps", "torch==2.13.0")
    expected = ("--index-url", dev.PYTORCH_CPU_INDEX, "torch==2.13.0", "torchvision==0.28.0")
    assert [step.pip for step in middle] == [expected] * cpu_index
    assert last.pip == ("torch==2.13.0",)


def test_constraints_for_an_environment_of_someone_else():
    names = frozenset({"torch", "numpy", "pyyaml"})
    kept = dev.kept_constraints(CONSTRAINTS, names, "2.11.0+cu130")
    original = pins(CONSTRAINTS)
    dropped = {"numpy", "PyYAML", "torchvision"}
    expected = {name: version for name, version in original.items() if name not in dropped}
    assert pins(kept) == expected | {"torch": "2.11.0"}
    assert "\nlightning!=2.6.2,!=2.6.3\n" in kept


def test_constraints_for_an_empty_environment_are_the_file():
    kept = dev.kept_constraints(CONSTRAINTS, frozenset(), None)
    assert pins(kept) == pins(CONSTRAINTS)


def test_stamp_changes_with_either_file_and_with_the_folder(tmp_path):
    def checkout(name: str, pyproject: str, constraints: str) -> Path:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "pyproject.toml").write_text(pyproject)
        (tmp_path / name / "constraints.txt").write_text(constraints)
        return tmp_path / name

    first = dev.stamp(checkout("a", "p", "c"))
    assert first == dev.stamp(tmp_path / "a")
    changed = [("a", "p2", "c"), ("a", "p", "c2"), ("b", "p", "c"), ("a", "pc", "")]
    assert len({first, *(dev.stamp(checkout(*case)) for case in changed)}) == 5


def test_environment_is_dot_venv_or_the_one_named(tmp_path):
    assert dev.choose_environment(tmp_path, None) == (tmp_path / ".venv", True)
    assert dev.choose_environment(tmp_path, "") == (tmp_path / ".venv", True)
    named = dev.choose_environment(tmp_path, str(tmp_path / "mine"))
    assert named == (tmp_path / "mine", False)
    inside = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    assert named.python == tmp_path / "mine" / inside


def test_a_named_environment_is_never_made(tmp_path):
    with pytest.raises(dev.SetupError, match="RSDMRI_VENV"):
        dev.make_venv(dev.Environment(tmp_path / "missing", own=False))
    assert not (tmp_path / "missing").exists()


def test_debian_without_venv_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(dev.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(dev.SetupError, match="apt install python3-venv"):
        dev.make_venv(dev.Environment(tmp_path / ".venv", own=True))


def test_a_failed_stage_shows_the_end_of_its_log(tmp_path):
    log = tmp_path / "log"
    loud = [sys.executable, "-c", "print('no space left'); raise SystemExit(3)"]
    succeeded = dev.run_logged(loud, log)
    assert not succeeded
    with pytest.raises(dev.SetupError, match="(?s)installing failed.*no space left"):
        dev.require(succeeded, "installing", log)


def test_verbs_pass_their_options_on():
    assert dev.commands("demo", ["--quick"]) == [["scripts/demo.py", "--quick"]]
    (fast,) = dev.commands("test", ["-k", "fft"])
    (everything,) = dev.commands("test-all", ["-k", "fft"])
    assert fast[-4:] == ["-m", "not slow", "-k", "fft"]
    assert everything == [part for part in fast if part not in ("not slow",)][:-3] + ["-k", "fft"]
    assert [command[1] for command in dev.commands("lint", [])] == ["ruff", "ruff", "mypy"]


def test_hint_names_a_newer_python_where_there_is_one(monkeypatch):
    monkeypatch.setattr(dev.shutil, "which", lambda name: name if name == "python3.12" else None)
    assert "make PYTHON=python3.12" in dev.python_hint()
    monkeypatch.setattr(dev.shutil, "which", lambda name: None)
    assert "module load" in dev.python_hint()


def test_unknown_verb_is_refused():
    command = [sys.executable, str(ROOT / "scripts" / "dev.py"), "tset"]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 2
    assert "invalid choice: 'tset'" in answer.stderr


def test_make_targets_are_dev_verbs():
    (targets,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets.split() == ["demo", "test", "test-all", "lint", "setup", "clean"]
    for verb in set(targets.split()) - {"clean"}:
        dev.commands(verb, [])
