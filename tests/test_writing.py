"""Outputs that cannot be written: one clear line, no half-written file, no crash of a library at exit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rsdmri.errors import NotWritable
from rsdmri.files import atomic, write_text

ROOT = Path(__file__).parent.parent


def run_limited(limit, *arguments):
    """A command in a process whose files may not grow beyond ``limit`` bytes, as on a full disk."""
    code = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "from rsdmri.mri.__main__ import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are a matter of Unix")
def test_a_full_disk(tmp_path):
    kspace, maps = tmp_path / "kspace", tmp_path / "maps"
    done = run_limited(1 << 30, "simulate", "--phantoms", "6", "--slices", "4", "--size", "32", "32", "--out", kspace)
    assert done.returncode == 0, done.stderr
    for workers in ("1", "2"):
        full = run_limited(20_000, "espirit", kspace, "--out", maps, "--workers", workers)
        assert full.returncode == 1
        assert "cannot be written (File too large)" in full.stderr
        assert "Traceback" not in full.stderr
        assert not list(maps.iterdir())
    assert run_limited(1 << 30, "espirit", kspace, "--out", maps).returncode == 0
    asked = [
        "--data.kspace",
        kspace,
        "--data.maps",
        maps,
        "--data.accel",
        "4",
        "--config",
        "mri/demo",
        "--runs",
        tmp_path / "runs",
    ]
    for limit in (3_000, 30_000, 300_000):
        full = run_limited(limit, "prepare", *asked)
        assert full.returncode == 1
        assert "observations.h5: cannot be written" in full.stderr or "references.h5: cannot be written" in full.stderr
        assert full.stderr.count("\n") < 10
        assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]


def test_a_place_that_is_taken(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotWritable, match="File exists"):
        write_text(tmp_path / "file" / "inside.txt", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(NotWritable, match="Is a directory"):
        write_text(tmp_path / "folder", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_other_errors_pass(tmp_path):
    with pytest.raises(RuntimeError, match="something else"), atomic(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise RuntimeError("something else")
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "x"):
        (tmp_path / "missing").read_bytes()
    assert not list(tmp_path.iterdir())
