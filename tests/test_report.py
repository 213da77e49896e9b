"""Sheets, loss curves and the report page, checked on what they draw and write."""

import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from posereid.curves import loss_curves
from posereid.errors import InputError
from posereid.pictures import RankedRow, contact_sheet, png_bytes, ranked_list_sheet, save_png
from posereid.report import ReportPicture, Section, Table, write_report


def plain(colour, height=16, width=8):
    return np.full((height, width, 3), colour, np.uint8)


def places(image, colour):
    """(x, y) of every pixel of one colour, as an (n, 2) array in reading order."""
    return np.argwhere((np.asarray(image) == colour).all(2))[:, ::-1]


def corners(image, colour):
    found = places(image, colour)
    return tuple(found.min(0)), tuple(found.max(0) + 1)


def test_contact_sheet_keeps_pixels_and_order():
    colours = [[(200, 0, 0), (0, 200, 0)], [(0, 0, 200), (200, 200, 0)]]
    rows = [[plain(colour) for colour in row] for row in colours]
    sheet = contact_sheet(rows, ["source", "target"], scale=3)
    boxes = [[corners(sheet, colour) for colour in row] for row in colours]
    for row in boxes:
        for (left, top), (right, bottom) in row:
            assert (right - left, bottom - top) == (24, 48)
    assert boxes[0][0][1][0] < boxes[0][1][0][0]  # source ends before target begins
    assert boxes[0][0][1][1] < boxes[1][0][0][1]
    assert len(places(sheet, (31, 35, 40)))  # headers are written
    noise = np.random.default_rng(0).integers(0, 255, (16, 8, 3), np.uint8)
    first = np.asarray(contact_sheet([[noise]], [""], scale=2))
    assert any(
        np.array_equal(first[y : y + 32, x : x + 16], noise.repeat(2, 0).repeat(2, 1))
        for y in range(first.shape[0] - 31)
        for x in range(first.shape[1] - 15)
    )


def test_contact_sheet_takes_other_sizes_long_headers_and_labels():
    rows = [[plain((200, 0, 0)), plain((0, 200, 0), 6, 30)]] * 2
    sheet = contact_sheet(rows, ["a header of several words", "b"], scale=1, row_labels=["first", "second"])
    bare = contact_sheet(rows, ["a header of several words", "b"], scale=1)
    assert sheet.width > bare.width
    assert sheet.height == bare.height
    assert len(places(sheet, (0, 200, 0))) == 2 * 6 * 30


@pytest.mark.parametrize(
    ("rows", "headers", "options", "message"),
    [
        ([], ["a"], {}, "needs rows"),
        ([[plain(0)]], [], {}, "needs rows"),
        ([[plain(0)]], ["a"], {"scale": 0}, "scale of at least 1"),
        ([[plain(0)], []], ["a"], {}, "Row 1 of the sheet has 0 pictures"),
        ([[plain(0)]], ["a"], {"row_labels": []}, "0 row labels"),
        ([[plain(0).astype(float)]], ["a"], {}, "uint8 is expected"),
        ([[np.zeros((4, 4), np.uint8)]], ["a"], {}, "uint8 is expected"),
    ],
)
def test_contact_sheet_names_wrong_input(rows, headers, options, message):
    with pytest.raises(InputError, match=message):
        contact_sheet(rows, headers, **options)


def test_ranked_list_tells_right_from_wrong_by_colour_and_by_line():
    green, red = (26, 127, 55), (207, 34, 46)
    row = RankedRow(plain((1, 2, 3), 40, 20), [plain((9, 9, 9), 40, 20)] * 2, [True, False], 1, np.array([2, 3]))
    sheet = ranked_list_sheet([row])
    (left, top), (right, bottom) = corners(sheet, green)
    (red_left, red_top), (red_right, red_bottom) = corners(sheet, red)
    assert right <= red_left
    assert (top, bottom, right - left) == (red_top, red_bottom, red_right - red_left)
    # The solid frame's left edge has no hole, the dashed one has.
    picture = np.asarray(sheet)
    assert (picture[top:bottom, left] == green).all()
    assert not (picture[top:bottom, red_left] == red).all(1).all()
    # The query is not framed.
    (query_left, _), (query_right, _) = corners(sheet, (1, 2, 3))
    assert query_right - query_left == 40
    assert query_right < left


def test_ranked_lists_may_differ_in_length_and_lack_cameras():
    rows = [RankedRow(plain(1), [plain(2)] * count, [True] * count) for count in (3, 0)]
    with_cameras = [RankedRow(plain(1), [plain(2)] * 3, [True] * 3, "a", ["b", "c", "d"]), rows[1]]
    assert ranked_list_sheet(rows).height < ranked_list_sheet(with_cameras).height


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (RankedRow(plain(1), [plain(2)], [True, False]), "1 pictures, 2 verdicts"),
        (RankedRow(plain(1), [plain(2)], [True], 1, [1, 2]), "2 cameras"),
    ],
)
def test_ranked_list_names_wrong_input(row, message):
    with pytest.raises(InputError, match=message):
        ranked_list_sheet([row])
    with pytest.raises(InputError, match="needs rows"):
        ranked_list_sheet([])


def test_png_is_written_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "deep" / "sheet.png"
    picture = np.random.default_rng(0).integers(0, 255, (16, 8, 3), np.uint8)
    save_png(path, plain(3))
    save_png(path, picture)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), picture)
    assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "sheet.png"
    save_png(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_png(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.png"]


def records(steps, stage="joint"):
    return [
        {"step": step, "stage": stage, "loss_reconstruction": 1 / (1 + step), "loss_quartet": -0.2,
         "learning_rate": 2e-4}
        for step in range(steps)
    ]  # fmt: skip


def size(png):
    return Image.open(io.BytesIO(png)).size


def test_one_panel_for_each_loss():
    two = records(5)
    four = [{**record, "loss_identity": 3.0, "loss_semantic": float("nan")} for record in two]
    assert size(loss_curves(four))[1] > size(loss_curves(two))[1]
    one = [{"step": record["step"], "loss_identity": 1.0} for record in two]
    assert size(loss_curves(one))[0] < size(loss_curves(two))[0]


def test_curves_are_drawn_and_do_not_touch_pyplot():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    for log in (records(3), records(300), records(120) + records(50, "reid"), records(1)):
        pixels = np.asarray(Image.open(io.BytesIO(loss_curves(log))).convert("RGB")).astype(int)
        blue = (abs(pixels - (0, 114, 178)) < 40).all(2)
        assert blue.sum() > 10
    assert plt.get_fignums() == before


def test_log_file_and_records_give_the_same_and_an_unfinished_line_is_skipped(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [json.dumps(record) for record in records(90)]
    path.write_text("\n".join(lines) + '\n{"step": 90, "loss_rec')
    assert loss_curves(path) == loss_curves(records(90))
    path.write_text("\n".join([lines[0], "{broken", lines[1]]))
    with pytest.raises(InputError, match="Line 2 of the training log"):
        loss_curves(path)
    with pytest.raises(InputError, match="does not exist"):
        loss_curves(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="None of the log's 1 records"):
        loss_curves([{"step": 1, "learning_rate": 0.1}])


class Page(HTMLParser):
    """Tags with their attributes, open tags left over, and the text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "run" / "report.html"
    sections = [
        Section(
            "Search & <script>alert(1)</script>",
            "First paragraph.\n\nSecond <b>one</b>.",
            tables=[
                Table(
                    ["training set", "rank-1", "change", "note"],
                    [
                        ["real", 0.71234, "+1.5 ± 0.3", "x"],
                        ["all", None, "–", 3],
                        ["none", np.float32("nan"), "12%", "4"],
                    ],
                    "Means of three seeds.",
                )
            ],
        ),
        Section("Pictures", pictures=[ReportPicture(plain((9, 8, 7)), 'a "caption"', alt="nine eight seven")]),
        Section("Training", pictures=[ReportPicture(loss_curves(records(4)), "curves")]),
    ]
    write_report(path, title="Run <1>", summary={"Rank-1": 0.8125, "Crops": 12936, "Mode": "demo"}, sections=sections)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_page_is_well_formed_and_escapes_text(page):
    parsed = Page(page)
    assert parsed.open == []
    assert parsed.all("script") == []
    assert parsed.all("b") == []
    text = " ".join(" ".join(parsed.text).split())
    for expected in (
        "Run <1>",
        "Search & <script>alert(1)</script>",
        "Second <b>one</b>.",
        "0.812",
        "12,936",
        "demo",
    ):
        assert expected in text
    assert page.count("<p>") == 2


def test_page_loads_nothing(page):
    parsed = Page(page)
    pictures = parsed.all("img")
    assert [picture["alt"] for picture in pictures] == ["nine eight seven", "curves"]
    assert all(picture["src"].startswith("data:image/png;base64,") for picture in pictures)
    assert (pictures[0]["width"], pictures[0]["height"]) == ("8", "16")
    assert parsed.all("link") == []
    without_pictures = re.sub(r"data:image/png;base64,[\w+/=]+", "", page)
    assert not re.search(r"https?://|url\(|@import", without_pictures)
    assert "prefers-color-scheme: dark" in page


def test_numbers_are_flush_right_and_text_is_not(page):
    header = [attributes.get("class") for attributes in Page(page).all("th")]
    assert header == [None, "number", "number", None]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", page)
    assert cells[:4] == ["real", "0.712", "+1.5 ± 0.3", "x"]
    assert (cells[5], cells[9]) == ("–", "–")


def test_every_link_has_its_section(page):
    parsed = Page(page)
    targets = {f"#{attributes['id']}" for attributes in parsed.all("section")}
    assert [attributes["href"] for attributes in parsed.all("a")] == sorted(targets)
    assert len(targets) == 3


def test_a_page_may_be_bare_and_a_crooked_table_is_named(tmp_path):
    write_report(tmp_path / "bare.html", title="Nothing yet", summary={}, sections=[])
    assert Page((tmp_path / "bare.html").read_text()).all("dl") == []
    crooked = Section("x", tables=[Table(["a", "b"], [[1, 2], [3]])])
    with pytest.raises(InputError, match="Row 1 of a report's table has 1 cells under 2"):
        write_report(tmp_path / "crooked.html", title="x", summary={}, sections=[crooked])
    assert not (tmp_path / "crooked.html").exists()


def test_png_bytes_takes_images_and_arrays():
    assert png_bytes(plain(5)) == png_bytes(Image.fromarray(plain(5)))
