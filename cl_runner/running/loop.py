"""One loop for a run, and for several that are trained together: from configurations to files."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cl_runner.config.schema import Config
from cl_runner.core import TrainState
from cl_runner.errors import Diverged, UserError
from cl_runner.functional.metrics import acc
from cl_runner.machine.console import near, say
from cl_runner.machine.signals import Stop, stoppable
from cl_runner.results import files, status
from cl_runner.running import checkpoint, features, guard, model, needs, pretraining, together
from cl_runner.running.checkpoint import Saved
from cl_runner.running.evaluation import readings
from cl_runner.running.frame import frame_of
from cl_runner.running.loggers.switch import check_places
from cl_runner.running.messages import (
    dear,
    logged,
    notes,
    print_and_log,
    say_once,
    where_it_goes_on,
)
from cl_runner.running.prepare import free_gpu, lacking, prepare, strategy_of
from cl_runner.running.progress import display
from cl_runner.running.record import RunFiles
from cl_runner.running.stacked import StackedStep
from cl_runner.running.tasks import Member, Observer, initial_state, restored, train_task
from cl_runner.running.told import tell
from cl_runner.strategies.parts.pretext import with_head
from cl_runner.training.fit import AfterStep, Progress, Steps

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Run:
    """A run under way: what it is, where it stands, and its files."""

    config: Config
    member: Member  # its strategy and environment
    files: RunFiles
    s: TrainState
    task: int = 0  # index of the one that comes next
    progress: Progress | None = None  # of the training on it, where that has begun
    saved: Saved | None = None  # what it goes on from
    end: Diverged | UserError | None = None  # why it ended before its time
    said: set[str] = field(default_factory=set)  # the remarks that were made on it

    def logged(self) -> AbstractContextManager[None]:
        """Around what is logged about it: of several runs each has a log of its own."""
        return logged(self.files.out) if self.files.together > 1 else nullcontext()


def run(config: Config, out: Path, overrides: Sequence[str] = (), job: str = "") -> float:
    """Train on the tasks one after another and write the results into the folder `out`.

    job: the name of a job of many; it says a line in the place of the tables of a run alone.

    Returns the final ACC: on the validation data where there are any, so that a search never sees
    the test data; NaN where `eval.tasks` leaves it unmeasured. With `resume` it goes on where the
    run in that folder was stopped, or returns its ACC if it is complete. Raises UserError before
    anything is written, or when memory or disk are full; Diverged, KeyboardInterrupt and unforeseen
    errors after what was measured so far is written with its status.
    """
    try:
        if config.resume:
            checkpoint.check_run(out, config.resolved)
            if (there := status.finished(out)) is not None:
                tidy(config, out)
                print_and_log(config, f"complete, nothing to do: {out}")
                return there
        with free_gpu(config.device):
            return run_alone(config, out, overrides, job)
    except (MemoryError, RuntimeError) as error:
        if message := needs.shortage(error) or lacking(error, config.device):
            raise UserError(message) from error
        raise


def run_alone(config: Config, out: Path, overrides: Sequence[str], job: str) -> float:
    """`run` for what is neither complete nor another run's, on the GPU that was chosen."""
    started = time.perf_counter()
    checkpoint.settle([out])
    strategy = strategy_of(config)
    member = Member(strategy, prepare(config, strategy))
    one = open_run(config, out, overrides, member, started)
    train_runs([one], say_once if job else say)
    if one.end is not None:
        raise one.end
    if config.told:
        say_results(one, job)
    conclude(one)
    return final_acc(one.files)


def say_results(run: Run, job: str) -> None:
    """Say what a run that is complete has reached."""
    own, reading = run.files, readings(run.config.scenario)[0]
    R = own.matrices["test", reading]
    tell(run.config, own.out, job, own.columns(), R, own.titles.tasks)


def open_run(
    config: Config,
    out: Path,
    overrides: Sequence[str],
    member: Member,
    started: float,
    members: int = 1,
) -> Run:
    """A run at its beginning, or with `resume` where its checkpoint was written. Raises UserError.

    started: when the work for it began (time.perf_counter). members: how many are trained together.
    """
    strategy, env = member
    s, saved = initial_state(strategy, env), None
    if config.resume:
        saved = checkpoint.load(out, config.resolved, frame_of(config, strategy, s, env))
    check_places(config, out)
    own = RunFiles(config, strategy, env, out, overrides, started, members)
    if saved is None:
        return Run(config, member, own, s)
    s = restored(saved.state, env)
    own.restore(saved, strategy, s)
    return Run(config, member, own, s, saved.task, saved.progress, saved)


def train_runs(runs: Sequence[Run], aloud: Callable[[str], None] = say) -> None:
    """Train runs that stand at the same place on the tasks that are left, and write their files.

    Several are trained as one stacked state; one that diverges (`Run.end`) leaves the others.
    aloud: says what is to be known about a run before it starts.
    """
    first = runs[0]
    alive: Sequence[Run] = runs
    names = [task.name for task in first.member.env.stream]
    tasks = len(names)
    try:
        with stoppable() as stop, display(names, first.task, told=first.config.told) as bar:
            first.member.env.meter.displays += [bar] if bar else []
            alive = begun(runs, aloud)
            step = StackedStep([run.member for run in alive]) if len(alive) > 1 else None
            for t in range(first.task, tasks if alive else 0):
                train_on(t, alive, stop, step, aloud)
                alive = [run for run in alive if run.end is None]
                save([(run, run.s, None) for run in alive], t + 1)
                if len(alive) < len(runs) and first.config.fail_fast:
                    break
                if step is not None and 0 < len(alive) < step.members:
                    step = StackedStep([run.member for run in alive])
                if not alive:
                    return
        for run in alive:
            close(run)
    except BaseException as error:
        for run in alive:
            with run.logged():
                run.files.ended(error)
                log.error("%s", repr(error))
        raise
    finally:
        for run in runs:  # what holds the run's memory, for itself, until Python looks for garbage
            run.member.env.flat.steps.clear()


def close(run: Run) -> None:
    """Write the files of a run that has come to its end, or that ends since another one failed."""
    complete = run.task == len(run.member.env.stream)
    if complete and run.config.checkpoint.keep:
        model.save(run.files.out, run.config, run.member, run.s)
    run.files.write("complete" if complete else "interrupted")
    if not complete:
        run.files.loggers.end("interrupted")


def begun(runs: Sequence[Run], aloud: Callable[[str], None]) -> list[Run]:
    """Do what comes before the first step; those runs that did not diverge in it."""
    for run in runs:
        with run.logged():
            run.files.begin_logging()
    phase = pretraining.comes_before(runs[0].config)
    alive = pretrained(runs, aloud) if phase else list(runs)
    for run in alive:
        with run.logged():
            begin(run, len(runs), aloud)
    if phase and runs[0].saved is None:
        save([(run, run.s, None) for run in alive], 0)
    return alive


def pretrained(runs: Sequence[Run], aloud: Callable[[str], None]) -> list[Run]:
    """Let runs begin with what their networks learn without labels; those that did not diverge.

    Those that go on begin with what they had learnt.
    """
    if runs[0].saved is not None:
        for run in runs:
            pretraining.begin_with(run.config, run.member, pretraining.load(run.files.out))
            run.s = restored(run.saved.state, run.member.env)  # type: ignore[union-attr]
        return list(runs)
    members = [pretraining.learner(run.config, run.member.env) for run in runs]
    for run, member in zip(runs, members, strict=True):
        run.member.env.meter.share = 1 / len(runs)
        with run.logged():
            print_and_log(run.config, pretraining.told(run.config, member), aloud)
    lap(runs)
    ends = pretraining.learn(members)
    lap(runs, "train_seconds")
    for run, member, end in zip(runs, members, ends, strict=True):
        strategy, env = run.member
        env.meter.add(member.env.meter)
        with run.logged():
            try:
                trunk, head = pretraining.learnt(run.config, member, end)
            except Diverged as error:
                run.end = error
                run.files.ended(error)
                log.error("%s", error)
                continue
        pretraining.begin_with(run.config, run.member, trunk)
        pretraining.save(run.files.out, trunk)
        run.s = with_head(initial_state(strategy, env), head)
    return [run for run in runs if run.end is None]


def begin(run: Run, members: int, aloud: Callable[[str], None]) -> None:
    """Evaluate the untrained network, unless the run goes on; and say what is to be known."""
    strategy, env = run.member
    if line := features.begun(env):
        print_and_log(run.config, line, aloud)
    if run.saved is None:
        run.files.evaluated(0, strategy, run.s)
    for line in notes(strategy, env):
        print_and_log(run.config, line, aloud)
    if members > 1:
        log.info("trained as one of %d in a stacked state", members)
    if run.config.resume:
        where = where_it_goes_on(run.files.out, run.saved)
        print_and_log(run.config, where, aloud if members > 1 else say)


def train_on(
    t: int,
    runs: Sequence[Run],
    stop: Stop,
    step: StackedStep | None,
    aloud: Callable[[str], None],
) -> None:
    """Train runs on task t and evaluate them; of one that cannot go on, write down its end."""
    for run in runs:
        run.member.env.meter.share = 1 / len(runs)
        with run.logged():
            task = run.member.env.stream[t]
            log.info("task %s: classes %s", task.name or t + 1, ", ".join(task.names))
    lap(runs)
    ends = trained(t, runs, partial(observed, runs, stop, t, aloud), step)
    lap(runs, "train_seconds")
    for run, end in zip(runs, ends, strict=True):
        with run.logged():
            run.progress = None
            try:
                if isinstance(end, Diverged):
                    raise end
                if t == 0:
                    run.files.choose(run.member.strategy, end)
            except (Diverged, UserError) as error:
                run.end = error
                run.files.ended(error)
                log.error("%s", error)
                continue
            run.s, run.task = end, t + 1
            run.files.evaluated(t + 1, run.member.strategy, run.s)
            remark(run, t, aloud)


def remark(run: Run, t: int, aloud: Callable[[str], None]) -> None:
    """Say what is to be known of state and cost after task t, if it was not said before."""
    strategy, env = run.member
    told = t > 0 or strategy.tells_cost
    cost = () if told else dear(run.config, env, run.files.tables["costs"][1])
    for line in (*strategy.remarks(run.s, env), *cost):
        if line not in run.said:
            print_and_log(run.config, f"{env.stream[t].title}: {line}", aloud)
            run.said.add(line)


def trained(
    t: int, runs: Sequence[Run], observe: Observer, step: StackedStep | None
) -> Sequence[TrainState | Diverged]:
    """The states of runs after training on task t, one by itself or several as one."""
    if step is not None:
        members, states = [run.member for run in runs], [run.s for run in runs]
        progress = [run.progress for run in runs]
        return together.train_task(members, states, t, step, progress, observe)
    (run,) = runs
    strategy, env = run.member
    try:
        return [train_task(strategy, run.s, env.stream[t], env, run.progress, observe)]
    except Diverged as error:
        return [error]


@contextmanager
def observed(
    runs: Sequence[Run], stop: Stop, t: int, aloud: Callable[[str], None], steps: Steps
) -> Iterator[AfterStep]:
    """Between the steps of task t, evaluate if asked to, save the states now and then, and stop.

    With a guard, look back at the tasks before it, and end the training of the runs that lose them.
    """
    config, stream = runs[0].config, runs[0].member.env.stream
    every, every_steps = config.checkpoint.every, config.checkpoint.every_steps
    look = config.eval.every
    back = guard.every(config, stream, t) if t and config.guard.drop is not None else None
    last, saved_at = 0, max(run.files.saved_at for run in runs)
    if gone := {place: None for place, run in enumerate(runs) if run.files.guard_ended}:
        steps.release(gone)  # the guard has ended them, and the others go on

    def after(step: int) -> None:
        nonlocal last, saved_at
        last = step
        asked = look is not None and step and step % look == 0
        waited = time.perf_counter() - saved_at
        due = (
            (every is not None and waited >= every)
            or stop.asked is not None
            or (every_steps is not None and step > 0 and step % every_steps == 0)
        )
        guarded = back is not None and step % back == 0
        if asked or due or guarded:
            lap(runs, "train_seconds")
            there = steps.snapshots(step)
            states = {
                place: s for place, (s, _) in there.items() if not runs[place].files.guard_ended
            }
            for place, s in states.items() if asked else ():
                run = runs[place]
                run.files.evaluated_within(t, step, run.member.strategy, s)
            if guarded and (ends := look_back(runs, t, states, aloud)):
                steps.release(ends)
                there = steps.snapshots(step)
            if due:
                save([(runs[place], *at) for place, at in there.items()], t)
                saved_at = time.perf_counter()
            lap(runs)
        stop.check()

    with stop.stepping():
        yield after
    if back is not None:
        look_back_at_the_end(runs, t, steps, aloud)
    for run in runs:
        run.files.steps_are_over(t, last)
    for place, counts in steps.online().items() if config.eval.online else ():
        runs[place].files.add_online(t, counts)


def look_back_at_the_end(
    runs: Sequence[Run], t: int, steps: Steps, aloud: Callable[[str], None]
) -> None:
    """`look_back` at what the runs have come to after the last step of task t."""
    lap(runs, "train_seconds")
    left = {place: s for place, s in enumerate(steps.ends()) if not isinstance(s, Diverged)}
    if ends := look_back(runs, t, left, aloud):
        steps.release(ends)
    lap(runs)


def look_back(
    runs: Sequence[Run], t: int, states: Mapping[int, TrainState], aloud: Callable[[str], None]
) -> dict[int, TrainState | None]:
    """Let the guard look at states within task t, by place; what those that it ends end with."""
    ends: dict[int, TrainState | None] = {}
    for place, s in states.items():
        run = runs[place]
        strategy, env = run.member
        if (broken := run.files.look_back(t, strategy, s)) is not None:
            with run.logged():
                line = guard.in_words(broken, run.config.guard, env.stream, t)
                print_and_log(run.config, line, aloud)
            if run.files.guard_ended:
                ends[place] = broken.state and restored(broken.state, env)
    return ends


def save(runs: Sequence[tuple[Run, TrainState, Progress | None]], task: int) -> None:
    """Write the runs' checkpoints, all or none: next comes `task`, or what remains of it."""
    parts = [
        (run.files.out, run.files.saved(s, task, progress), run.config.resolved)
        for run, s, progress in runs
    ]
    checkpoint.save_all(parts)
    for run, _, progress in runs:
        run.files.note_saved(task, progress)


def lap(runs: Sequence[Run], name: str | None = None) -> None:
    """Count each run's share of the seconds since the last lap (see Meter.lap)."""
    for run in runs:
        run.member.env.meter.lap(name)


def conclude(run: Run) -> None:
    """What is left to do for a run that is complete: no file too much, and the pictures."""
    config, out = run.config, run.files.out
    tidy(config, out)
    if config.plots:
        draw_pictures(config, out)
    run.files.loggers.end("complete")


def tidy(config: Config, out: Path) -> None:
    """Remove what a complete run needs no more, and what a process that was killed left."""
    if config.checkpoint.keep:
        files.remove_leftovers(out)
    else:
        checkpoint.remove(out)


def draw_pictures(config: Config, out: Path) -> None:
    """The pictures of a folder's runs; the run is complete, and stays so if they fail."""
    from cl_runner.comparing.pictures import of_folder

    try:
        files = of_folder(out)
        print_and_log(config, f"{len(files)} pictures in {near(files[0].parent)}")
    except Exception as error:  # noqa: BLE001 - the numbers are what counts
        print_and_log(config, f"no pictures: {' '.join(str(error).split())}")


def final_acc(own: RunFiles) -> float:
    """The final ACC of a run; of its validation data where there are any.

    NaN where eval.tasks leaves out some task after the last one: nothing takes its place.
    """
    split = "validation" if ("validation", own.own) in own.matrices else "test"
    return acc(own.matrices[split, own.own])
