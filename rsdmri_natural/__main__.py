"""The program ``rsdmri-natural VERB``."""

import sys
from typing import TYPE_CHECKING

from rsdmri import cli

from .config import NaturalExperiment

if TYPE_CHECKING:
    from rsdmri.domain import Domain


def _domain() -> "Domain":
    from .domain import Natural

    return Natural()


APPLICATION = cli.Application(
    name="rsdmri-natural",
    configs="natural",
    about="Learns a one-step generator of clean photographs from corrupted ones alone (Restoration Score Distillation).",
    experiment=NaturalExperiment,
    commands=cli.experiment_commands(NaturalExperiment, _domain),
)


def main() -> None:
    """Entry point of ``rsdmri-natural``."""
    sys.exit(cli.run(APPLICATION, sys.argv[1:]))


if __name__ == "__main__":
    main()
