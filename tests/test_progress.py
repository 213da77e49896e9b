import re

import pytest

from posereid.progress import ProgressLines, progress_bar, with_progress


class Clock:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_without_a_terminal_a_line_a_minute_says_count_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with ProgressLines(1000, "joint", "step", first=100, clock=clock) as bar:
        for _ in range(300):
            clock.seconds += 0.5
            bar.set_postfix({"quartet": "0.250"}, refresh=False)
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "joint: 220 of 1000, 2.00step/s, 01:00 since the start, 06:30 left, quartet=0.250",
        "joint: 340 of 1000, 2.00step/s, 02:00 since the start, 05:30 left, quartet=0.250",
        "joint: 400 of 1000, 2.00step/s, 02:30 since the start, 05:00 left, quartet=0.250",
    ]


def test_steps_longer_than_a_minute_are_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    bar = ProgressLines(3, "ablation", "cell", clock=clock)
    for _ in range(3):
        clock.seconds += 90
        bar.update(1)
    bar.close()
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"ablation: {n} of 3" for n in (1, 2, 3, 3)]
    assert "90.00s/cell" in lines[0]
    assert "03:00 left" in lines[0]


@pytest.mark.parametrize("show", [True, False])
def test_a_stream_that_is_no_terminal_gets_whole_lines_only(capsys: pytest.CaptureFixture[str], show: bool) -> None:
    assert list(with_progress(iter("abc"), 3, "opening images", "crop", show=show)) == list("abc")
    with progress_bar(0, "scoring", "crop", show=show):
        pass
    said = capsys.readouterr().err
    assert "\r" not in said
    assert bool(re.fullmatch(r"opening images: 3 of 3, .* left\n", said)) == show


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress_bar(3, "scoring", "crop", show=True) as bar:
        bar.update(3)
    assert "\rscoring: 100%" in capsys.readouterr().err
