"""What a signal does to a run, in one process."""

from __future__ import annotations

import signal
import threading

import pytest

from cl_runner.signals import Interrupted, Stop, stoppable


def steps(stop: Stop, *signals: int, check: bool = False) -> None:
    """A signal in each step."""
    with stop.stepping():
        for number in signals:
            signal.raise_signal(number)
            assert stop.asked == signals[0], "the step went on"
            if check:
                stop.check()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("check", [True, False], ids=["checked", "after the last check"])
def test_between_steps_a_signal_only_asks(number, code, check):
    with stoppable() as stop, pytest.raises(Interrupted) as caught:
        steps(stop, number, check=check)
    assert stop.asked == number
    assert caught.value.exit_code == code


def test_anywhere_else_it_stops_at_once():
    with stoppable() as stop, pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGTERM)
    assert stop.asked is None


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_does_not_wait_for_the_step(first):
    """A second SIGTERM, which batch systems send, does."""
    with stoppable() as stop, pytest.raises(Interrupted) as caught:
        steps(stop, first, signal.SIGTERM, signal.SIGINT, 10**9)  # the last is no signal
    assert caught.value.args == (signal.SIGINT,)


def test_handlers_are_for_the_time_of_a_run_only():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with stoppable() as stop:
        assert signal.getsignal(signal.SIGTERM) == stop.handle
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    with pytest.raises(ZeroDivisionError), stoppable():
        _ = 1 / 0
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_what_is_ignored_stays_ignored():
    """As in a job that nohup started."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable() as stop, stop.stepping():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stop.asked is None


def test_a_thread_leaves_the_handlers_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with stoppable():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
