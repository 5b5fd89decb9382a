"""The command line: verbs -> pipeline. Everything is parsed before torch is imported, so that ``--help`` answers at once."""

import atexit
import dataclasses
import difflib
import os
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from .config import Experiment, ImportConfig, to_tree
from .errors import NotWritable, UsageError, UserError, did_you_mean
from .files import not_writable
from .settings import load_experiment, named_configs, read_yaml, validate

if TYPE_CHECKING:
    from .domain import Domain


HELP_WIDTH = 80


@dataclass(frozen=True)
class Command:
    """One verb: its help, the dataclass of its options, what it calls with them, and the options of an example.

    ``options`` has a field ``experiment`` if the verb works on one; then configurations and flags fill it. ``makes`` is where in
    RUNS/NAME its results go.
    """

    help: str
    options: type[Any]
    run: Callable[[Any], None]
    example: str = ""
    makes: str = ""


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


@dataclass(frozen=True, kw_only=True)
class Import:
    """Options of ``import``."""

    checkpoint: tyro.conf.Positional[Path]
    """The file: a pickle of EDM, SiD or Ambient Diffusion, or a state dict of torch.save. Nothing in it is executed."""
    out: Path
    """The run folder that is made: a teacher to distil from, or a generator to sample."""
    options: Annotated[ImportConfig, tyro.conf.arg(name="")] = field(default_factory=ImportConfig)


def _import(options: Import) -> None:
    from .importing import import_checkpoint

    _say(import_checkpoint(options.checkpoint, options.out, options.options))


IMPORT = Command(
    "Turn a published checkpoint (EDM, SiD, Ambient Diffusion, Ambient Diffusion MRI) into a run.",
    Import,
    _import,
    "network-snapshot.pkl --out runs/published/pretrain",
)


def _on_experiment(kind: type[Experiment]) -> type[Any]:
    """The options of a verb on an experiment: --data.accel, not --experiment.data.accel."""
    fields = [("experiment", Annotated[kind, tyro.conf.arg(name="")])]
    return dataclasses.make_dataclass("OnExperiment", fields, bases=(Common,), frozen=True, kw_only=True)


def _with_field(base: type[Any], name: str, kind: Any, default: Any) -> type[Any]:
    """These options and one more."""
    fields = [(name, kind, dataclasses.field(default=default))]
    return dataclasses.make_dataclass(name.title(), fields, bases=(base,), frozen=True, kw_only=True)


def experiment_commands(kind: type[Experiment], domain: Callable[[], "Domain"]) -> dict[str, Command]:
    """The verbs that every application has; ``domain`` imports and makes it when a verb runs."""
    base = _on_experiment(kind)

    def with_field(name: str, kind: Any, default: Any) -> type[Any]:
        return _with_field(base, name, kind, default)

    def asked(help: str) -> Any:
        return tyro.conf.arg(help=help)

    teacher = asked("Run folder of the teacher, or one of its snapshots; by default RUNS/NAME/pretrain.")
    run_help = asked("Run folder of a generator or a teacher; by default the generator's, else the teacher's of the experiment.")
    more = asked("More rows, each NAME=samples.h5, such as teacher+=runs/long/pretrain/samples.h5.")
    folders = asked("Folders of experiments (RUNS/NAME); by default that of the configuration.")

    def prepare(o: Any) -> None:
        _say(_pipeline().prepare(o.experiment, domain(), o.out) / "observations.h5")

    def pretrain(o: Any) -> None:
        _say(_pipeline().pretrain(o.experiment, domain(), o.out))

    def distill(o: Any) -> None:
        _say(_pipeline().distill(o.experiment, domain(), o.out, o.teacher))

    def em(o: Any) -> None:
        _say(_baselines().em(o.experiment, domain(), o.out))

    def sample(o: Any) -> None:
        _say(_pipeline().sample(o.experiment, domain(), o.out, o.run) / "samples.h5")

    def evaluate(o: Any) -> None:
        _say(_pipeline().evaluate(o.experiment, domain(), o.out, _rows(o.samples)) / "metrics.json")

    def report(o: Any) -> None:
        if o.out is not None and len(o.runs) > 1:
            raise UsageError(f"--out takes one report, and {len(o.runs)} folders are given: each has its own without --out")
        for experiment in [_of_folder(kind, path) for path in o.runs] or [o.experiment]:
            _say(_pipeline().report(experiment, domain(), o.out) / "report.html")

    return {
        "prepare": Command("Turn the data into the fixed corrupted data set.", base, prepare, "--config mine.yaml", "prepare"),
        "pretrain": Command(
            "Phase I: train a diffusion teacher on corrupted observations.",
            base,
            pretrain,
            "--config mine.yaml --pretrain.lr 2e-4",
            "pretrain",
        ),
        "distill": Command(
            "Phase II: distil the teacher into a one-step generator.",
            with_field("teacher", Annotated[Path | None, teacher], None),
            distill,
            "--config mine.yaml --teacher runs/mine/pretrain",
            "distill",
        ),
        "em": Command(
            "A rival: EM-Diffusion, from a few clean images and the corrupted observations.",
            base,
            em,
            "--config mine.yaml --objective.kind standard --em.clean runs/clean/prepare/references.h5",
            "em",
        ),
        "sample": Command(
            "Make images with the generator or the teacher.",
            with_field("run", Annotated[Path | None, run_help], None),
            sample,
            "--config mine.yaml --sample.n 1000",
            "the folder of the run, by default distill, else pretrain",
        ),
        "evaluate": Command(
            "Measure observations, teacher and generator, with and without references.",
            with_field("samples", Annotated[tuple[str, ...], more], ()),
            evaluate,
            "--config mine.yaml",
            "evaluate",
        ),
        "report": Command(
            "Write report.html and report.json of an experiment.",
            with_field("runs", Annotated[tyro.conf.Positional[tuple[Path, ...]], folders], ()),
            report,
            "runs/mine",
            "report.html",
        ),
        "import": IMPORT,
    }


def _pipeline() -> Any:
    from . import pipeline  # torch comes with it

    return pipeline


def _baselines() -> Any:
    from . import baselines

    return baselines


def restore_command(kind: type[Experiment], domain: Callable[[], "Domain"]) -> Command:
    """The verb of applications that make images of observations without a learned prior."""
    workers = tyro.conf.arg(help="Processes; 0: one a core.")

    def restore(o: Any) -> None:
        if o.out is not None:
            raise UsageError(
                "restore writes where pretrain looks for it, in RUNS/NAME/restore: choose the place with --runs and --name"
            )
        _say(_baselines().restore(o.experiment, domain(), o.workers) / "images.h5")

    return Command(
        "A rival: reconstruct the prepared data, for a teacher of the results (L1-EDM).",
        _with_field(_on_experiment(kind), "workers", Annotated[int, workers], 0),
        restore,
        "--config mri/l1_r4",
        "restore",
    )


def _say(result: Path) -> None:
    """The one line of standard output: what was made."""
    print(result)


def _rows(samples: Sequence[str]) -> dict[str, Path]:
    rows = {}
    for text in samples:
        name, equals, path = text.partition("=")
        if not equals:
            raise UsageError(f"--samples {text}: expected NAME=PATH")
        rows[name] = Path(path)
    return rows


def _of_folder(kind: type[Experiment], folder: Path) -> Experiment:
    """The experiment whose verbs wrote into RUNS/NAME, as its latest run resolved it."""
    for name in ("distill", "pretrain", "prepare"):
        if (folder / name / "config.yaml").exists():
            tree = read_yaml(folder / name / "config.yaml")
            path = folder.resolve()
            return validate(kind, {**tree, "runs": str(path.parent), "name": path.name}, str(folder))
    raise UsageError(f"{folder}: no experiment here (no prepare, pretrain or distill folder with a config.yaml)")


def run(application: Application, arguments: Sequence[str], verb: str | None = None) -> int:
    """Runs one command line and returns the exit code: 0, 1 for a file or run that is wrong, 2 for a wrong command line."""
    sys.unraisablehook = _once
    try:
        if verb is None:
            verb, arguments = _split(application, arguments)
            if verb is None:
                return 0
        _run_verb(application, verb, list(arguments))
        return 0
    except NotWritable as error:
        print(f"error: {error}", file=sys.stderr)
        atexit.register(_leave, error.exit_code)
        return error.exit_code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # what the system says about a file or a folder is the user's to mend
        if error.errno is None:
            raise
        print(
            f"error: {error.filename or 'output'}: {error.strerror}. Choose another place with --out or --runs.", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from what was finished", file=sys.stderr)
        return 130


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
    command = application.commands[verb]
    _check_flags(arguments, [*_flags(command.options), *application.aliases, "--help", "-h"])
    program = f"{application.name}-{verb}" if application.name == "rsdmri" else f"{application.name} {verb}"
    has_experiment = "experiment" in {f.name for f in dataclasses.fields(command.options)}
    description = f"{command.help}\n\nExample: {program} {command.example}"
    if not has_experiment:
        options = _checked(lambda: tyro.cli(command.options, args=arguments, prog=program, description=description))
        return command.run(options)
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
        import yaml

        print(yaml.safe_dump(to_tree(options.experiment), sort_keys=False), end="")
    elif options.dry_run:
        place = options.out or (command.makes if " " in command.makes else options.experiment.folder / command.makes)
        print(f"{program}: the configuration is valid; results would go to {place}")
    else:
        command.run(options)


def _checked(parse: Callable[[], Any]) -> Any:
    """A limit that a flag breaks is the user's mistake, said in one line."""
    try:
        return parse()
    except ValueError as error:
        raise UsageError(str(error)) from None


def _flags(options: type[Any], prefix: str = "--") -> Iterator[str]:
    """Every flag of a dataclass of options; a field whose flag has an empty name gives its own fields' flags."""
    hints = typing.get_type_hints(options, include_extras=True)
    for f in dataclasses.fields(options):
        kind, *marks = typing.get_args(hints[f.name]) if typing.get_origin(hints[f.name]) is Annotated else (hints[f.name],)
        name = f.name.replace("_", "-")
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
