"""Set-up and the developer's commands, with the standard library alone.

    python3 scripts/dev.py demo | demo-natural | test | test-all | lint | setup [arguments of the command]

Makes .venv once, chooses a torch that fits the machine, installs the package with its tools, and runs the command in it.
RSDMRI_VENV names another environment, such as that of a container or a cluster; what that one has, it keeps.
"""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from shutil import which

OLDEST = (3, 11)
# Before any annotation is evaluated: an older Python would stop at the first `str | Path` instead of saying that it is too old.
if sys.version_info < OLDEST:
    raise SystemExit(
        f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}."
        " On a cluster: `module avail python`; then make PYTHON=python3.12 ..., or python3.12 scripts/dev.py ..."
    )

ROOT = Path(__file__).resolve().parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
VERBS = {
    "demo": [["scripts/demo.py"]],
    "demo-natural": [["scripts/demo.py", "--natural"]],
    "test": [["-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", "-m", "not slow"]],
    "test-all": [["-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup"]],
    "lint": [["-m", "ruff", "check", "."], ["-m", "ruff", "format", "--check", "."], ["-m", "mypy"]],
    "setup": [],
}
# Asked of the environment's interpreter: its version, a torch that can be imported, and the names of what is installed.
INSPECT = """
import importlib.metadata, json, sys
try:
    import torch
    version = torch.__version__
except Exception:
    version = None
names = sorted({found.metadata["Name"] for found in importlib.metadata.distributions()} - {None})
print(json.dumps([sys.version_info[:2], version, names]))
"""


def say(text: str) -> None:
    """One plain line, at once."""
    print(text, flush=True)


def environment() -> Path:
    """The folder of the virtual environment."""
    return Path(os.environ.get("RSDMRI_VENV") or ROOT / ".venv").resolve()


def python_of(venv: Path) -> Path:
    """The interpreter of an environment."""
    return venv / "bin/python"


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
        command = [str(part) for part in command]
        return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=ROOT).returncode == 0


def pip(python: Path, *arguments: str, log: Path) -> bool:
    """Runs an environment's pip without questions; whether it succeeded."""
    return run([python, "-m", "pip", "--no-input", "--disable-pip-version-check", *arguments], log)


def imports(python: Path, module: str) -> bool:
    """Whether an environment can import a module."""
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0


def inspect(python: Path) -> tuple[str | None, frozenset[str]]:
    """The version of the torch that an environment can import, if any, and the normal names of all that is installed there."""
    answer = subprocess.run([python, "-W", "ignore", "-c", INSPECT], stdout=subprocess.PIPE, text=True)
    if answer.returncode:
        raise SystemExit(f"{python} does not work; remove its environment, or name another with RSDMRI_VENV")
    version, torch, names = json.loads(answer.stdout.splitlines()[-1])
    if tuple(version) < OLDEST:
        raise SystemExit(f"Python 3.11 or newer is needed, {python} is {version[0]}.{version[1]}")
    return torch, frozenset(map(normal, names))


def normal(name: str) -> str:
    """A package's name as pip compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def public(version: str) -> str:
    """A version without the label of its build: 2.13.0+cpu is 2.13.0."""
    return version.partition("+")[0]


def keeps_torch(torch: str | None, own: bool) -> bool:
    """Whether the torch that is there stays: in .venv the pinned one, in an environment of somebody else's any."""
    return torch is not None and (not own or pin("torch") == f"torch=={public(torch)}")


def constraints_beside(torch: str | None, names: frozenset[str]) -> str:
    """constraints.txt for somebody else's environment: nothing that is installed there is pinned to another version.

    pip leaves alone what satisfies pyproject.toml, unless a pin forbids it. torch is pinned to the version that is there; the
    pin of torchvision goes with that of torch, because the two are built as a pair.
    """
    present = names | ({"torch", "torchvision"} if torch else set())
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if "==" not in line or normal(line.partition("==")[0]) not in present]
    return "\n".join([*kept, *([f"torch=={public(torch)}"] if torch else [])]) + "\n"


def torch_commands(platform: str, nvidia: bool) -> list[list[str]]:
    """Ways of installing torch, in the order in which they are tried.

    First what pip finds on its own disk (a cluster's or container's wheel folder; fails at once elsewhere). Then, on Linux
    without an NVIDIA driver, the CPU wheels of PyTorch, because the default there brings gigabytes of CUDA. Else the default.
    """
    torch, torchvision = pin("torch"), pin("torchvision")
    ways = [["--no-index", "--no-deps", torch]]
    if platform == "linux" and not nvidia:
        ways.append(["--index-url", CPU_INDEX, torch, torchvision])
    return [*ways, [torch]]


def install_torch(python: Path, log: Path) -> None:
    """Installs a torch by the first way that works."""
    # The local wheel is taken without its dependencies; the next step brings them.
    for options in torch_commands(sys.platform, which("nvidia-smi") is not None):
        if pip(python, "install", *options, log=log):
            return say(f"  torch: pip install {' '.join(options)}")
    fail("torch could not be installed", log)


def fail(message: str, log: Path) -> None:
    """Ends with the last lines of the log."""
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:] if log.exists() else []
    raise SystemExit("\n".join([*tail, f"{message}. The whole output: {log}"]))


def make_environment(venv: Path) -> None:
    """Makes .venv, afresh where a broken one is in the way. An environment of somebody else's is not made."""
    if os.environ.get("RSDMRI_VENV"):
        raise SystemExit(f"RSDMRI_VENV: there is no {python_of(venv)}. Name the folder of an existing environment, or unset it")
    # Asked first: venv itself would notice only after it has made an environment without pip.
    if importlib.util.find_spec("ensurepip") is None:
        raise SystemExit("Python's venv module is missing. On Debian or Ubuntu: apt install python3-venv")
    say(f"set-up: making {venv}")
    if subprocess.run([sys.executable, "-m", "venv", "--clear", venv]).returncode:
        raise SystemExit(f"{venv} could not be made")


def drop_broken_torchvision(python: Path, log: Path) -> None:
    """Removes a torchvision that cannot be imported.

    fastmri brings one that is built for CUDA. Beside a CPU torch its import fails, and with it that of all that try it.
    """
    if "torchvision" not in inspect(python)[1] or imports(python, "torchvision"):
        return
    if not pip(python, "uninstall", "-y", "torchvision", log=log):
        fail("a torchvision that cannot be imported could not be removed", log)
    say("  removed a torchvision that cannot be imported here (nothing of rsdmri uses it)")


def set_up(venv: Path) -> None:
    """Makes and fills the environment, unless that was done for this very pyproject.toml and constraints.txt."""
    done, log, python = venv / "rsdmri-stamp", venv / "rsdmri-setup.log", python_of(venv)
    if python.exists() and done.exists() and done.read_text() == stamp():
        return
    began = time.monotonic()
    if not python.exists():
        make_environment(venv)
    own, constraints = not os.environ.get("RSDMRI_VENV"), ROOT / "constraints.txt"
    torch, names = inspect(python)
    if keeps_torch(torch, own):
        say(f"set-up: torch {torch} is already there")
    else:
        say("set-up: choosing torch")
        install_torch(python, log)
    if not own:
        constraints = venv / "rsdmri-constraints.txt"
        constraints.write_text(constraints_beside(torch, names), encoding="utf-8")
    say(f"set-up: installing rsdmri and its tools (some minutes, once; {time.monotonic() - began:.0f} s so far)")
    if not pip(python, "install", "-c", str(constraints), "-e", ".[dev]", log=log):
        fail("the installation failed", log)
    drop_broken_torchvision(python, log)
    done.write_text(stamp())
    say(f"set-up: done in {time.monotonic() - began:.0f} s")


def main(arguments: list[str]) -> int:
    """Sets up and runs one verb."""
    if not arguments or arguments[0] not in VERBS:
        print(__doc__)
        return 2
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
