"""The programs ``rsdmri VERB`` and ``rsdmri-VERB``."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from .. import cli, settings, verbs
from ..errors import UsageError
from .config import EspiritConfig, MRIExperiment, ReconstructConfig, SimulateConfig

if TYPE_CHECKING:
    from ..domain import Domain

Paths = Annotated[tuple[Path, ...], tyro.conf.Positional]


@dataclass(frozen=True, kw_only=True)
class Simulate:
    """Options of ``simulate``."""

    images: Annotated[Path | None, tyro.conf.Positional] = None
    """Magnitude images: an .npz (N, h, w), NIfTI, DICOM or PNG, a file or a folder; leave it out for --phantoms."""
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


@dataclass(frozen=True, kw_only=True)
class Reconstruct:
    """Options of ``reconstruct``."""

    paths: Paths
    """Files or folders of multi-coil k-space."""
    out: Path
    """Folder of the images, one <stem>.h5 a file with `reconstruction` (slices, h, w), as fastMRI's leaderboard takes it."""
    options: Annotated[ReconstructConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Check:
    """Options of ``check``."""

    paths: Paths
    """Files or folders of k-space."""
    json: bool = False
    """Print JSON instead of a table."""
    singlecoil: bool = False
    """The scans are single-coil files (slices, H, W)."""
    workers: int = 0
    """Processes; 0: one a core."""


def _check(options: Check) -> None:
    from .check import check

    check(options.paths, as_json=options.json, singlecoil=options.singlecoil, workers=options.workers)


def _simulate(options: Simulate) -> None:
    from .simulate import simulate

    simulate(options.options, options.images, options.out)


def _one_thread() -> None:
    """Before numpy is imported: workers fill the cores, and many threads on the small arrays of a slice only wait for each other."""
    from ..jobs import ONE_THREAD

    for name, value in ONE_THREAD.items():
        os.environ.setdefault(name, value)


def _espirit(options: Espirit) -> None:
    _one_thread()
    from .estimate import estimate_files

    estimate_files(list(options.paths), options.out, options.options)


def _reconstruct(options: Reconstruct) -> None:
    from .reconstruct import reconstruct_files

    reconstruct_files(list(options.paths), options.out, options.options)


def _domain() -> "Domain":
    from .domain import MRI

    return MRI()


def _implied(arguments: Sequence[str]) -> str | None:
    """``--accel 4`` alone means the configuration mri/r4; an acceleration without one needs a configuration to be named."""
    for flag, value in zip(arguments, [*arguments, ""][1:], strict=True):
        name, _, inline = flag.partition("=")
        if name in ("-R", "--accel"):
            with suppress(ValueError):  # what is no number is the parser's to say
                config, known = f"mri/r{float(inline or value):g}", settings.named_configs()
                if config not in known:
                    raise UsageError(
                        f"{name} {inline or value}: there is no configuration {config}; name one beside it, such as --config mri/r4"
                        f" (there are {', '.join(known)}), or a file of your own"
                    )
                return config
    return None


APPLICATION = cli.Application(
    name="rsdmri",
    configs="mri",
    about="Learns a one-step generator of clean MR images from undersampled scans alone (Restoration Score Distillation).",
    experiment=MRIExperiment,
    implied_config=_implied,
    aliases={"-R": "--data.accel", "--accel": "--data.accel", "--coils": "--data.coils"},
    commands={
        "simulate": cli.Command(
            "Draw phantoms, or turn magnitude images into multi-coil k-space.", Simulate, _simulate, "--phantoms 100 --out kspace"
        ),
        "check": cli.Command("Open k-space files as the other commands would, and say what is in them.", Check, _check, "scans/"),
        "espirit": cli.Command(
            "Estimate coil sensitivity maps from the ACS lines of k-space files.",
            Espirit,
            _espirit,
            "scans/ --out runs/mri-r4/espirit",
        ),
        "reconstruct": cli.Command(
            "Reconstruct scans by L1-wavelet compressed sensing or SENSE, without a learned prior.",
            Reconstruct,
            _reconstruct,
            "scans/ --maps runs/mri-r4/espirit --out l1",
        ),
        **verbs.experiment_commands(MRIExperiment, _domain),
        "restore": verbs.restore_command(MRIExperiment, _domain),
    },
)


def main(verb: str | None = None) -> None:
    """Entry point of ``rsdmri``."""
    sys.exit(cli.run(APPLICATION, sys.argv[1:], verb))


simulate = partial(main, "simulate")
check = partial(main, "check")
espirit = partial(main, "espirit")
reconstruct = partial(main, "reconstruct")
prepare = partial(main, "prepare")
pretrain = partial(main, "pretrain")
distill = partial(main, "distill")
sample = partial(main, "sample")
evaluate = partial(main, "evaluate")
report = partial(main, "report")
import_ = partial(main, "import")
em = partial(main, "em")
restore = partial(main, "restore")

if __name__ == "__main__":
    main()
