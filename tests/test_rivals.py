"""No rival of the tables is handicapped: what is tried of each, how long, and that a result is never of other settings than it says."""

import argparse
import json
import sys
from pathlib import Path

import pytest

from rsdmri.config import to_tree
from rsdmri.errors import UserError

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import rivals
from comparison import run_jobs, settings_of
from reproduce_small import experiment_of
from rival_runs import action

FACES = Path("faces.npz")


@pytest.fixture
def options(tmp_path):
    return argparse.Namespace(runs=tmp_path / "runs", results=tmp_path / "results", images=FACES)


@pytest.mark.parametrize(("row", "rival"), rivals.PAIRS)
def test_every_rival_is_a_valid_experiment_of_its_row(row, rival):
    experiment, _, _ = experiment_of(row, 0, Path("runs"), FACES)
    found = rivals.candidates_of(experiment, rival)
    assert 1 <= len(found) <= 3
    assert len({json.dumps(to_tree(candidate), default=str) for candidate in found.values()}) == len(found)
    for candidate in found.values():
        assert candidate.data == experiment.data and candidate.network == experiment.network and candidate.seed == experiment.seed
        short = rivals.shortened(candidate)
        assert 2.9 < candidate.pretrain.images / short.pretrain.images < 3.1
        assert 2.9 < candidate.distill.images / short.distill.images < 3.1
        if rival in ("l1", "em"):
            assert candidate.objective.kind == "standard"
        if rival == "em":  # as many images as the longer teacher, in all
            seen = candidate.em.first + candidate.em.laps * candidate.em.lap
            assert 0.98 * experiment.pretrain.images < seen <= experiment.pretrain.images
            assert short.em.laps == 2 and 2.9 < seen / (short.em.first + short.em.laps * short.em.lap) < 3.1
        if rival in ("dmd", "sds"):
            assert candidate.distill.divergence == rival
    assert callable(action(rival))


def scored_by(scores, calls):
    """In the place of what trains: the score of a folder, and a note of what was run."""

    def made(rival):
        def run(job):
            calls.append(job.folder.name)
            row = {"metrics": {"swd": {"value": scores[job.folder.name]}}, "proximal": {}}
            return {"rows": {"L1": row, "it": row}, "settings": settings_of(job.experiment)}

        return run

    return made


def test_the_best_candidate_is_run_and_nothing_twice(options, monkeypatch):
    scores = {"dmd-rate-of-the-row": 50.0, "dmd-half-the-rate": 40.0, "dmd-twice-the-rate": 60.0, "dmd": 30.0}
    calls = []
    monkeypatch.setattr(rivals, "action", scored_by(scores, calls))
    monkeypatch.setattr(rivals, "teacher_of", lambda row, base: None)
    monkeypatch.setattr(rivals, "prepared", lambda experiment, domain: None)
    for _ in range(2):
        rivals.run_job("mri_r4", "dmd", 1, options)
        assert calls == list(scores)  # the second time everything is there
    result = json.loads((options.results / "mri_r4-dmd-seed1.json").read_text())
    assert result["candidate"] == "half the rate" and result["seed"] == 1
    row, _, _ = experiment_of("mri_r4", 1, options.runs, FACES)
    assert result["settings"]["distill"]["lr_generator"] == 0.5 * row.distill.lr_generator
    monkeypatch.setattr(rivals, "RATES", {"rate of the row": 1.0, "half the rate": 0.4})
    with pytest.raises(UserError, match="of other settings"):
        rivals.run_job("mri_r4", "dmd", 1, options)
    assert calls[4:] == ["dmd-half-the-rate"]  # the verdict of a candidate that was changed is not used
    assert "half the rate: 40.0; rate of the row: 50.0" in rivals.tried_table(options.results)


def test_without_the_teacher_nothing_is_begun(options, capsys):
    """And the next job is run."""
    done = []
    jobs = [lambda: rivals.run_job("mri_r4", "sds", 0, options), lambda: done.append(True)]
    assert run_jobs(jobs) == 1
    assert "Run reproduce_small.py for this row first" in capsys.readouterr().err and done == [True]
    assert not options.runs.exists()
