"""Run folders of an earlier version: options that it did not know have their defaults."""

import dataclasses

import pytest

from rsdmri.config import Experiment, ObjectiveConfig, to_tree
from rsdmri.errors import UserError
from rsdmri.files import read_json, write_json
from rsdmri.runs import open_run, with_new_options


def begun(folder, experiment):
    open_run(folder, experiment, ("objective", "pretrain"), {})
    return folder / "provenance.json"


def test_a_run_goes_on_after_an_option_was_added(tmp_path):
    experiment = Experiment()
    path = begun(tmp_path, experiment)
    tree = read_json(path)
    del tree["settings"]["objective"]["consistency"]  # as a version wrote it that did not have it
    write_json(path, tree)
    begun(tmp_path, experiment)
    other = dataclasses.replace(experiment, objective=ObjectiveConfig(kind="tweedie", consistency=1.0))
    with pytest.raises(UserError, match=r"objective\.consistency: 0\.0 then, 1\.0 now"):
        begun(tmp_path, other)


def test_only_what_is_wanted_is_added():
    defaults = to_tree(Experiment())
    wanted = {"seed": 3, "em": defaults["em"], "objective": {"std": 1.2}}
    found = with_new_options({"seed": 3, "objective": {}, "other": 1}, wanted, defaults)
    assert found == {"seed": 3, "objective": {"std": 1.2}, "other": 1, "em": defaults["em"]}


def test_what_a_run_derives_is_compared_whatever_its_name(tmp_path):
    """Sections that are free may hold what a run depends on all the same."""
    experiment = Experiment(runs=tmp_path, name="x")
    open_run(tmp_path / "run", experiment, (), {}, {"evaluate.features": "bands"})
    with pytest.raises(UserError, match=r"settings\.evaluate\.features: 'bands' then, 'inception' now"):
        open_run(tmp_path / "run", experiment, (), {}, {"evaluate.features": "inception"})
