"""The page and its numbers."""

import dataclasses
import html
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from rsdmri.errors import UserError
from rsdmri.grids import save_grid
from rsdmri.report_charts import charts, running_mean, short
from rsdmri.reporting import (
    Curve,
    Grid,
    Row,
    Score,
    duration,
    load_curves,
    number,
    write_report,
)

VOID = {"meta", "img", "input", "br", "link", "hr"}
HOSTILE = "<script>alert('x')</script>\"&{{ 7 * 7 }}"


class Page(HTMLParser):
    """Checks that tags are nested, and collects elements and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def images(n=4, *shape):
    return np.random.default_rng(0).uniform(size=(n, *(shape or (8, 8))))


ROWS = [
    Row("observation", None, None, {"swd": Score(50.0, 5.0, 64), "psd": Score(0.5, 0.02, 64)}),
    Row(
        "teacher",
        0.07,
        35,
        {"swd": Score(20.0, 5.0, 64), "psd": Score(0.7, 0.02, 64)},
        {"swd": Score(12.0, 6.0, 64)},
    ),
    Row(
        "rsd",
        0.002,
        1,
        {"swd": Score(9.0, 5.0, 64), "psd": Score(0.01, 0.02, 64)},
        {"swd": Score(8.0, 6.0, 64)},
    ),
]
CURVES = [
    Curve("teacher", [1000, 2000, 3000], [3.0, float("nan"), 0.1]),
    Curve("rsd", [1000, 2000], [9.0, 8.0], y_label="proximal SWD"),
]
GRIDS = [Grid("observation", images()), Grid("rsd", images()), Grid("reference", images())]


def report(folder, rows=ROWS, curves=CURVES, grids=GRIDS, **options):
    arguments = {"title": "Phantoms", "provenance": {"torch": "2.13"}, "config_text": "seed: 0"}
    write_report(folder, rows=rows, curves=curves, images=grids, **{**arguments, **options})
    return (folder / "report.html").read_text(encoding="utf-8")


def test_json_holds_the_rows_and_nothing_else(tmp_path):
    rows = [*ROWS, Row("broken", math.nan, None, {"swd": Score(math.inf, None, 64)})]
    report(tmp_path, rows)
    found = json.loads((tmp_path / "report.json").read_text())
    assert list(found) == ["rows"]
    assert found["rows"][2] == {
        "name": "rsd",
        "seconds_per_image": 0.002,
        "network_calls": 1,
        "metrics": {
            "swd": {"value": 9.0, "floor": 5.0, "n": 64, "low": None, "high": None},
            "psd": {"value": 0.01, "floor": 0.02, "n": 64, "low": None, "high": None},
        },
        "proximal": {"swd": {"value": 8.0, "floor": 6.0, "n": 64, "low": None, "high": None}},
    }
    assert found["rows"][3]["metrics"] == {"swd": {"value": None, "floor": None, "n": 64, "low": None, "high": None}}
    assert found["rows"][3]["seconds_per_image"] is None


def test_page_loads_nothing(tmp_path):
    text = report(tmp_path)
    assert "http://" not in text and "https://" not in text and "@import" not in text
    elements = Page(text).elements
    assert not [tag for tag, _ in elements if tag in ("link", "iframe", "object", "embed")]
    sources = [a["src"] for _, a in elements if "src" in a]
    assert len(sources) == 12
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not [a for tag, a in elements if tag == "script" and a]
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", text))


def test_page_says_what_was_found(tmp_path):
    text = Page(report(tmp_path)).text
    assert "35 times as long" in text
    assert "the generator lies 9.00 from the clean images, the teacher 20.0" in text
    assert "Clean reference used for evaluation only" in text
    assert "at the floor 0.0200" in text
    assert text.count("worse than the observations") == 1
    assert "worse than the observations: PSD gap" in text
    assert text.count("best") == 3  # in each of three columns
    assert "9.00 best" in text and "8.00 best" in text
    assert "n\xa0=\xa064" in text or "n = 64" in text


def test_floor_is_never_the_best_value(tmp_path):
    rows = [Row("observation", metrics={"swd": Score(9.0, 5.0, 32)}), Row("teacher"), Row("rsd")]
    text = Page(report(tmp_path, rows)).text
    assert " best" not in text  # one value alone is not the best of anything
    assert "worse than" not in text


def test_numbers_of_images_are_shown_where_they_differ(tmp_path):
    rows = [ROWS[0], Row("rsd", metrics={"swd": Score(9.0, 6.0, 32)})]
    text = Page(report(tmp_path, rows)).text.replace("\xa0", " ")
    assert "floor 5.00, n = 64" in text and "floor 6.00, n = 32" in text


def test_hostile_names_are_only_text(tmp_path):
    text = report(
        tmp_path,
        rows=[Row(HOSTILE, metrics={HOSTILE: Score(1.0, 0.5, 16)})],
        curves=[Curve(HOSTILE, [1, 2], [1, 2], HOSTILE, HOSTILE)],
        grids=[Grid(HOSTILE, images(), HOSTILE)],
        title=HOSTILE,
        provenance={HOSTILE: [HOSTILE]},
        config_text=HOSTILE,
        summary=HOSTILE,
    )
    page = Page(text)
    assert len([tag for tag, _ in page.elements if tag == "script"]) == 1
    assert "<script>alert" not in text and "49" not in html.unescape(page.text)
    assert page.text.count("alert('x')") >= 8


@pytest.mark.parametrize(
    "parts",
    [
        {"rows": [], "curves": [], "grids": []},
        {"grids": GRIDS[:2]},
        {"rows": [Row("rsd")]},
        {"rows": [Row("rsd", metrics={"swd": Score(None, None, 0)}), Row("teacher")]},
        {"rows": [Row("rsd", metrics={"swd": Score(0.0, 0.0, 16)})]},
        {"rows": [dataclasses.replace(ROWS[2], network_calls=2), *ROWS[:2]]},
        {"curves": [Curve("a", [1], [math.nan]), Curve("b", [], []), Curve("c", [5], [2.0])]},
        {"grids": [Grid("one", images(1, 8, 8, 3)), Grid("many", images(50, 5, 9))]},
    ],
)
def test_missing_parts_are_left_out(tmp_path, parts):
    text = Page(report(tmp_path, **parts)).text
    assert "nan" not in text.lower().split() and "None" not in text


def test_clean_images_are_mentioned_only_where_they_were_used(tmp_path):
    rows = [Row("teacher", proximal={"swd": Score(2.0, 1.0, 16)})]
    text = Page(report(tmp_path, rows, grids=[])).text
    assert "No clean image took part." in text and "From the clean images" not in text


@pytest.mark.parametrize("shape", [(8, 8), (2, 8, 8, 4), (0, 8, 8)])
def test_refuses_what_is_not_images(tmp_path, shape):
    with pytest.raises(UserError, match="images to show"):
        report(tmp_path, grids=[Grid("a", np.zeros(shape))])
    assert not list(tmp_path.iterdir())


def test_load_curves_survives_a_crash_and_a_resumption(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text(
        '{"images": 10, "loss": 4.0, "seconds": 1.0, "note": "a", "best": true}\n'
        '{"images": 20, "loss": 3.0, "seconds": 2.0}\n'
        '{"images": 30, "lo\n'  # the crash, and behind it the resumed run
        '{"images": 20, "loss": 2.0, "loss_fake": NaN}\n'
        "[1]\n"
        '{"images": 30, "loss": 1.0, "loss_fake": 5}\n'
        '{"images": 40, "loss": 0.'
    )
    loss, fake = load_curves(log)
    assert (loss.label, loss.x, loss.y) == ("loss", [10, 20, 30], [4, 2, 1])
    assert (fake.y_label, fake.x, fake.y[1]) == ("loss fake", [20, 30], 5)
    assert math.isnan(fake.y[0])
    assert [curve.label for curve in load_curves(log, "teacher")] == ["teacher", "teacher"]
    with pytest.raises(UserError, match=r"nothing\.jsonl"):
        load_curves(tmp_path / "nothing.jsonl")


def test_long_curves_are_smoothed_without_a_lag(tmp_path):
    lines = [json.dumps({"images": i, "loss": i + (-1) ** i}) for i in range(400)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    (curve,) = load_curves(tmp_path / "metrics.jsonl")
    assert len(curve.raw) == 400 and curve.raw[100] == 101
    assert curve.y[100] == pytest.approx(100, abs=0.2)


def test_running_mean_leaves_gaps_out():
    assert running_mean([1, math.nan, 3, 5], 3) == [1, 2, 4, 4]
    assert math.isnan(running_mean([math.nan], 1)[0])


def test_charts_share_axes_by_label_and_break_at_gaps():
    long = Curve("long", range(5000), np.linspace(1, 2, 5000), "steps", "other")
    first, second = charts([*CURVES[:1], Curve("b", [1000], [1.0]), long])
    assert [line["label"] for line in first["lines"]] == ["teacher", "b"]
    assert first["log"] and not second["log"]
    assert first["lines"][0]["path"].count("M") == 2
    assert len(first["lines"][0]["points"]) == 2
    assert len(second["lines"][0]["points"]) == 400
    left, top, right, bottom = first["frame"]
    assert all(left <= tick["at"] <= right for tick in first["x_ticks"])
    assert all(top <= tick["at"] <= bottom for tick in first["y_ticks"])
    assert [tick["text"] for tick in first["x_ticks"]] == ["1k", "1.5k", "2k", "2.5k", "3k"]
    assert second["x_ticks"][0] == {"at": left, "text": "0"}


def test_numbers_and_times_are_short():
    assert [number(v) for v in (0.01234, 73.04, 1234.5, 0.0, None, math.nan, -2.0)] == [
        "0.0123",
        "73.0",
        "1,234",
        "0",
        "–",
        "–",
        "−2.00",
    ]
    assert [duration(v) for v in (2e-5, 0.0019, 1.5, 600.0, None)] == [
        "20.0 µs",
        "1.90 ms",
        "1.50 s",
        "10.0 min",
        "–",
    ]
    assert [short(v) for v in (0.05, 1500, 1.2e6, -3)] == ["0.05", "1.5k", "1.2M", "−3"]


@pytest.mark.parametrize("colour", [(), (3,)])
def test_save_grid_places_images_row_by_row(tmp_path, colour):
    values = np.linspace(0, 1, 5).reshape(5, 1, 1, *[1] * len(colour))
    values[0] = np.nan  # black
    save_grid(tmp_path / "grid.png", np.broadcast_to(values, (5, 4, 6, *colour)), 3)
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    assert sheet.shape == (9, 20, *colour)
    assert (sheet[:4, :6] == 0).all() and (sheet[5:, 7:13] == 255).all()
    assert (sheet[:4, 7:13] == 64).all() and (sheet[5:, 14:] == 0).all()


def test_observations_are_no_rival_in_what_is_measured_from_themselves(tmp_path):
    """A proximal distance compares with the observations: their own is the floor, and nobody is worse for missing it."""
    floor = {"swd": Score(10.0, 10.0, 64)}
    rows = [
        Row("observation", proximal=floor),
        Row("teacher", 0.1, 35, proximal={"swd": Score(30.0, 10.0, 64)}),
        Row("rsd", 0.001, 1, proximal={"swd": Score(20.0, 10.0, 64)}),
    ]
    write_report(tmp_path, "proximal", rows, [], [], {}, "")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "worse than the observations" not in text
    assert text.count('class="best"') == text.count(">best<") == 1
