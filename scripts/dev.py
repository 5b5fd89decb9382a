"""Set-up and the developer's commands, with the standard library alone.

    python3 scripts/dev.py demo | test | test-all | lint | setup [arguments of the command]

Makes .venv once, chooses a torch that fits the machine, installs the package with its tools, and runs the command in it.
RSDMRI_VENV names another environment, such as that of a container or a cluster.
"""

import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from shutil import which

ROOT = Path(__file__).resolve().parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
VERBS = {
    "demo": [["scripts/demo.py"]],
    "test": [["-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", "-m", "not slow"]],
    "test-all": [["-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup"]],
    "lint": [["-m", "ruff", "check", "."], ["-m", "ruff", "format", "--check", "."], ["-m", "mypy"]],
    "setup": [],
}


def say(text: str) -> None:
    """One plain line, at once."""
    print(text, flush=True)


def environment() -> Path:
    """The folder of the virtual environment."""
    return Path(os.environ.get("RSDMRI_VENV") or ROOT / ".venv").resolve()


def python_of(venv: Path) -> Path:
    """The interpreter of an environment, on Windows too."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def pin(package: str) -> str:
    """``package==version`` as constraints.txt has it."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{package}==\S+", text, re.MULTILINE)
    if not found:
        raise SystemExit(f"constraints.txt pins no {package}")
    return found.group()


def stamp() -> str:
    """Changes when what must be installed changes, or when the project was moved."""
    parts = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    return hashlib.sha256(b"\0".join([*parts, str(ROOT).encode()])).hexdigest()


def run(command: Sequence[str | Path], log: Path) -> bool:
    """Runs a command with its output in the log; whether it succeeded."""
    with open(log, "ab") as file:
        return subprocess.run([str(part) for part in command], stdout=file, stderr=file, cwd=ROOT).returncode == 0


def imports(python: Path, module: str) -> bool:
    """Whether an environment can import a module."""
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0


def torch_commands(platform: str, nvidia: bool) -> list[list[str]]:
    """Ways of installing torch, in the order in which they are tried.

    First what pip finds on its own disk (a cluster's or container's wheel folder; fails at once elsewhere). Then, on Linux without
    an NVIDIA driver, the CPU wheels of PyTorch, because the default there brings gigabytes of CUDA. Else the default.
    """
    torch, torchvision = pin("torch"), pin("torchvision")
    ways = [["--no-index", "--no-deps", torch]]
    if platform == "linux" and not nvidia:
        ways.append(["--index-url", CPU_INDEX, torch, torchvision])
    return [*ways, [torch]]


def install_torch(python: Path, log: Path) -> None:
    """Installs a torch unless the environment has one."""
    if imports(python, "torch"):
        return say("  torch: already there")
    # The local wheel is taken without its dependencies; the next step brings them.
    for options in torch_commands(sys.platform, which("nvidia-smi") is not None):
        if run([python, "-m", "pip", "install", *options], log):
            return say(f"  torch: pip install {' '.join(options)}")
    fail("torch could not be installed", log)


def fail(message: str, log: Path) -> None:
    """Ends with the last lines of the log."""
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:] if log.exists() else []
    raise SystemExit("\n".join([*tail, f"{message}. The whole output: {log}"]))


def set_up(venv: Path) -> None:
    """Makes and fills the environment, unless that was done for this very pyproject.toml and constraints.txt."""
    done, log = venv / "rsdmri-stamp", venv / "rsdmri-setup.log"
    if done.exists() and done.read_text() == stamp():
        return
    began = time.monotonic()
    if not python_of(venv).exists():
        say(f"set-up: making {venv}")
        if subprocess.run([sys.executable, "-m", "venv", venv]).returncode:
            raise SystemExit("Python's venv module is missing. On Debian or Ubuntu: apt install python3-venv")
    python = python_of(venv)
    say("set-up: choosing torch")
    install_torch(python, log)
    say("set-up: installing rsdmri and its tools (some minutes, once)")
    if not run([python, "-m", "pip", "install", "-c", "constraints.txt", "-e", ".[dev]"], log):
        fail("the installation failed", log)
    # fastmri brings a torchvision that is built for CUDA; beside a CPU torch it cannot be imported, and what tries, breaks.
    if not imports(python, "torchvision") and run([python, "-m", "pip", "uninstall", "-y", "torchvision"], log):
        say("  removed a torchvision that cannot be imported here (nothing of rsdmri uses it)")
    done.write_text(stamp())
    say(f"set-up: done in {time.monotonic() - began:.0f} s")


def main(arguments: list[str]) -> int:
    """Sets up and runs one verb."""
    if not arguments or arguments[0] not in VERBS:
        print(__doc__)
        return 2
    if sys.version_info < (3, 11):
        raise SystemExit(
            f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}."
            " On a cluster: `module avail python`; then make PYTHON=python3.12 ..., or python3.12 scripts/dev.py ..."
        )
    verb, *rest = arguments
    venv = environment()
    set_up(venv)
    # Two test processes on two cores: one thread each.
    threads = {"OMP_NUM_THREADS": "1"} if verb.startswith("test") else {}
    for number, command in enumerate(VERBS[verb]):
        extra = rest if number == 0 else []
        code = subprocess.run([str(python_of(venv)), *command, *extra], cwd=ROOT, env={**os.environ, **threads}).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
