"""The main job on drawn data: k-space of phantoms -> coil maps -> data set -> teacher -> generator -> images -> report.

    make demo                   13 minutes on two CPU cores
    make demo ARGS=--quick      the same path in about a minute, too short to learn much

Every stage is the command that a full-size run uses; only the configuration (configs/mri/demo.yaml) is small. Stopped and started
again, it goes on where it was.
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


def stages(runs: Path, seed: int, quick: bool) -> list[list[str]]:
    """The command lines of the demo, in their order."""
    name = "mri-demo-quick" if quick else "mri-demo"
    folder = runs / name
    kspace, maps = str(folder / "kspace"), str(folder / "espirit")
    common = ["--config", "mri/demo", "--name", name, "--runs", str(runs), "--seed", str(seed), "--data.kspace", kspace]
    common += QUICK if quick else []
    return [
        ["simulate", "--phantoms", "12" if quick else "100", "--size", "32", "32", "--phase", "0.3", "--out", kspace],
        ["espirit", kspace, "--out", maps],
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
    parser.add_argument("--quick", action="store_true", help="about a minute: shows that everything works, learns little")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training (default: 0)")
    options = parser.parse_args()
    began = time.monotonic()
    for verb, *arguments in stages(options.runs, options.seed, options.quick):
        code = subprocess.run([sys.executable, "-m", "rsdmri.mri", verb, *arguments], stdout=subprocess.DEVNULL).returncode
        if code:
            print(f"demo: the stage '{verb}' failed", file=sys.stderr)
            return code
    report = options.runs / ("mri-demo-quick" if options.quick else "mri-demo") / "report.html"
    print(f"demo: done in {(time.monotonic() - began) / 60:.1f} min. Open {report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
