"""The verb report: of a run that goes on, of a finished one, of several; and the page in a browser."""

import html
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from commands import run_command

from rsdmri import pages
from rsdmri.errors import UsageError, UserError
from rsdmri.files import sha256
from rsdmri.mri.__main__ import APPLICATION

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
SCORE = {"value": 2.0, "floor": 1.0, "n": 16, "low": 1.5, "high": 2.5}
SAME = {"n": 16, "features": "bands", "preprocessing": {"size": [16, 16]}, "bootstrap": 20}


def run(*arguments):
    return run_command(APPLICATION, *arguments)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


def begun(folder):
    """An experiment whose teacher is being trained."""
    write(folder / "pretrain" / "config.yaml", "pretrain: {images: 160}\n")
    write(
        folder / "pretrain" / "provenance.json",
        {"host": "cluster", "inputs": {"observations": "ab" * 32}, "settings": {"seed": 0}},
    )
    write(
        folder / "pretrain" / "metrics.jsonl",
        '{"images": 8, "seconds": 1, "loss": 3.0}\n{"images": 16, "seconds": 2, "loss": 2.0}\n{"ima',
    )
    return folder


def evaluated(folder, **circumstances):
    """An experiment with numbers, and samples that nobody can read."""
    samples = write(begun(folder) / "distill" / "samples.h5", "")
    row = {"name": "rsd", "seconds_per_image": 0.1, "network_calls": 1, "metrics": {"swd": SCORE}, "proximal": {}}
    result = {**SAME, **circumstances, "rows": [row], "samples": {"rsd": str(samples)}}
    write(folder / "evaluate" / "metrics.json", {key: value for key, value in result.items() if value != "left out"})
    return folder


def test_a_run_that_goes_on_has_a_page_of_curves(tmp_path):
    folder = begun(tmp_path / "mine")
    assert run("report", folder) == 0
    text = (folder / "report.html").read_text()
    assert "Nothing was evaluated yet" in text
    assert "goes on: 16 of 160 images after 2.00 s" in text
    assert "Loss of the teacher" in text and "ab" * 32 in text and "cluster" in text
    found = json.loads((folder / "report.json").read_text())
    assert found["rows"] == [] and found["config"] == (folder / "pretrain" / "config.yaml").read_text()
    assert found["provenance"]["pretrain"]["inputs"]["observations"] == "ab" * 32 and found["facts"]["Teacher"][0] in text


def test_a_folder_without_a_training_is_refused(tmp_path, capsys):
    write(tmp_path / "mine" / "prepare" / "config.yaml", "seed: 1\n")
    assert run("report", tmp_path / "mine") == 1
    assert "no training was begun here. Run: rsdmri-pretrain" in capsys.readouterr().err
    assert run("report", tmp_path / "nothing") == 2


def test_results_that_are_none_are_named(tmp_path, capsys):
    folder = begun(tmp_path / "mine")
    path = write(folder / "evaluate" / "metrics.json", "{}")
    assert run("report", folder) == 1
    assert f"{path}: not the results of an evaluation" in capsys.readouterr().err


def test_results_without_their_samples_are_named(tmp_path, capsys):
    folder = evaluated(tmp_path / "mine")
    (folder / "distill" / "samples.h5").unlink()
    assert run("report", folder) == 1
    error = capsys.readouterr().err
    assert f"{folder}/distill/samples.h5: no such file" in error and "Sample and evaluate again" in error


def test_samples_are_found_after_the_folder_was_moved(tmp_path):
    evaluated(tmp_path / "mine").rename(tmp_path / "yours")
    experiment = type("Experiment", (), {"folder": tmp_path / "yours"})()
    results = pages.results_of(experiment)
    assert results.samples == {"rsd": tmp_path / "yours" / "distill" / "samples.h5"}
    assert results.circumstances == SAME


def test_a_copy_shows_its_own_images(tmp_path, capsys):
    """And not those that now lie where the numbers were measured; images that have changed since are not shown at all."""
    folder = evaluated(tmp_path / "mine")
    path = folder / "evaluate" / "metrics.json"
    mine = folder / "distill" / "samples.h5"
    mine.write_text("mine")
    write(path, {**json.loads(path.read_text()), "samples_sha256": {"rsd": sha256(mine)}})
    shutil.copytree(folder, tmp_path / "copy")
    mine.write_text("another run's")
    experiment = type("Experiment", (), {"folder": tmp_path / "copy"})()
    assert pages.results_of(experiment).samples == {"rsd": tmp_path / "copy" / "distill" / "samples.h5"}
    assert run("report", folder) == 1
    assert "not the images any more that the row 'rsd' of" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("mine", "other", "sentences"),
    [
        (
            {"references": "a", "observations": "b"},
            {"references": "a", "observations": "c"},
            ["references are the same in all", "observations are not"],
        ),
        (
            {"references": "a", "observations": "b"},
            {"references": None, "observations": "b"},
            ["references are not", "observations are the same"],
        ),
        ({}, {}, ["compare where the references are the same pictures"]),
    ],
)
def test_whether_columns_compare_is_said(mine, other, sentences):
    said = pages._compared({name: pages.Results(compared_with=known) for name, known in (("a", mine), ("b", other))})
    assert all(sentence in said for sentence in sentences)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"n": 32}, "numbers of another n are not compared: a with 16; b with 32"),
        ({"features": "inception 6726825d"}, 'another features are not compared: a with "bands"; b with "inception 6726825d"'),
        ({"preprocessing": {"size": [32, 32]}}, "another preprocessing are not compared"),
        ({"preprocessing": {**SAME["preprocessing"], "white": 1.1}}, "magnitudes that are white: a 1; b 1.1. Prepare"),
        ({"preprocessing": "left out"}, "b: its evaluate/metrics.json does not say preprocessing"),
    ],
)
def test_numbers_that_do_not_compare_are_refused(tmp_path, other, message, capsys):
    folders = evaluated(tmp_path / "a"), evaluated(tmp_path / "b", **other)
    assert run("report", *folders) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_all_that_are_compared_were_evaluated_and_are_named_once(tmp_path, capsys):
    folders = evaluated(tmp_path / "a"), begun(tmp_path / "b")
    assert run("report", *folders) == 1
    assert f"{tmp_path}/b/evaluate/metrics.json: nothing was evaluated yet" in capsys.readouterr().err
    assert run("report", folders[0], folders[0]) == 2
    assert "named twice" in capsys.readouterr().err


def test_watching_writes_when_a_file_changed_and_ends_with_ctrl_c(tmp_path, monkeypatch, capsys):
    file = write(tmp_path / "metrics.jsonl", "")
    made, naps = [], iter([lambda: None, lambda: write(tmp_path / "metrics.jsonl", "more"), lambda: None])

    def make(refresh):
        made.append(refresh)
        if len(made) == 2:
            raise UserError("half written")
        return tmp_path

    def rest(seconds, request):
        assert seconds == 5
        nap = next(naps, None)
        if nap is None:
            raise KeyboardInterrupt
        nap()

    monkeypatch.setattr(pages, "_rest", rest)
    monkeypatch.setattr(pages, "stamp_of", lambda files: [path.read_text() for path in files])
    assert pages.watch(make, [file], 5) == tmp_path
    assert made == [5, 5, None]  # at first, after the change, and without a refresh at the end
    error = capsys.readouterr().err
    assert "half written" in error and "stopped" in error


def test_watching_waits_for_a_training_to_begin(tmp_path, monkeypatch, capsys):
    begin = iter([lambda: None, lambda: write(tmp_path / "config.yaml", "seed: 1")])

    def make(refresh):
        if not (tmp_path / "config.yaml").exists():
            raise UserError("no training was begun here")
        return tmp_path

    def rest(seconds, request):
        nap = next(begin, None)
        if nap is None:
            raise KeyboardInterrupt
        nap()

    monkeypatch.setattr(pages, "_rest", rest)
    assert pages.watch(make, [tmp_path / "config.yaml"], 5) == tmp_path
    error = capsys.readouterr().err
    assert "no training was begun here" in error and "looks again every 5 s" in error
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(UserError, match="no training"):  # until the end
        pages.watch(make, [tmp_path / "config.yaml"], 5)


def test_watching_does_not_wait_for_what_nothing_mends():
    def make(refresh):
        raise UsageError("named twice")

    with pytest.raises(UsageError):
        pages.watch(make, [], 5)


def test_watching_ends_when_a_scheduler_says_so(tmp_path, capsys):
    """With a page that is not read again and again for ever."""
    made = []

    def make(refresh):
        made.append(refresh)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start() if refresh else None
        return tmp_path

    assert pages.watch(make, [], 60) == tmp_path
    assert made == [60, None] and "stopped" in capsys.readouterr().err


def test_what_takes_long_is_kept_until_its_files_change(tmp_path):
    file, kept, calls = tmp_path / "file", pages.Kept(), []

    def make():
        calls.append(1)
        return len(calls)

    assert [kept.get("a", [file], make), kept.get("a", [file], make), kept.get("b", [file], make)] == [1, 1, 2]
    file.write_text("")
    assert kept.get("a", [file], make) == 3


def test_settings_that_differ_are_found_in_all_sections():
    trees = {
        name: pages._flat({"name": name, "seed": 0, "data": {"accel": accel, "size": (8, 9)}})
        for name, accel in (("a", 2.0), ("b", 4.0))
    }
    assert pages._differences(trees) == {"data.accel": ["2", "4"]}


# The whole, in a browser

SMALL = """
data: {accel: 4, display_max: 1.5}  # one white, so that the two seeds compare
network: {channels: 8, multipliers: [1, 2], blocks: 1}
pretrain: {images: 160, batch: 8, log: 8, save: 48, warmup: 16, ema: 100}
distill: {images: 64, batch: 8, log: 8, save: 32, sigma_min: 0.02, ema: 100}
sample: {n: 16, batch: 16, steps: 4}
evaluate: {bootstrap: 20}
"""
SELECTION = [
    {"images": 0, "seconds": 0, "row": "teacher", "n": 16, "proximal": {"swd": 60.0}, "true": {"swd": 90.0}},
    {"images": 32, "seconds": 1.5, "row": "rsd", "n": 16, "proximal": {"swd": 70.0}, "true": {"swd": 99.0}},
    {"images": 64, "seconds": 3, "row": "rsd", "n": 16, "proximal": {"swd": 50.0}, "true": {"swd": 80.0}},
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two finished experiments on the same small phantoms."""
    folder = tmp_path_factory.mktemp("pages")
    write(folder / "small.yaml", SMALL)
    assert (
        run("simulate", "--phantoms", "8", "--slices", "4", "--size", "16", "16", "--coils", "4", "--out", folder / "kspace") == 0
    )
    assert run("espirit", folder / "kspace", "--out", folder / "maps", "--workers", "1", "--calib", "12") == 0
    where = ["--config", folder / "small.yaml", "--data.kspace", folder / "kspace", "--data.maps", folder / "maps"]
    for seed in (0, 1):
        flags = [*where, "--runs", folder / "runs", "--name", f"seed{seed}", "--seed", seed]
        for verb in ("prepare", "pretrain", "distill"):
            assert run(verb, *flags) == 0
        for phase in ("pretrain", "distill"):
            assert run("sample", *flags, "--run", folder / "runs" / f"seed{seed}" / phase) == 0
        assert run("evaluate", *flags) == 0
    lines = "\n".join(json.dumps(line) for line in SELECTION)
    write(folder / "runs" / "seed0" / "distill" / "selection.jsonl", lines)
    return folder / "runs"


def test_a_page_without_the_data_has_what_was_made(trained, tmp_path, capsys):
    """A folder that was copied from a cluster without its gigabytes."""
    shutil.copytree(trained / "seed0", tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "prepare")
    assert run("report", tmp_path / "copy") == 0
    assert "no observations, references and neighbours" in capsys.readouterr().err
    text = (tmp_path / "copy" / "report.html").read_text()
    assert text.count("data:image/png;base64") > 8


TOOLS = """
const wrong = [], found = {};
addEventListener("error", (event) => wrong.push(event.message));
addEventListener("securitypolicyviolation", (event) => wrong.push(event.blockedURI));
const $ = (selector) => document.querySelector(selector);
const tell = (element, kind, about) => element.dispatchEvent(Object.assign(new Event(kind, {bubbles: true, cancelable: true}), about));
addEventListener("load", () => setTimeout(() => {
  try { act(); } catch (error) { wrong.push(String(error)); }
  found.wrong = wrong;
  found.loaded = performance.getEntriesByType("resource").map((entry) => entry.name).filter((name) => !name.startsWith("data:"));
  found.width = [document.documentElement.scrollWidth, innerWidth];
  parent.postMessage(JSON.stringify(found), "*");
}, 200));
"""
FRAME = """<!DOCTYPE html><title>frame</title><pre></pre>
<script>addEventListener("message", (event) => { document.querySelector("pre").textContent = event.data; });</script>
<iframe src="page.html" width="WIDTH" height="900"></iframe>"""


def browse(page: Path, folder: Path, width: int, script: str) -> dict:
    """What a script found in a page that is as wide as given; headless windows cannot be narrow, frames can."""
    text = page.read_text(encoding="utf-8")
    (folder / "page.html").write_text(
        text.replace("<style>", f"<script>{TOOLS}\nfunction act() {{{script}}}</script>\n<style>", 1)
    )
    (folder / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--enable-logging=stderr"]
    command = [BROWSER, *flags, f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=10000", "--window-size=1700,1000"]
    done = subprocess.run(
        [*command, "--dump-dom", f"file://{folder / 'frame.html'}"], capture_output=True, text=True, timeout=120
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    match = re.search(r"<pre>(.+?)</pre>", done.stdout, re.DOTALL)
    assert match, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads(html.unescape(match[1]))
    assert found["wrong"] == [] and found["loaded"] == []
    assert found["width"][0] <= found["width"][1] == width  # nothing sticks out
    return found


CHART = """
const chart = $(".chart"), svg = chart.querySelector("svg"), curves = svg.querySelector(".curves");
const labels = () => [...svg.querySelectorAll(".x-ticks text")].map((text) => text.textContent).join();
const at = () => curves.getAttribute("transform").slice(7, -1).split(" ").map(Number);
const box = svg.getBoundingClientRect(), middle = {clientX: box.left + box.width / 2, clientY: box.top + box.height / 2};
svg.setPointerCapture = () => {};  // there is no pointer to capture
found.home = at(); found.labels = labels();
svg.focus();
tell(svg, "keydown", {key: "+"}); tell(svg, "keydown", {key: "+"});
found.zoomed = at(); found.zoomedLabels = labels(); found.moved = chart.classList.contains("moved");
tell(svg, "pointerdown", {button: 0, pointerId: 1, ...middle});
tell(svg, "pointermove", {pointerId: 1, clientX: middle.clientX + 40, clientY: middle.clientY + 20});
tell(svg, "pointerup", {pointerId: 1});
found.dragged = at();
tell(svg, "keydown", {key: "ArrowRight"});
found.arrow = at();
tell(svg, "keydown", {key: "0"});
found.again = at();
tell(svg, "wheel", {deltaY: -200, ...middle});
found.wheel = at();
tell(svg, "dblclick", {});
found.double = at();
[...chart.querySelectorAll(".tools button")][0].click();
found.button = at();
[...chart.querySelectorAll(".tools button")][2].click();
tell(svg, "pointermove", middle);
found.where = chart.querySelector(".where").textContent; found.now = chart.querySelector(".now").textContent;
"""
IMAGES = """
const level = $("#level"), image = $(".tiles img"), before = image.src, phase = $('input[value="phase"]');
level.value = 0.3; tell(level, "input");
found.windowed = document.body.classList.contains("windowed");
found.slope = $("#window-level feFuncR").getAttribute("intercept");
found.filter = getComputedStyle(image).filter;
phase.checked = true; tell(phase, "input");
found.phase = image.src !== before && image.src === image.dataset.phase;
found.off = [level.disabled, document.body.classList.contains("windowed")];
$('input[value="magnitude"]').checked = true; tell(phase, "input");
found.back = image.src === before;
$("#reset").click();
found.reset = [level.value, document.body.classList.contains("windowed")];
tell(image, "keydown", {key: "Enter"});
found.open = $("dialog").open; found.same = $("dialog img").src === image.src;
tell($("dialog"), "keydown", {key: "ArrowRight"});
found.next = $("dialog p").textContent;
$("dialog").close();
found.stops = document.querySelectorAll('.tiles:first-of-type img[tabindex="0"]').length;
"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [400, 1600])
def test_the_page_of_a_run_works_in_a_browser(trained, tmp_path, width):
    assert run("report", trained / "seed0") == 0
    page = trained / "seed0" / "report.html"
    assert page.stat().st_size < 10e6
    found = browse(page, tmp_path, width, CHART + IMAGES)
    assert found["home"][:2] == [1, 0] and found["home"] == found["again"] == found["double"]
    assert found["zoomed"][0] == pytest.approx(2.25) == found["zoomed"][3] and found["moved"]
    assert found["labels"] != found["zoomedLabels"]
    assert found["dragged"][4] > found["zoomed"][4] and found["dragged"][5] > found["zoomed"][5]
    assert found["arrow"][4] < found["dragged"][4]
    assert found["wheel"][0] > 1.2 and found["button"][0] == pytest.approx(1.5)
    assert found["where"].startswith("at ") and found["now"]
    assert found["windowed"] and float(found["slope"]) == pytest.approx(0.2) and "window-level" in found["filter"]
    assert found["phase"] and found["off"] == [True, False] and found["back"]
    assert found["reset"] == ["0.5", False]
    assert found["open"] and found["same"] and found["next"] == "Observation, image 2"
    assert found["stops"] >= 1
    text = page.read_text(encoding="utf-8")
    assert "Nearest training images" in text and "Selection" in text and "64</span> <span" in text


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_page_that_is_read_again_looks_as_it_did(trained, tmp_path):
    assert run("report", trained / "seed0") == 0
    page = tmp_path / "followed.html"
    page.write_text(
        (trained / "seed0" / "report.html").read_text().replace('<html lang="en"', '<html lang="en" data-refresh="1"', 1)
    )
    script = """
      const chart = $(".chart"), svg = chart.querySelector("svg"), at = () => svg.querySelector(".curves").getAttribute("transform");
      const seen = () => [$("#level").value, $('input[value="phase"]').checked, $("pre").closest("details").open, at()];
      if (history.state) found.seen = seen();
      else {
        $("#level").value = 0.3; tell($("#level"), "input");
        $('input[value="phase"]').checked = true; tell($('input[value="phase"]'), "input");
        $("pre").closest("details").open = true;
        svg.focus(); tell(svg, "keydown", {key: "+"});
      }
      found.phases = document.body.classList.contains("phases");
    """
    found = browse(page, tmp_path, 1600, script)
    assert found["seen"][:3] == ["0.3", True, True] and found["phases"]
    assert float(found["seen"][3].removeprefix("matrix(").split()[0]) == pytest.approx(1.5)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [400, 1600])
def test_the_page_of_several_runs_works_in_a_browser(trained, tmp_path, width):
    folders = [trained / "seed0", trained / "seed1"]
    assert run("report", *folders) == 0
    page = trained / "report" / "report.html"
    script = """
      const select = $('select[data-chooses="distance"]');
      const seen = () => [...document.querySelectorAll('.choice[data-choice^="distance"]')].filter((table) => table.offsetHeight)
        .map((table) => table.caption.textContent.trim().split("\\u00a0")[0]);
      found.first = seen();
      select.selectedIndex = 1; tell(select, "input");
      found.second = seen();
    """
    found = browse(page, tmp_path, width, script)
    assert (found["first"], found["second"]) == (["SWD"], ["PSD gap"])
    text = page.read_text(encoding="utf-8")
    assert "<code>seed</code>" in text and text.count('data-choice="distance') == 18
    kept = json.loads((trained / "report" / "report.json").read_text())
    assert list(kept["runs"]) == ["seed0", "seed1"] and kept["differences"] == {"seed": ["0", "1"]}


@pytest.mark.slow
def test_the_page_of_an_evaluation_by_an_earlier_version(trained, tmp_path):
    folder = tmp_path / "seed0"
    shutil.copytree(trained / "seed0", folder)
    path = folder / "evaluate" / "metrics.json"
    result = json.loads(path.read_text())
    for row in result["rows"]:
        for kind in ("metrics", "proximal"):
            row[kind] = {"swd": {key: row[kind]["swd"][key] for key in ("value", "floor", "n")}}
    write(path, {key: result[key] for key in ("n", "rows", "samples")})
    assert run("report", folder) == 0
    text = (folder / "report.html").read_text()
    assert "Features: not recorded." in text and "Preprocessing: not recorded." in text and "<u style" not in text
