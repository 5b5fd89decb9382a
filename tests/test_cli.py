"""The commands as users meet them: help that answers at once, mistakes that are named, exit codes."""

import re
import subprocess
import sys
import time

import pytest

from rsdmri import cli
from rsdmri.mri.__main__ import APPLICATION
from rsdmri_natural.__main__ import APPLICATION as NATURAL


def run(*arguments, application=APPLICATION):
    return cli.run(application, [str(a) for a in arguments])


@pytest.mark.parametrize("verb", ["", *APPLICATION.commands])
def test_help_is_quick_and_imports_no_torch(verb):
    """Whole process, best of two: a busy machine may slow one."""
    script = (
        "import sys\nfrom rsdmri import cli\nfrom rsdmri.mri.__main__ import APPLICATION\n"
        f"try:\n    cli.run(APPLICATION, {[verb] if verb else []!r} + ['--help'])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = [m for m in ('torch', 'sigpy', 'monai', 'fastmri', 'h5py') if m in sys.modules]\nassert not heavy, heavy\n"
    )
    times = []
    for _ in range(2):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        times.append(time.perf_counter() - began)
        assert done.returncode == 0, done.stderr
        assert max(map(len, done.stdout.splitlines())) <= 120
        if verb:
            assert f"Example: rsdmri-{verb}" in done.stdout
        else:
            assert all(name in done.stdout for name in APPLICATION.commands)
    assert min(times) < 3


@pytest.mark.parametrize("verb", NATURAL.commands)
def test_photographs_have_the_same_verbs(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        run(verb, "--help", application=NATURAL)
    assert stop.value.code == 0
    assert verb in APPLICATION.commands


def test_unknown_verb(capsys):
    assert run("distil") == 2
    assert "did you mean 'distill'" in capsys.readouterr().err


def test_unknown_flag(capsys):
    for given, meant in (
        ("--data.acel", "--data.accel"),
        ("--acel=4", "--accel"),
        ("--lr", "--pretrain.lr"),
        ("--accel.data", "--accel"),
        ("--smaple.n", "--sample.n"),
    ):
        assert run("distill", given, "4") == 2
        message = capsys.readouterr().err
        assert message.startswith(f"error: unknown flag '{given.partition('=')[0]}' (did you mean ")
        assert meant in message
    assert run("distill", "--zzzzzzzz") == 2
    assert "unknown flag '--zzzzzzzz'; --help lists all" in capsys.readouterr().err
    assert run("espirit", "scans", "--out", "x", "--krenel", "5") == 2
    assert "did you mean --kernel?" in capsys.readouterr().err


@pytest.mark.parametrize("application", [APPLICATION, NATURAL])
def test_every_flag_that_help_shows_is_known(application, capsys):
    for verb, command in application.commands.items():
        with pytest.raises(SystemExit):
            run(verb, "--help", application=application)
        shown = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", capsys.readouterr().out))
        shown -= {"--help", *application.aliases} | set(re.findall(r"--[a-z][\w.-]*", command.example))
        unknown = [flag for flag in shown if flag not in set(cli._flags(command.options))]
        assert not unknown, (verb, unknown)


def test_several_configurations_apply_in_their_order(tmp_path, capsys):
    (tmp_path / "one.yaml").write_text("pretrain: {batch: 3, images: 7}\n")
    (tmp_path / "two.yaml").write_text("pretrain: {batch: 5}\n")
    where = ["--config", tmp_path / "one.yaml", "--config", tmp_path / "two.yaml"]
    assert run("pretrain", *where, "--pretrain.lr", "0.25", "--print-config") == 0
    out = capsys.readouterr().out
    assert "batch: 5" in out
    assert "images: 7" in out
    assert "lr: 0.25" in out


def test_a_report_is_not_watched_more_often_than_once_a_second(capsys):
    assert run("report", "--accel", "4", "--watch", "0.1") == 2
    assert "--watch 0.1" in capsys.readouterr().err


def test_unknown_key(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("pretrain: {bach: 3}\n")
    assert run("pretrain", "--config", tmp_path / "mine.yaml") == 2
    assert "mine.yaml: unknown key 'pretrain.bach' (did you mean 'batch'?)" in capsys.readouterr().err


def test_accel_alone_means_the_configuration_of_that_acceleration(capsys):
    assert run("distill", "--accel", "4", "--print-config") == 0
    out = capsys.readouterr().out
    assert "name: mri-r4" in out
    assert "multipliers:\n  - 1\n  - 1\n  - 2\n  - 4" in out


def test_accel_after_a_configuration_is_a_flag(capsys):
    assert run("distill", "--config", "mri/demo", "-R", "5", "--print-config") == 0
    out = capsys.readouterr().out
    assert "accel: 5.0" in out
    assert "name: mri-demo" in out


def test_missing_teacher_exits_2_with_the_command(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("distill", "--accel", "4") == 2
    assert "rsdmri-pretrain --config mri/r4\n" in capsys.readouterr().err
    assert run("distill", "--accel", "4", "--name", "my-own") == 2
    assert "rsdmri-pretrain, with the configuration and the flags of this command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed", "-1"], "seed must not be negative"),
        (["--pretrain.betas", "2", "2"], "pretrain.betas"),
        (["--sample.rho", "0"], "sample.rho"),
        (["--data.size", "0", "0"], "data.size"),
    ],
)
def test_limits_that_flags_break_are_named(flags, message, capsys):
    try:
        code = run("pretrain", "--config", "mri/demo", *flags)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    printed = capsys.readouterr()
    assert message in printed.err + printed.out
    assert "Traceback" not in printed.err


def test_an_output_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    code = run("simulate", "--phantoms", "1", "--slices", "1", "--size", "16", "16", "--out", tmp_path / "file" / "kspace")
    assert code == 1
    assert "in the way" in (tmp_path / "file").read_text()
    assert "error: " in capsys.readouterr().err


def test_dry_run_touches_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("pretrain", "--config", "mri/demo", "--dry-run") == 0
    assert "runs/mri-demo/pretrain" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_em_asks_for_what_it_starts_from(capsys, tmp_path):
    where = ["--accel", "4", "--objective.kind", "standard", "--network.mask-input", "one", "--dry-run"]
    assert run("em", *where) == 2
    assert "--em.clean" in capsys.readouterr().err
    (tmp_path / "references.h5").touch()
    assert run("em", *where, "--em.clean", str(tmp_path / "references.h5")) == 0


def test_missing_data_is_one_sentence(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("prepare", "--config", "mri/demo") == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "runs/mri-demo/kspace: no such file or folder" in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("accel", "acs"), [("20", "2"), ("5", "8")])
def test_an_acceleration_that_the_matrix_cannot_give(accel, acs, capsys, tmp_path):
    run("simulate", "--phantoms", "1", "--slices", "1", "--size", "16", "16", "--coils", "2", "--out", tmp_path / "kspace")
    run("espirit", tmp_path / "kspace", "--out", tmp_path / "maps", "--workers", "1", "--calib", "12")
    where = ["--data.kspace", tmp_path / "kspace", "--data.maps", tmp_path / "maps", "--runs", tmp_path / "runs"]
    capsys.readouterr()
    assert run("prepare", *where, "--data.accel", accel, "--data.acs", acs) == 1
    err = capsys.readouterr().err
    assert "phantom_0000.h5" in err
    assert "possible" in err
    assert not list((tmp_path / "runs").rglob("observations.h5"))


def test_an_acceleration_without_a_configuration_needs_one(capsys):
    assert run("pretrain", "--accel", "3") == 2
    assert "there is no configuration mri/r3" in capsys.readouterr().err
    assert run("pretrain", "--accel", "4.0", "--dry-run") == 0
    assert "mri-r4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("verb", "place"),
    [("prepare", "runs/mri-r4/prepare"), ("sample", "the folder of the run"), ("report", "runs/mri-r4/report.html")],
)
def test_a_dry_run_names_the_place_of_the_results(verb, place, capsys):
    assert run(verb, "--accel", "4", "--dry-run") == 0
    assert place in capsys.readouterr().out


def test_numbers_of_flags_are_finite(tmp_path, capsys):
    assert run("simulate", "--phantoms", "1", "--phase", "nan", "--out", tmp_path / "x") == 2
    assert "phase must be finite" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
