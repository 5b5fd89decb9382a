"""The main job on drawn data: corrupted observations -> teacher -> generator -> images -> report.

    make demo                   k-space of phantoms: 13 minutes on two CPU cores
    make demo-natural           faces with 60 % of their pixels hidden: 10 minutes
    make demo ARGS=--quick      the same path in about a minute, too short to learn much

Every stage is the command that a full-size run uses; only the configuration (configs/mri/demo.yaml, configs/natural/demo.yaml) is small.
Stopped and started again, it goes on where it was.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

QUICK = [
    "--pretrain.images",
    "1600",
    "--pretrain.save",
    "800",
    "--distill.images",
    "320",
    "--distill.log",
    "160",
    "--sample.n",
    "32",
]


def mri(folder: Path, quick: bool) -> tuple[list[list[str]], list[str]]:
    """What makes the data, and the options that name them."""
    kspace, maps = str(folder / "kspace"), str(folder / "espirit")
    drawn = ["--phantoms", "12" if quick else "100", "--size", "32", "32", "--phase", "0.3"]
    return [["simulate", *drawn, "--out", kspace], ["espirit", kspace, "--out", maps]], ["--data.kspace", kspace]


def natural(folder: Path, quick: bool) -> tuple[list[list[str]], list[str]]:
    """The same for photographs."""
    faces = str(folder / "faces.npz")
    return [["simulate", "--n", "320" if quick else "2000", "--size", "32", "--out", faces]], ["--data.images", faces]


def stages(application: str, folder: Path, seed: int, quick: bool) -> list[list[str]]:
    """The command lines of the demo, in their order."""
    first, data = (mri if application == "mri" else natural)(folder, quick)
    common = ["--config", f"{application}/demo", "--name", folder.name, "--runs", str(folder.parent), "--seed", str(seed), *data]
    common += QUICK if quick else []
    return [
        *first,
        ["prepare", *common],
        ["pretrain", *common],
        ["distill", *common],
        ["sample", *common, "--run", str(folder / "pretrain")],
        ["sample", *common, "--run", str(folder / "distill")],
        ["evaluate", *common],
        ["report", *common],
    ]


def main() -> int:
    """Runs the stages; stops at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--natural", action="store_true", help="photographs instead of MRI")
    parser.add_argument("--quick", action="store_true", help="about a minute: shows that everything works, learns little")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training (default: 0)")
    options = parser.parse_args()
    application, module = ("natural", "rsdmri_natural") if options.natural else ("mri", "rsdmri.mri")
    folder = options.runs / (f"{application}-demo-quick" if options.quick else f"{application}-demo")
    began = time.monotonic()
    for verb, *arguments in stages(application, folder, options.seed, options.quick):
        code = subprocess.run([sys.executable, "-m", module, verb, *arguments], stdout=subprocess.DEVNULL).returncode
        if code:
            print(f"demo: the stage '{verb}' failed", file=sys.stderr)
            return code
    print(f"demo: done in {(time.monotonic() - began) / 60:.1f} min. Open {folder / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
