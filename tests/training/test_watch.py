import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning_fabric import Fabric

from posereid.data.crops import Crop
from posereid.errors import InputError
from posereid.training.watch import BadStepError, CollapseWatch, ProcessorWatch, StopRequest, UnreadableCrops

SIGNALS = [signal.SIGINT, signal.SIGTERM]


def handlers() -> list:
    return [signal.getsignal(number) for number in SIGNALS]


# --- signals -----------------------------------------------------------------------------------------------


@pytest.fixture
def before() -> Iterator[list]:
    """The handlers before the test, restored even if it fails."""
    found = handlers()
    yield found
    for number, handler in zip(SIGNALS, found, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_request_to_stop_that_the_loop_learns_of(number: signal.Signals, before: list) -> None:
    stop, fabric = StopRequest(), Fabric(accelerator="cpu", devices=1)
    with stop.listening():
        assert stop.agreed(fabric) == 0
        os.kill(os.getpid(), number)
        assert stop.agreed(fabric) == number
    assert handlers() == before


def test_a_second_ctrl_c_ends_at_once(before: list) -> None:
    with StopRequest().listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert handlers() == before


def test_a_second_sigterm_is_left_to_the_system(before: list) -> None:
    with StopRequest().listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        # The other signal is still a request.
        assert signal.getsignal(signal.SIGINT) not in (signal.default_int_handler, signal.SIG_DFL)
    assert handlers() == before


def test_handlers_come_back_after_an_error_in_the_block(before: list) -> None:
    with suppress(ZeroDivisionError), StopRequest().listening():
        assert handlers() != before
        raise ZeroDivisionError
    assert handlers() == before


def test_outside_the_main_thread_nothing_is_installed(before: list) -> None:
    seen = []

    def work() -> None:
        with StopRequest().listening():
            seen.append(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


# --- collapse ----------------------------------------------------------------------------------------------


def streak_ends(present: list[bool], steps: int) -> list[bool]:
    """For each step, whether just now the sign has been there for ``steps`` steps without a break."""
    return [
        all(present[max(0, n - steps + 1) : n + 1]) and n + 1 >= steps and (n + 1 == steps or not present[n - steps])
        for n in range(len(present))
    ]


@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=20),
    st.integers(1, 5),
)
def test_each_sign_of_collapse_is_told_once_a_streak(signs: list[tuple[bool, bool, bool]], steps: int) -> None:
    watch = CollapseWatch(steps)
    told = []
    for appearance, pose, alike in signs:
        losses = {
            "appearance_discriminator": 0.001 if appearance else 1.39,
            "pose_discriminator": 0.0199 if pose else 0.021,
            "identity": 0.0,
        }
        lines = watch.observe(losses, 0.09 if alike else 0.11)
        found = [any(start in line for line in lines) for start in ("the appearance", "the pose", "same picture")]
        assert sum(found) == len(lines)
        told.append(found)
    for column in range(3):
        assert [found[column] for found in told] == streak_ends([sign[column] for sign in signs], steps)


def test_steps_without_discriminators_or_generated_crops_break_a_streak_and_tell_nothing() -> None:
    watch = CollapseWatch(2)
    sign = {"pose_discriminator": 0.0}
    assert watch.observe(sign, 0.0) == []
    assert watch.observe({"identity": 0.0}, None) == []
    assert watch.observe(sign, 0.0) == []
    assert len(watch.observe(sign, 0.0)) == 2


# --- unreadable crops --------------------------------------------------------------------------------------


def crops(count: int) -> list[Crop]:
    return [Crop(Path(f"{n}.jpg"), f"{n}.jpg", 1, 1, "train") for n in range(count)]


def test_each_unreadable_crop_is_told_once() -> None:
    watch = UnreadableCrops(crops(10), 1.0)
    assert watch.note({3: "3.jpg: broken."}) == ["3.jpg: broken. Another crop of its identity takes its place."]
    assert watch.note({}) == []
    assert [line[:5] for line in watch.note({3: "3.jpg: broken.", 4: "4.jpg: broken."})] == ["4.jpg"]
    watch.exchange()
    assert sorted(watch.found) == [3, 4]


@given(st.integers(1, 60), st.integers(0, 60), st.sampled_from([0, 0.01, 0.25, 0.5, 1]))
def test_more_than_the_allowed_share_is_too_many(count: int, broken: int, share: float) -> None:
    watch = UnreadableCrops(crops(count), share)
    watch.note(dict.fromkeys(range(min(broken, count)), "broken."))
    assert watch.too_many() == (min(broken, count) / count > share)


def test_the_complaint_counts_them_and_names_some() -> None:
    watch = UnreadableCrops(crops(200), 0.01)
    watch.note(dict.fromkeys((9, 8, 7, 6), "broken."))
    with pytest.raises(InputError) as complaint:
        watch.complain()
    said = str(complaint.value)
    assert said.startswith("4 of 200 training crops cannot be read, for example 6.jpg, 7.jpg, 8.jpg,")
    assert "allows 1.00%" in said
    assert "--resume" in said


@pytest.mark.parametrize(("value", "shown"), [(math.nan, "nan"), (math.inf, "inf"), (12345.678, "12345.7")])
def test_a_bad_step_says_what_was_found(value: float, shown: str) -> None:
    error = BadStepError("identity loss", value)
    assert str(error) == f"the identity loss is {shown}"
    assert (error.what, repr(error.value)) == ("identity loss", repr(value))


# --- processor time ----------------------------------------------------------------------------------------


class Clocks:
    wall = processor = 1000.0

    def pass_by(self, wall: float, processor: float) -> None:
        self.wall, self.processor = self.wall + wall, self.processor + processor


@pytest.mark.parametrize(
    ("threads", "intervals", "said"),
    [
        # Seconds of wall, of processor, and of waiting for data.
        (2, [(40, 76, 0)], None),
        (2, [(29, 10, 0)], None),
        (2, [(20, 8, 0), (20, 8, 0)], "in the last 40 s training got 20% of the processor time that its 2 threads ask"),
        (16, [(31, 62, 0)], "in the last 31 s training got 12% of the processor time that its 16 threads ask for"),
        (1, [(70, 38, 30)], None),
        (1, [(70, 16, 30)], "in the last 40 s training got 40% of the processor time that its 1 threads ask for"),
        (4, [(60, 200, 0), (60, 40, 0)], "in the last 60 s training got 17%"),
    ],
)
def test_a_run_that_gets_far_less_processor_time_than_it_asks_for_is_told_once(
    threads: int, intervals: list[tuple[float, float, float]], said: str | None
) -> None:
    clocks = Clocks()
    watch = ProcessorWatch(threads, wall=lambda: clocks.wall, processor=lambda: clocks.processor)
    found = []
    for wall, processor, waited in intervals:
        clocks.pass_by(wall, processor)
        found.append(watch.observe(waited))
    assert found[:-1] == [None] * (len(intervals) - 1)
    assert (found[-1] or "").startswith(said or "")
    assert bool(found[-1]) == bool(said)
    for _ in range(3):
        clocks.pass_by(100, 0 if said else 100 * threads)
        assert watch.observe(0) is None
