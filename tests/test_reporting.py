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
from rsdmri.report_images import HUES, SHADES, block_means, features_of, phase_colours, phase_indices, shows, yardstick_of
from rsdmri.report_tables import comparison, label_of, tables
from rsdmri.reporting import (
    Comparison,
    Curve,
    Grid,
    Neighbours,
    Report,
    Row,
    Score,
    Yardstick,
    duration,
    load_curves,
    number,
    write_comparison,
    write_report,
)
from rsdmri.selection_table import read_selection, selection_table

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
    about = {"title": "Phantoms", "provenance": {"torch": "2.13"}, "config_text": "seed: 0"}
    write_report(folder, Report(rows=rows, curves=curves, images=grids, **{**about, **options}))
    return (folder / "report.html").read_text(encoding="utf-8")


def test_json_holds_the_numbers(tmp_path):
    rows = [*ROWS, Row("broken", math.nan, None, {"swd": Score(math.inf, None, 64)})]
    report(tmp_path, rows, circumstances={"n": 64, "features": "bands"})
    found = json.loads((tmp_path / "report.json").read_text())
    assert list(found) == ["title", "evaluation", "rows", "selection", "neighbours", "facts", "provenance", "config"]
    assert found["evaluation"] == {"n": 64, "features": "bands"}
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
    assert len(sources) == 12  # and none for the key of the phases, because no image has one
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not [a for tag, a in elements if tag == "script" and a]
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", text))


def test_page_says_what_was_found(tmp_path):
    text = Page(report(tmp_path)).text
    assert "35 times as long" in text
    assert "the generator lies 9.00 from the clean images, the teacher 20.0" in text
    assert "Clean reference for evaluation only" in text
    assert text.count("at the floor") == 1
    assert text.count("worse than the observations") == 1
    assert text.count("best") == 3  # on each of three lines
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
    assert "floor 5.00 n = 64" in text and "floor 6.00 n = 32" in text


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
        facts=[(HOSTILE, [HOSTILE])],
        circumstances={"features": HOSTILE, "preprocessing": {HOSTILE: HOSTILE}},
        neighbours=[Neighbours(HOSTILE, images(1), images(1), [0.5])],
        yardstick=Yardstick(10, 1.0, 2.0),
    )
    page = Page(text)
    assert len([tag for tag, _ in page.elements if tag == "script"]) == 1
    assert "<script>alert" not in text and "49" not in html.unescape(page.text)
    assert page.text.count("alert('x')") >= 14


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
    assert first["data"]["lines"][0]["points"] == [[1000, 3.0], [3000, 0.1]]
    assert len(second["data"]["lines"][0]["points"]) == 1000
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
    assert [duration(v) for v in (2e-5, 0.0019, 1.5, 600.0, 9000.0, None)] == [
        "20.0 µs",
        "1.90 ms",
        "1.50 s",
        "10.0 min",
        "2.50 h",
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
    text = report(tmp_path, rows, [], [])
    assert "worse than the observations" not in text and "at the floor" not in text
    assert text.count('class="best"') == text.count(">best<") == 1


# Tables


def scored(**values):
    return {
        name: Score(value, 0.95 if name in ("recall", "coverage") else 0.1, 64, value - 0.1, value + 0.1)
        for name, value in values.items()
    }


HIGHER = [
    Row("observation", metrics=scored(recall=0.5, frechet=2.0)),
    Row("teacher", metrics=scored(recall=0.7, frechet=1.0)),
    Row("rsd", metrics=scored(recall=0.4, frechet=0.5)),
]


def test_some_numbers_are_the_better_the_higher():
    (table,) = tables(HIGHER, "bands")
    recall, frechet = table["lines"]
    assert [cell["best"] for cell in recall["cells"]] == [False, True, False]
    assert [cell["worse"] for cell in recall["cells"]] == [False, False, True]
    assert [cell["best"] for cell in frechet["cells"]] == [False, False, True]
    assert not any(cell["worse"] for cell in frechet["cells"])
    (table,) = tables([Row("rsd", metrics={"recall": Score(0.96, 0.95, 64)})])
    assert table["lines"][0]["cells"][0]["at_floor"]


def test_bars_and_intervals_share_the_scale_of_their_line():
    (table,) = tables(HIGHER)
    bars = [cell["bar"] for cell in table["lines"][1]["cells"]]
    assert bars[0]["high"] == 100 and bars[0]["value"] == pytest.approx(100 * 2.0 / 2.1)
    assert bars[2]["low"] == pytest.approx(100 * 0.4 / 2.1)
    # A distance without bias may lie below zero: its bar is empty, not to the left of its beginning.
    (table,) = tables([Row("rsd", metrics={"kid": Score(-0.001, -0.002, 64, -0.003, 0.001)})])
    assert table["lines"][0]["cells"][0]["bar"] == {"value": 0, "low": 0, "high": 100, "floor": 0}


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        ("bands", ["Fréchet (bands)", "KID (bands)"]),
        ("inception 6726825d", ["FID", "KID"]),
        ("torchscript mine.pt 01234567", ["Fréchet (torchscript)", "KID (torchscript)"]),
        (None, ["Fréchet", "KID"]),
    ],
)
def test_only_the_features_of_inception_make_fid(features, labels):
    assert [label_of("frechet", features), label_of("kid", features)] == labels
    assert label_of("swd", features) == "SWD" and label_of("other", features) == "other"


def test_missing_intervals_are_left_out(tmp_path):
    both = [Row("rsd", metrics={"swd": Score(2.0, 1.0, 64, 1.5, 2.5)}), Row("teacher", metrics={"swd": Score(3.0, 1.0, 64)})]
    text = report(tmp_path, both)
    assert text.count("<u style") == 1
    assert "[1.50, 2.50]" in text and "None" not in Page(text).text


def test_a_comparison_has_a_table_a_distance_and_a_column_an_experiment(tmp_path):
    runs = {"a": HIGHER, "b": [Row("rsd", 0.1, 1, metrics=scored(recall=0.9))]}
    recall, frechet = comparison(runs, "bands")
    assert (recall["label"], recall["higher"], frechet["higher"]) == ("Recall", True, False)
    assert [line["name"] for line in recall["lines"]] == ["observation", "teacher", "rsd"]
    assert [[cell["value"] for cell in line["cells"]] for line in recall["lines"]] == [[0.5, None], [0.7, None], [0.4, 0.9]]
    assert recall["lines"][2]["cells"][1]["bar"]["high"] == 100  # the bars of all columns compare
    assert frechet["floors"] == [0.1, None]
    grids = {"rsd": [Grid("a", images()), Grid("b", images())]}
    write_comparison(tmp_path, Comparison(title="a and b", rows=runs, differences={"seed": ["0", "1"]}, images=grids))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "seed 0 1" in page.text and "0.900" in page.text
    assert json.loads((tmp_path / "report.json").read_text())["runs"]["b"][0]["metrics"]["recall"]["value"] == 0.9


# Images


def test_phases_go_round_a_circle_of_equal_lightness_and_are_dimmed_by_magnitude():
    colours = phase_colours().reshape(HUES, SHADES, 3).astype(float)
    assert not colours[:, 0].any()
    luminance = colours[:, -1] / 255 @ (0.2126, 0.7152, 0.0722)
    assert np.ptp(luminance) < 0.1
    steps = np.linalg.norm(colours[:, -1] - np.roll(colours[:, -1], 1, 0), axis=1)
    assert steps.max() < 2.5 * steps.min()  # nowhere a jump, also not from pi to -pi
    angle = 2 * np.pi * np.arange(-HUES // 2, HUES // 2) / HUES
    pixels = np.exp(1j * angle)[None, None] * np.array([1.0, 0.36, 0.0])[:, None]
    found = phase_indices(pixels)
    assert (found[0, 0] // SHADES == np.arange(-HUES // 2, HUES // 2) % HUES).all()
    assert [int(s) for s in found[0][:, 5] % SHADES] == [SHADES - 1, round(0.6 * (SHADES - 1)), 0]


def test_phases_are_in_the_page_once_more_and_small(tmp_path):
    pair = np.random.default_rng(0).normal(size=(2, 2, 300, 200))
    grid = Grid("rsd", np.abs(pair[0]), complex_images=pair[0] + 1j * pair[1])
    text = report(tmp_path, grids=[grid])
    found = [a for _, a in Page(text).elements if a.get("data-phase")]
    assert len(found) == 2
    assert all(len(a["data-phase"]) < 0.4 * len(a["src"]) for a in found)
    assert 'value="phase"' in text and 'value="phase"' not in report(tmp_path)
    with pytest.raises(UserError, match="cannot be those of"):
        report(tmp_path, grids=[Grid("rsd", np.abs(pair[0]), complex_images=pair[0][:1] + 0j)])


def test_large_images_are_fewer_and_their_thumbnails_small():
    sizes = ((64, 64), (384, 320), (1024, 1024))
    assert [shows(size, 16, 5) for size in sizes] == [16, 8, 2]
    assert [shows(size, 16, 18) for size in sizes] == [16, 2, 2]  # six runs in columns
    assert block_means(np.ones((2, 300, 200)), 128).shape == (2, 100, 66)
    assert block_means(np.ones((2, 64, 64, 3)), 128).shape == (2, 64, 64, 3)


def test_neighbours_stand_beside_a_yardstick(tmp_path):
    features = features_of(images(20, 16, 16))
    assert features.shape[0] == 20
    found = yardstick_of(np.array([[0.0], [1.0], [3.0], [7.0]]))
    assert (found.observations, found.to_nearest, found.to_any) == (4, 1.5, 3.5)
    pairs = Neighbours("rsd", images(3), images(3), [0.4, 0.3, 0.5])
    text = Page(report(tmp_path, neighbours=[pairs], yardstick=found)).text
    assert "the closest pair is 0.300 apart" in text and "typically 1.50 away" in text and "corrupted images" in text
    kept = json.loads((tmp_path / "report.json").read_text())["neighbours"]
    assert kept["distances"] == {"rsd": [0.4, 0.3, 0.5]} and kept["observations"]["to_any"] == 3.5


# Selection


def line(row, images, proximal, true=None, metric="swd"):
    found = {metric: true} if true is not None else {}
    return {"images": images, "seconds": images / 10, "row": row, "n": 64, "proximal": {metric: proximal}, "true": found}


LINES = [
    line("teacher", 0, 10.0, 20.0),
    line("teacher, full", 0, 12.0, 30.0),
    line("rsd", 100, 15.0, 40.0),
    line("rsd", 200, 9.0, 25.0),
    line("rsd", 300, 7.0, 18.0),
    line("rsd", 400, 8.0, 16.0),
]


def written(folder, lines):
    (folder / "selection.jsonl").write_text("".join(json.dumps(found) + "\n" for found in lines))
    return folder / "selection.jsonl"


def test_selection_says_when_the_teachers_were_passed_and_how_well_was_chosen(tmp_path):
    (found,) = selection_table(read_selection(written(tmp_path, LINES)))
    teacher, full = found.crossings
    assert (teacher.teacher, teacher.level, teacher.true, teacher.images, teacher.seconds) == ("teacher", 20.0, True, 300, 30.0)
    assert (full.teacher, full.images) == ("teacher, full", 200)
    assert (found.images, found.proximal, found.true) == (300, 7.0, 18.0)
    assert (found.best_images, found.best_true, found.gap) == (400, 16.0, 2.0)


def test_selection_without_clean_images_goes_by_the_proximal_distance(tmp_path):
    lines = [line("teacher", 0, 10.0), line("rsd", 100, 15.0), line("rsd", 200, 9.0)]
    (found,) = selection_table(read_selection(written(tmp_path, lines)))
    assert not found.crossings[0].true and found.crossings[0].images == 200
    assert (found.images, found.true, found.best_true, found.gap) == (200, None, None, None)


def test_selection_of_what_is_the_better_the_higher(tmp_path):
    lines = [line("teacher", 0, 0.5, 0.5, "recall"), line("rsd", 9, 0.4, 0.6, "recall"), line("rsd", 10, 0.3, 0.8, "recall")]
    (found,) = selection_table(read_selection(written(tmp_path, lines)))
    assert (found.crossings[0].images, found.images, found.best_images) == (9, 9, 10)
    assert found.gap == pytest.approx(0.2)


def test_selection_survives_a_crash_and_a_resumption_and_names_what_is_wrong(tmp_path):
    path = written(tmp_path, [*LINES, line("rsd", 200, 6.0, 19.0)])
    path.write_text(path.read_text() + '{"images": 5')
    (found,) = selection_table(read_selection(path))
    assert (found.images, found.proximal) == (200, 6.0)
    assert selection_table([]) == []
    never = selection_table(read_selection(written(tmp_path, [LINES[0], LINES[2]])))[0].crossings[0]
    assert (never.images, never.seconds) == (None, None)
    path.write_text('{"images": 5}\n')
    with pytest.raises(UserError, match=r"selection.jsonl, line 1: not a measurement"):
        read_selection(path)
    with pytest.raises(UserError, match=r"nothing\.jsonl"):
        read_selection(tmp_path / "nothing.jsonl")


def test_selection_is_in_the_page(tmp_path):
    found = selection_table(read_selection(written(tmp_path, LINES)))
    curve = Curve("rsd", [100, 200], [40.0, 25.0], y_label="SWD")
    teacher = Curve("teacher", (), (), y_label="SWD", level=20.0)
    text = report(tmp_path, selection=found, selection_curves=[curve, teacher])
    assert "300 images, 30.0 s" in Page(text).text
    (chart,) = charts([curve, teacher])
    assert [line["level"] for line in chart["data"]["lines"]] == [None, 20.0]
    assert chart["lines"][0]["marks"].count("h0") == 2
    assert charts([teacher]) == []  # a level alone is no curve


def test_a_page_that_is_watched_is_read_again(tmp_path):
    text = report(tmp_path, refresh=30.0)
    assert '<html lang="en" data-refresh="30">' in text  # by the script, which keeps what was chosen
    assert '<noscript><meta http-equiv="refresh" content="30"></noscript>' in text
    plain = report(tmp_path)
    assert "data-refresh" not in plain and 'http-equiv="refresh' not in plain
