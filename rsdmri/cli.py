"""The command line: verbs -> pipeline. Everything is parsed before torch is imported, so that ``--help`` answers at once."""

import atexit
import dataclasses
import difflib
import io
import os
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from .config import Experiment, to_tree
from .errors import Elsewhere, NotWritable, UsageError, UserError, did_you_mean
from .files import not_writable
from .interrupts import Interrupted, stoppable
from .launch import place_of
from .settings import load_experiment, named_configs, validate

HELP_WIDTH = 80
(SUPPRESSED,) = typing.get_args(tyro.conf.Suppress[int])[1:]  # the mark of a field that has no flag


@dataclass(frozen=True)
class Command:
    """One verb: its help, the dataclass of its options, what it calls with them, and the options of an example.

    ``options`` has a field ``experiment`` if the verb works on one; then configurations and flags fill it. ``makes`` is where in RUNS/NAME
    its results go. ``shared``: several processes, as torchrun and srun start them, share the work; else the first one does it. ``check``:
    what a dry run asks of an experiment beside its limits.
    """

    help: str
    options: type[Any]
    run: Callable[[Any], None]
    example: str = ""
    makes: str = ""
    shared: bool = False
    check: Callable[[Any], None] = field(default=lambda experiment: None)


@dataclass(frozen=True)
class Application:
    """A program with its verbs.

    ``configs`` is the folder of its named configurations and ``experiment`` their class; ``aliases`` are short names of flags;
    ``implied_config`` finds a configuration that the flags imply.
    """

    name: str
    configs: str
    about: str
    experiment: type[Experiment]
    commands: Mapping[str, Command]
    aliases: Mapping[str, str] = field(default_factory=dict)
    implied_config: Callable[[Sequence[str]], str | None] = field(default=lambda arguments: None)


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every verb on an experiment takes; a subclass adds the application's ``experiment``."""

    config: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Configuration: a name (see above) or a YAML file. Given several times, they apply in their order; flags come last."""
    out: Path | None = None
    """Where the results go, instead of their place in RUNS/NAME."""
    print_config: bool = False
    """Print the resolved configuration and stop."""
    dry_run: bool = False
    """Check the configuration, say where the results would go, and stop."""


def run(application: Application, arguments: Sequence[str], verb: str | None = None) -> int:
    """Runs one command line and returns the exit code: 0, 1 for a file or run that is wrong, 2 for a wrong command line, 75 for a
    run that was told to stop and goes on with the same command."""
    sys.unraisablehook = _once
    try:
        if verb is None:
            verb, arguments = _split(application, arguments)
            if verb is None:
                return 0
        with stoppable():
            _run_verb(application, verb, list(arguments))
        return 0
    except NotWritable as error:
        print(f"error: {error}", file=sys.stderr)
        atexit.register(_leave, error.exit_code)
        return error.exit_code
    except UserError as error:
        if not isinstance(error, Elsewhere):
            print(f"{_speaker()}error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # what the system says about a file or a folder is the user's to mend
        if error.errno is None:
            raise
        print(
            f"error: {error.filename or 'output'}: {error.strerror}. Choose another place with --out or --runs.", file=sys.stderr
        )
        return 1
    except Interrupted as stop:
        if not _speaker():
            print(stop, file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from what was finished", file=sys.stderr)
        return 130


def _speaker() -> str:
    """Which of several processes says what follows; nothing of the first one, or of one alone."""
    place = place_of(os.environ)
    return "" if place is None or place.first else f"process {place.rank}: "


def _leave(code: int) -> None:
    """Ends the process at once: HDF5 crashes at its own exit when it could not write what it holds."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _once(problem: Any) -> None:
    """HDF5 says that a disk is full once more for every object that it closes; the error itself is reported."""
    if not_writable(problem.exc_value) is None:
        sys.__unraisablehook__(problem)


def _split(application: Application, arguments: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """The verb and what follows it; help if there is none."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{application.name} VERB [options]\n\n{application.about}\n")
        for name, command in application.commands.items():
            print(f"  {name:<11} {command.help.splitlines()[0]}")
        print(f"\n{application.name} VERB --help says more.")
        return None, []
    if arguments[0] not in application.commands:
        known = application.commands
        raise UsageError(
            f"unknown verb '{arguments[0]}'{did_you_mean(arguments[0], known)}; one of {', '.join(known)} is expected"
        )
    return arguments[0], arguments[1:]


def _run_verb(application: Application, verb: str, arguments: list[str]) -> None:
    """One verb in this process, which may be one of several."""
    shared = application.commands[verb].shared
    place = None if {"-h", "--help"} & {*arguments} else place_of(os.environ)
    if place is None or (place.first and not shared):
        _parsed(application, verb, arguments)()
    elif shared:
        from .distributed import joined, together  # torch comes with it

        with joined(place):  # before anything can be wrong in one of them: the others would wait for it
            together(lambda: _parsed(application, verb, arguments))()


def _parsed(application: Application, verb: str, arguments: list[str]) -> Callable[[], None]:
    """What a command line asks for."""
    command = application.commands[verb]
    _check_flags(arguments, [*_flags(command.options), *application.aliases, "--help", "-h"])
    program = f"{application.name}-{verb}" if application.name == "rsdmri" else f"{application.name} {verb}"
    has_experiment = "experiment" in {f.name for f in dataclasses.fields(command.options)}
    description = f"{command.help}\n\nExample: {program} {command.example}"
    if not has_experiment:
        options = _checked(lambda: tyro.cli(command.options, args=arguments, prog=program, description=description))
        return lambda: command.run(options)
    configs, rest = _configs([_long(argument, application.aliases) for argument in arguments])
    if not configs:
        implied = application.implied_config(arguments)
        configs = [implied] if implied else []
    default = command.options(experiment=load_experiment(application.experiment, configs), config=tuple(configs))
    named = [name for name in named_configs() if name.startswith(f"{application.configs}/")]
    # As list items, because tyro joins the lines of a paragraph.
    lines = textwrap.wrap(", ".join(named), HELP_WIDTH - 2, break_on_hyphens=False)
    description += "\n\nNamed configurations:" + "".join(f"\n- {line}" for line in lines)
    options = _checked(lambda: tyro.cli(command.options, default=default, args=rest, prog=program, description=description))
    validate(application.experiment, to_tree(options.experiment), "command line")  # tyro alone lets a broken limit pass
    if options.print_config:
        return lambda: _print_config(options.experiment)
    if options.dry_run:
        place = options.out or (command.makes if " " in command.makes else options.experiment.folder / command.makes)
        command.check(options.experiment)
        return lambda: print(f"{program}: the configuration is valid; results would go to {place}")
    return lambda: command.run(options)


def _print_config(experiment: Experiment) -> None:
    import yaml

    print(yaml.safe_dump(to_tree(experiment), sort_keys=False), end="")


def _checked(parse: Callable[[], Any]) -> Any:
    """A limit that a flag breaks is the user's mistake; what tyro says of it must be heard of any of several processes."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return parse()
    except ValueError as error:
        raise UsageError(str(error)) from None
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise UsageError(f"wrong options\n{said.getvalue().strip()}") from None


def _flags(options: type[Any], prefix: str = "--") -> Iterator[str]:
    """Every flag of a dataclass of options; a field whose flag has an empty name gives its own fields' flags."""
    hints = typing.get_type_hints(options, include_extras=True)
    for f in dataclasses.fields(options):
        kind, *marks = typing.get_args(hints[f.name]) if typing.get_origin(hints[f.name]) is Annotated else (hints[f.name],)
        name = f.name.replace("_", "-")
        if SUPPRESSED in marks:  # not offered, so not suggested
            continue
        if dataclasses.is_dataclass(kind):
            hidden = any(getattr(mark, "name", None) == "" for mark in marks)
            yield from _flags(typing.cast(type[Any], kind), prefix if hidden else f"{prefix}{name}.")
        else:
            yield prefix + name
            if kind is bool:
                yield f"--no-{name}" if prefix == "--" else f"{prefix}no-{name}"


def _check_flags(arguments: Sequence[str], known: Sequence[str]) -> None:
    """Names the nearest flag for an unknown one: that of a like spelling, else that whose last part is meant."""
    for argument in arguments:
        name = argument.partition("=")[0].replace("_", "-")
        if not name.startswith("--") or name in known:
            continue
        last = name.rpartition(".")[2].lstrip("-")
        near = [flag for flag in known if flag.rpartition(".")[2].lstrip("-") == last] or difflib.get_close_matches(
            name, known, 1
        )
        meant = f" (did you mean {' or '.join(near[:3])}?)" if near else ""
        raise UsageError(f"unknown flag '{argument.partition('=')[0]}'{meant}; --help lists all")


def _long(argument: str, aliases: Mapping[str, str]) -> str:
    """``-R`` or ``--accel=4`` with the flag's full name."""
    name, equals, value = argument.partition("=")
    return aliases.get(name, name) + equals + value


def _configs(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The values of --config, which must be read before the flags, and the other arguments."""
    configs, rest = [], []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--config":
            name = next(remaining, None)
            if name is None or name.startswith("-"):
                raise UsageError("--config needs a name or a file")
            configs.append(name)
        elif argument.startswith("--config="):
            configs.append(argument.removeprefix("--config="))
        else:
            rest.append(argument)
    return configs, rest
