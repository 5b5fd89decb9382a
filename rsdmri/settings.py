"""Configurations from files: defaults, then YAML files in their order, then flags.

A named configuration such as ``mri/r4`` is found in the installed package. YAML is read by ``safe_load`` and checked by pydantic
against the dataclasses of ``config``: an unknown key, a wrong type or a broken limit is a :class:`UsageError` that names the file.
"""

import dataclasses
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .config import Experiment, to_tree
from .errors import UsageError, did_you_mean

E = TypeVar("E", bound=Experiment)


def configs_folder() -> Path:
    """Where the named configurations lie: inside an installed package, beside it in a source tree."""
    package = Path(__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def named_configs() -> list[str]:
    """The names of the configurations that come with the package."""
    folder = configs_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def find_config(name: str) -> Path:
    """The file of a configuration that is given as a path or a name."""
    for path in (Path(name), configs_folder() / f"{name}.yaml"):
        if path.is_file():
            return path
    known = named_configs()
    raise UsageError(
        f"--config {name}: no such file or named configuration{did_you_mean(name, known)}. Named: {', '.join(known)}"
    )


def load_experiment(kind: type[E], configs: Sequence[str]) -> E:
    """The experiment that the configurations describe, later ones over earlier ones; checked."""
    tree = to_tree(kind())
    for name in configs:
        path = find_config(name)
        given = read_yaml(path)
        validate(kind, given, str(path))
        tree = merge(tree, given)
    if not tree["name"] and configs:
        tree["name"] = config_name(configs[0])
    return validate(kind, tree, ", ".join(configs) or "defaults")


def config_name(config: str) -> str:
    """``mri/r4`` -> ``mri-r4``; a file's stem for a path outside the package."""
    path = find_config(config)
    folder = configs_folder()
    inside = path.resolve().is_relative_to(folder.resolve())
    return path.resolve().relative_to(folder.resolve()).with_suffix("").as_posix().replace("/", "-") if inside else path.stem


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; nothing in it is executed."""
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: a date or a number that is none
        raise UsageError(f"{path}: not readable YAML ({error})") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UsageError(f"{path}: a mapping of sections is expected, found {type(tree).__name__}")
    return tree


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``base``, section by section."""
    result = dict(base)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge(result[key], value) if nested else value
    return result


def validate(kind: type[E], tree: dict[str, Any], source: str) -> E:
    """The dataclass of a tree; every mistake in it is named, one line each."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        lines = [f"{source}: {_explain(kind, problem)}" for problem in error.errors(include_url=False)]
        raise UsageError("\n".join(lines)) from None


def _explain(kind: type[Any], problem: Any) -> str:
    """One mistake in words, with the nearest known key for an unknown one."""
    place = [str(part) for part in problem["loc"]]
    if problem["type"] == "unexpected_keyword_argument":
        section: Any = kind
        for part in place[:-1]:
            section = typing.get_type_hints(section)[part]
        known = [field.name for field in dataclasses.fields(section)]
        meant = did_you_mean(place[-1], known) or _elsewhere(kind, place[-1])
        return f"unknown key '{'.'.join(place)}'{meant}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{'.'.join(place)}: {message}" if place else message


def _elsewhere(kind: type[Any], word: str) -> str:
    """``" (did you mean 'pretrain.lr'?)"`` where another section has a key of this name, or of one that begins like it."""
    keys = list(_keys(kind))
    last = [key.rpartition(".")[2] for key in keys]
    near = [key for key, name in zip(keys, last, strict=True) if name == word]
    near = near or [key for key, name in zip(keys, last, strict=True) if min(len(name), len(word)) > 2 and word.startswith(name)]
    return f" (did you mean {' or '.join(repr(key) for key in near[:3])}?)" if near else ""


def _keys(kind: type[Any], prefix: str = "") -> Iterator[str]:
    """All keys of a configuration, with their sections."""
    for name, inner in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(inner):
            yield from _keys(typing.cast(type[Any], inner), f"{prefix}{name}.")
        else:
            yield prefix + name
