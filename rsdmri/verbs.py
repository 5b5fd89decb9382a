"""The verbs that every application has: their options, and the functions of the pipeline that they call."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from .cli import Command, Common
from .config import Experiment, ImportConfig
from .errors import UsageError
from .files import read_json
from .settings import read_yaml, validate

if TYPE_CHECKING:
    from .domain import Domain


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


def experiment_commands(kind: type[Experiment], domain: Callable[[], "Domain"]) -> dict[str, Command]:
    """The verbs that every application has; ``domain`` imports and makes it when a verb runs."""
    base = _on_experiment(kind)

    def with_fields(**added: tuple[Any, Any]) -> type[Any]:
        fields = [(name, kind, dataclasses.field(default=default)) for name, (kind, default) in added.items()]
        return dataclasses.make_dataclass("Options", fields, bases=(base,), frozen=True, kw_only=True)

    def asked(help: str) -> Any:
        return tyro.conf.arg(help=help)

    teacher = asked("Run folder of the teacher, or one of its snapshots; by default RUNS/NAME/pretrain.")
    run_help = asked("Run folder of a generator or a teacher; by default the generator's, else the teacher's of the experiment.")
    more = asked(
        "More rows, each NAME=samples.h5, such as teacher+=runs/long/pretrain/samples.h5; with --reference, NAME=PATH of any images."
    )
    reference = asked(
        "Compare the sets of --samples with this file or folder of images, whatever program made them: no experiment is needed. HDF5, .npz,"
        " .npy, or pictures."
    )
    paired = asked(
        "Samples are reconstructions, and --reference holds their targets: fastMRI's NMSE, PSNR and SSIM, file by file."
    )
    folders = asked(
        "Folders of experiments (RUNS/NAME); by default that of the configuration. Several are compared on one page, in columns, which goes"
        " into RUNS/report, beside the first one, or into --out."
    )
    follow = asked("Seconds: write the page again whenever the run has gone on, until Ctrl-C. A browser that shows it follows.")

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
        from . import evaluating

        samples = _rows(o.samples)
        if o.reference is None and o.paired:
            raise UsageError("--paired compares with targets: name their file or folder with --reference")
        of_sets = o.reference is not None
        out = _of_sets(o, samples) if of_sets else evaluating.evaluate(o.experiment, domain(), o.out, samples)
        print(evaluating.table_of(read_json(out / "metrics.json")), file=sys.stderr)
        _say(out / "metrics.json")

    def report(o: Any) -> None:
        from . import pages

        experiments = [_of_folder(kind, path) for path in o.runs] or [o.experiment]
        kept, files = pages.Kept(), [path for experiment in experiments for path in pages.files_of(experiment)]

        def make(refresh: float | None) -> Path:
            if len(experiments) > 1:
                return pages.compare(experiments, domain(), o.out, refresh=refresh, kept=kept)
            return pages.report(experiments[0], domain(), o.out, refresh=refresh, kept=kept)

        if o.watch is not None and o.watch < 1:
            raise UsageError(f"--watch {o.watch:g}: at least one second is expected")
        _say((make(None) if o.watch is None else pages.watch(make, files, o.watch)) / "report.html")

    return {
        "prepare": Command("Turn the data into the fixed corrupted data set.", base, prepare, "--config mine.yaml", "prepare"),
        "pretrain": Command(
            "Phase I: train a diffusion teacher on corrupted observations.",
            base,
            pretrain,
            "--config mine.yaml --pretrain.lr 2e-4",
            "pretrain",
            shared=True,
        ),
        "distill": Command(
            "Phase II: distil the teacher into a one-step generator.",
            with_fields(teacher=(Annotated[Path | None, teacher], None)),
            distill,
            "--config mine.yaml --teacher runs/mine/pretrain",
            "distill",
            shared=True,
        ),
        "em": Command(
            "A rival: EM-Diffusion, from a few clean images and the corrupted observations.",
            base,
            em,
            "--config mine.yaml --objective.kind standard --em.clean runs/clean/prepare/references.h5",
            "em",
            check=lambda experiment: _baselines().check_em(experiment),
        ),
        "sample": Command(
            "Make images with the generator or the teacher.",
            with_fields(run=(Annotated[Path | None, run_help], None)),
            sample,
            "--config mine.yaml --sample.n 1000",
            "the folder of the run, by default distill, else pretrain",
            shared=True,
        ),
        "evaluate": Command(
            "Measure observations, teacher and generator, with and without references.",
            with_fields(
                samples=(Annotated[tuple[str, ...], more], ()),
                reference=(Annotated[Path | None, reference], None),
                paired=(Annotated[bool, paired], False),
            ),
            evaluate,
            "--config mine.yaml, or, for any program's images: --reference clean.h5 --samples mine=folder",
            "evaluate",
        ),
        "report": Command(
            "Write report.html and report.json of an experiment, or of several side by side.",
            with_fields(
                runs=(Annotated[tyro.conf.Positional[tuple[Path, ...]], folders], ()),
                watch=(Annotated[float | None, follow], None),
            ),
            report,
            "runs/mine, or runs/sid runs/dmd --out compared",
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

    def restore(o: Any) -> None:
        _say(_baselines().restore(o.experiment, domain()))

    hidden = ("out", Annotated[Path | None, tyro.conf.Suppress], dataclasses.field(default=None))
    return Command(
        "A rival: reconstruct the prepared data, for a teacher of the results (L1-EDM).\n\nThey go to RUNS/NAME/restore, where pretrain looks"
        " for them.",
        dataclasses.make_dataclass("Options", [hidden], bases=(_on_experiment(kind),), frozen=True, kw_only=True),
        restore,
        "--config mri/l1_r4",
        "restore",
    )


def _say(result: Path) -> None:
    """The one line of standard output: what was made."""
    print(result)


def _of_sets(o: Any, samples: dict[str, Path]) -> Path:
    """Images of any program beside a reference."""
    from . import evaluating
    from .runs import device_of

    if not samples:
        raise UsageError("--reference needs something to compare: --samples NAME=PATH")
    out = o.out or Path("evaluate")
    if o.paired:
        return evaluating.evaluate_pairs(o.reference, samples, out)
    return evaluating.evaluate_sets(o.experiment.evaluate, o.reference, samples, out, str(device_of(o.experiment)))


def _rows(samples: Sequence[str]) -> dict[str, Path]:
    rows = {}
    for text in samples:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise UsageError(f"--samples {text}: expected NAME=PATH")
        if name in rows:
            raise UsageError(f"--samples {text}: '{name}' is named twice; each row has a name of its own")
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
