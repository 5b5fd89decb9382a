"""The programs ``rsdmri VERB`` and ``rsdmri-VERB``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from .. import cli, settings
from ..config import Experiment
from ..errors import UsageError
from .config import EspiritConfig, MRIExperiment, SimulateConfig

Flat = Annotated[MRIExperiment, tyro.conf.arg(name="")]  # --data.accel, not --experiment.data.accel
Paths = Annotated[tuple[Path, ...], tyro.conf.Positional]


@dataclass(frozen=True, kw_only=True)
class OnExperiment(cli.Common):
    """Options of verbs that take nothing of their own."""

    experiment: Flat


@dataclass(frozen=True, kw_only=True)
class Distill(cli.Common):
    """Options of ``distill``."""

    experiment: Flat
    teacher: Path | None = None
    """Run folder of the teacher, or one of its snapshots; by default RUNS/NAME/pretrain."""


@dataclass(frozen=True, kw_only=True)
class Sample(cli.Common):
    """Options of ``sample``."""

    experiment: Flat
    run: Path | None = None
    """Run folder of a generator or a teacher; by default the generator's, else the teacher's of the experiment."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(cli.Common):
    """Options of ``evaluate``."""

    experiment: Flat
    samples: tuple[str, ...] = ()
    """More rows, each NAME=samples.h5, such as teacher+=runs/long/pretrain/samples.h5."""


@dataclass(frozen=True, kw_only=True)
class Report(cli.Common):
    """Options of ``report``."""

    experiment: Flat
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders of experiments (RUNS/NAME); by default that of the configuration."""


@dataclass(frozen=True, kw_only=True)
class Simulate:
    """Options of ``simulate``."""

    images: Annotated[Path | None, tyro.conf.Positional] = None
    """An .npz with magnitude images (N, h, w); leave it out for --phantoms."""
    out: Path
    """Folder of the files."""
    options: Annotated[SimulateConfig, tyro.conf.arg(name="")] = field(default_factory=SimulateConfig)


@dataclass(frozen=True, kw_only=True)
class Espirit:
    """Options of ``espirit``."""

    paths: Paths
    """Files or folders of multi-coil k-space."""
    out: Path
    """Folder of the maps, one <stem>.maps.h5 a file."""
    options: Annotated[EspiritConfig, tyro.conf.arg(name="")] = field(default_factory=EspiritConfig)


def _simulate(options: Simulate) -> None:
    from .simulate import simulate

    simulate(options.options, options.images, options.out)


def _espirit(options: Espirit) -> None:
    from .maps import estimate_files

    estimate_files(list(options.paths), options.out, options.options)


def _prepare(options: OnExperiment) -> None:
    from .. import pipeline
    from .domain import MRI

    print(pipeline.prepare(options.experiment, MRI(), options.out))


def _pretrain(options: OnExperiment) -> None:
    from .. import pipeline
    from .domain import MRI

    print(pipeline.pretrain(options.experiment, MRI(), options.out))


def _distill(options: Distill) -> None:
    from .. import pipeline
    from .domain import MRI

    print(pipeline.distill(options.experiment, MRI(), options.out, options.teacher))


def _sample(options: Sample) -> None:
    from .. import pipeline
    from .domain import MRI

    print(pipeline.sample(options.experiment, MRI(), options.out, options.run))


def _evaluate(options: Evaluate) -> None:
    from .. import pipeline
    from .domain import MRI

    rows = {}
    for text in options.samples:
        name, equals, path = text.partition("=")
        if not equals:
            raise UsageError(f"--samples {text}: expected NAME=PATH")
        rows[name] = Path(path)
    print(pipeline.evaluate(options.experiment, MRI(), options.out, rows))


def _report(options: Report) -> None:
    from .. import pipeline
    from .domain import MRI

    for experiment in [_of_folder(path) for path in options.runs] or [options.experiment]:
        print(pipeline.report(experiment, MRI(), options.out) / "report.html")


def _of_folder(folder: Path) -> Experiment:
    """The experiment whose verbs wrote into RUNS/NAME, as its latest run resolved it."""
    for name in ("distill", "pretrain", "prepare"):
        if (folder / name / "config.yaml").exists():
            tree = settings.read_yaml(folder / name / "config.yaml")
            path = folder.resolve()
            return settings.validate(MRIExperiment, {**tree, "runs": path.parent, "name": path.name}, str(folder))
    raise UsageError(f"{folder}: no experiment here (no prepare, pretrain or distill folder with a config.yaml)")


def _implied(arguments: Sequence[str]) -> str | None:
    """``--accel 4`` alone means the configuration mri/r4, if there is one."""
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, inline = flag.partition("=")
        if name in ("-R", "--accel"):
            config = f"mri/r{inline or value}"
            return config if config in settings.named_configs() else None
    return None


APPLICATION = cli.Application(
    name="rsdmri",
    about="Learns a one-step generator of clean MR images from undersampled scans alone (Restoration Score Distillation).",
    experiment=MRIExperiment,
    implied_config=_implied,
    aliases={"-R": "--data.accel", "--accel": "--data.accel"},
    commands={
        "simulate": cli.Command("Draw phantoms, or turn magnitude images into multi-coil k-space.", Simulate, _simulate),
        "espirit": cli.Command("Estimate coil sensitivity maps from the ACS lines of k-space files.", Espirit, _espirit),
        "prepare": cli.Command("Turn k-space and maps into the fixed corrupted data set.", OnExperiment, _prepare),
        "pretrain": cli.Command("Phase I: train a diffusion teacher on corrupted observations.", OnExperiment, _pretrain),
        "distill": cli.Command("Phase II: distil the teacher into a one-step generator.", Distill, _distill),
        "sample": cli.Command("Make images with the generator or the teacher.", Sample, _sample),
        "evaluate": cli.Command("Measure observations, teacher and generator, with and without references.", Evaluate, _evaluate),
        "report": cli.Command("Write report.html and report.json of an experiment.", Report, _report),
    },
)


def main(verb: str | None = None) -> None:
    """Entry point of ``rsdmri``."""
    sys.exit(cli.run(APPLICATION, sys.argv[1:], verb))


simulate = partial(main, "simulate")
espirit = partial(main, "espirit")
prepare = partial(main, "prepare")
pretrain = partial(main, "pretrain")
distill = partial(main, "distill")
sample = partial(main, "sample")
evaluate = partial(main, "evaluate")
report = partial(main, "report")

if __name__ == "__main__":
    main()
