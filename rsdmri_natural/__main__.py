"""The program ``rsdmri-natural VERB``."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from rsdmri import cli, verbs

from .config import FacesConfig, NaturalExperiment

if TYPE_CHECKING:
    from rsdmri.domain import Domain


@dataclass(frozen=True, kw_only=True)
class Simulate:
    """Options of ``simulate``."""

    out: Path
    """The .npz that is written."""
    options: Annotated[FacesConfig, tyro.conf.arg(name="")] = field(default_factory=FacesConfig)


def _simulate(options: Simulate) -> None:
    from .faces import draw_faces

    draw_faces(options.options, options.out)


def _domain() -> "Domain":
    from .domain import Natural

    return Natural()


APPLICATION = cli.Application(
    name="rsdmri-natural",
    configs="natural",
    about="Learns a one-step generator of clean photographs from corrupted ones alone (Restoration Score Distillation).",
    experiment=NaturalExperiment,
    aliases={"--skip-bad": "--data.skip-bad"},
    commands={
        "simulate": cli.Command(
            "Draw faces to try the other verbs on.", Simulate, _simulate, "--n 2000 --size 32 --out faces.npz"
        ),
        **verbs.experiment_commands(NaturalExperiment, _domain),
    },
)


def main() -> None:
    """Entry point of ``rsdmri-natural``."""
    sys.exit(cli.run(APPLICATION, sys.argv[1:]))


if __name__ == "__main__":
    main()
