"""What a signal does to a run, in one process."""

from __future__ import annotations

import signal
import threading

import pytest

from cl_runner.machine.signals import NUMBERS, OF_TERMINALS, Interrupted, Stop, stoppable


def steps(stop: Stop, *signals: int, check: bool = False) -> None:
    """A signal in each step."""
    with stop.stepping():
        for number in signals:
            signal.raise_signal(number)
            assert stop.asked == signals[0], "the step went on"
            if check:
                stop.check()


pytestmark = pytest.mark.usefixtures("heeded")
CODES = [(number, 128 + number) for number in NUMBERS]  # as shells have it


@pytest.mark.parametrize(("number", "code"), CODES)
@pytest.mark.parametrize("check", [True, False], ids=["checked", "after the last check"])
def test_between_steps_a_signal_only_asks(number, code, check):
    with stoppable() as stop, pytest.raises(Interrupted) as caught:
        steps(stop, number, check=check)
    assert stop.asked == number
    assert caught.value.exit_code == code


def test_anywhere_else_it_stops_at_once():
    with stoppable(), pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGTERM)


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


@pytest.mark.parametrize("number", OF_TERMINALS)
def test_what_is_ignored_stays_ignored(number):
    """As in a job that nohup started."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stoppable() as stop, stop.stepping():
            signal.raise_signal(number)
    finally:
        signal.signal(number, before)
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


def test_an_echo_does_not_disturb_what_the_first_signal_began():
    """Batch systems send SIGTERM to every process, and again to the group."""
    with stoppable() as stop:
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # while files are written
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)
        stop.asked_at -= 10  # the first one was swallowed, by a bare except for instance
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)


def test_what_a_command_does_first_is_done_once():
    done = []
    with stoppable(lambda: done.append("jobs told")):
        for number in (signal.SIGTERM, signal.SIGINT):
            with pytest.raises(Interrupted):
                signal.raise_signal(number)
    assert done == ["jobs told"]


def test_the_command_knows_that_its_run_was_stopped():
    with stoppable(lambda: pytest.fail("nothing is to be done, the run has ended")) as command:
        with pytest.raises(Interrupted), stoppable() as run:
            steps(run, signal.SIGTERM)
        assert command.asked == signal.SIGTERM
        signal.raise_signal(signal.SIGTERM)  # an echo


def run_until_preempted(events: list[str]) -> None:
    with stoppable() as stop:
        try:
            steps(stop, signal.SIGUSR2)
        finally:
            events.append("saved")


@pytest.mark.unix
def test_a_preempted_run_is_saved_before_its_batch_system_is_told():
    """Submitit has a handler for the signal, which queues the job again and exits."""
    events = []

    def queue_again(*_: object) -> None:
        events.append("queued")
        raise SystemExit(144)

    before = signal.signal(signal.SIGUSR2, queue_again)
    try:
        with pytest.raises(SystemExit):
            run_until_preempted(events)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert events == ["saved", "queued"]
    with stoppable():  # nobody has a handler
        assert signal.getsignal(signal.SIGUSR2) == before
