"""What is typed: each slip has its line, and what is clear is written out for Hydra."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext
from omegaconf import OmegaConf

from cl_runner.cli import choices, renamed
from cl_runner.cli.typed import is_list, understood, unknown_option
from cl_runner.config.versions import BASE
from cl_runner.errors import UserError
from cl_runner.results import naming
from hydra_plugins.cl_runner_launcher import ListingSweeper


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (
            ["benchmark=split_mnist", "benchmark=split_digits"],
            "benchmark is given twice: benchmark=split_mnist and benchmark=split_digits; keep one,",
        ),
        (["-m", "strategy=er", "strategy=ewc,naive"], "strategy is given twice"),
        (["+experiment=a", "experiment=b"], "experiment is given twice"),
        (["hydra/sweeper=optuna"], "hydra/sweeper=optuna is for sweeps: it needs -m (--multirun)"),
        (["hydra.sweeper.n_trials=5"], "hydra.sweeper.n_trials=5 is for sweeps: it needs -m"),
        (["hydra/launcher=joblib"], "hydra/launcher=joblib is for sweeps: it needs -m"),
        (["seeds=0,1,2"], "as one list, write 'seeds=[0,1,2]'"),
        (["model.hidden_sizes=400,400"], "as one list, write 'model.hidden_sizes=[400,400]'"),
        (["strategy.threshold=0.9,0.99"], "as one list, write 'strategy.threshold=[0.9,0.99]'"),
        (["seed=0,1"], "to train them together, 'seeds=[0,1]'"),
        (["strategy=ewc,er"], "strategy=ewc,er is several values: a sweep, which needs -m"),
        (["ewc", "permuted_mnist"], "did you mean strategy=ewc benchmark=permuted_mnist?"),
        (["EWC"], "cannot read EWC: did you mean strategy=ewc?"),
        (["run", "strategy=ewc"], "cannot read run: cl-run needs no such word"),
        (["compare", "outputs"], "cannot read compare: write cl-compare PATH"),
        (["resume", "outputs/x"], "write cl-run resume=FOLDER"),
        (["lst"], "did you mean cl-run list?"),
        (["--epochs=5"], "there is no flag --epochs=5; write training.epochs=5"),
        (["--batch-size", "5"], "there is no flag --batch-size; write training.batch_size=..."),
        (["--strange"], "unrecognized arguments: --strange; flags go before the key=value pairs"),
        (["seed=1", "-m", "strategy=ewc"], "flags go before the key=value pairs"),
        (["seed=\udcff"], r"cannot read seed=\xff: it is not UTF-8"),
        (
            ["-m", "hydra/sweeper=optuna", "strategy=naive,er", "strategy.buffer_size=9"],
            "strategy.buffer_size is no key of strategy=naive; leave it out",
        ),
        (
            ["-m", "hydra/sweeper=optuna", "missing_keys=skip"],
            "missing_keys=skip is for cl-run's own sweeper, not for hydra/sweeper=optuna",
        ),
        (["protocol=x"], "protocol=x: a protocol comes with an experiment, see cl-run list exp"),
        (["-m", "+protocol=x,y"], "+protocol=x,y: a protocol comes with an experiment"),
        (["--cfg", "job", "~protocol"], "~protocol: a protocol comes with an experiment"),
    ],
    ids=lambda value: ascii(" ".join(value)) if isinstance(value, list) else "",
)
def test_a_slip_is_told_in_a_line_that_helps(args: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        understood(args)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["experiment=x"], ["+experiment=x"]),
        (["-m", "experiment=x,y", "seed=0"], ["-m", "+experiment=x,y", "seed=0"]),
        (["--config-name", "mine", "experiment=x"], ["--config-name", "mine", "experiment=x"]),
        (["--cfg", "job", "experiment=x"], ["--cfg", "job", "+experiment=x"]),
        (["resume=a=b, 'c"], ["resume=a=b, 'c"]),
        (["--help", "strategy=ewc"], ["--help", "strategy=ewc"]),
        (["-sc", "query=bash"], ["-sc", "query=bash"]),
        (["seed=1", "seed=2"], ["seed=1", "seed=2"]),  # of a key the last one counts
        (["~strategy.x"], ["~strategy.x"]),
        # Below a swept group: it waits for the job's own choice.
        (
            ["-m", "strategy=er,derpp", "strategy.buffer_size=9", "training.epochs=1"],
            ["-m", "strategy=er,derpp", "strategy.buffer_size=choice(9)", "training.epochs=1"],
        ),
        (
            ["strategy=er,derpp", "strategy.buffer_size=9", "hydra.mode=MULTIRUN"],
            ["strategy=er,derpp", "strategy.buffer_size=choice(9)", "hydra.mode=MULTIRUN"],
        ),
        (
            ["-m", "strategy=er,derpp", "strategy.buffer_size=9,10", "+strategy.x=[1,2]"],
            ["-m", "strategy=er,derpp", "strategy.buffer_size=9,10", "+strategy.x=choice([1,2])"],
        ),
        (
            ["-m", "strategy=er", "strategy.buffer_size=9"],
            ["-m", "strategy=er", "strategy.buffer_size=9"],
        ),
        (["-m", "seed=0,1", "seeds=null"], ["-m", "seed=0,1", "seeds=null"]),
        (["-m", "model=mlp,cnn", "model.x="], ["-m", "model=mlp,cnn", "model.x=choice('')"]),
        (
            ["-m", "strategy=ewc,imm", "strategy.fisher_samples=null"],
            ["-m", "strategy=ewc,imm", "strategy.fisher_samples=null,null"],
        ),
        # Below an added group is everything but the command's own keys and Hydra's.
        (
            ["-m", "+experiment=a,b", "training.epochs=2", "verbose=false", "hydra.sweep.dir=a.b"],
            [
                *("-m", "+experiment=a,b", "training.epochs=choice(2)", "verbose=false"),
                "hydra.sweep.dir=a.b",
            ],
        ),
    ],
    ids=" ".join,
)
def test_what_is_clear_is_written_out(typed: list[str], meant: list[str]) -> None:
    assert understood(typed) == meant


@pytest.mark.parametrize(
    ("typed", "meant", "line"),
    [
        (
            ["experiment=hsu-ewc-til", "seed=1"],
            ["+experiment=hsu2018/ewc_split_task", "seed=1"],
            (
                "experiment=hsu-ewc-til is now hsu2018/ewc_split_task; the old name goes in the "
                "next release"
            ),
        ),
        (
            ["--cfg", "job", "+experiment=split-mnist-class-er-ace"],
            ["--cfg", "job", "+experiment=preset/split_mnist_class/er_ace"],
            (
                "experiment=split-mnist-class-er-ace is now preset/split_mnist_class/er_ace; the "
                "old name goes in the next release"
            ),
        ),
        (
            ["-m", "experiment=permuted-mnist-er,mine,der-sgd-cil"],
            ["-m", "+experiment=preset/permuted_mnist/er,mine,buzzega2020/naive_split_class"],
            (
                "experiment=permuted-mnist-er, der-sgd-cil are now preset/permuted_mnist/er, "
                "buzzega2020/naive_split_class; the old names go in the next release"
            ),
        ),
        (
            ["-m", "+experiment=choice('nmi-si-til',nmi-lwf-til)"],
            ["-m", "+experiment=choice('vandeven2022/si_split_task',vandeven2022/lwf_split_task)"],
            (
                "experiment=nmi-si-til, nmi-lwf-til are now vandeven2022/si_split_task, "
                "vandeven2022/lwf_split_task; the old names go in the next release"
            ),
        ),
        (["experiment=split-mnist-class-mine"], ["+experiment=split-mnist-class-mine"], None),
        (["experiment=hsu2018/l2_split_task"], ["+experiment=hsu2018/l2_split_task"], None),
        (
            ["--config-name", "my", "+experiment=hsu-ewc-til"],
            ["--config-name", "my", "+experiment=hsu-ewc-til"],
            None,
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_old_name_is_replaced_and_told(capsys, typed, meant, line) -> None:
    assert understood(typed) == meant
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == ("" if line is None else f"{line}\n")


def test_every_name_of_the_table_is_that_of_a_file() -> None:
    experiments = choices.options("experiment")
    assert len(set(renamed.PUBLISHED.values())) == len(renamed.PUBLISHED)
    assert {*renamed.PUBLISHED.values()} <= {n for n in experiments if "preset/" not in n}


def test_an_old_name_that_no_command_wrote_is_told_the_new_one() -> None:
    """In the defaults of a file of the user's own, say."""
    line = unknown_option("experiment", "kirkpatrick-ewc", ["a"])
    assert "experiment=kirkpatrick-ewc (it is now kirkpatrick2017/ewc_permuted); known" in line


def test_the_keys_that_take_lists() -> None:
    lists = ("seeds", "plugins", "model.channels", "optimizer.betas", "benchmark.angles")
    assert all(map(is_list, lists))
    assert not any(map(is_list, ("seed", "optimizer.lr", "strategy.mode", "x.y")))


def test_a_long_list_of_options_is_not_printed() -> None:
    options = [f"preset-{i}" for i in range(99)]
    line = unknown_option("experiment", "Preset-1", options)
    assert line == (
        "unknown option experiment=Preset-1 (did you mean preset-1?); cl-run list experiments "
        "shows all 99"
    )
    assert "pip install 'cl_runner[optuna]'" in unknown_option("hydra/sweeper", "optuna", ["x"])


# The jobs of a sweep


class Sweeps:
    """The jobs that a command asks for, composed as in a sweep but not run."""

    def __init__(self, *typed: str) -> None:
        args = understood(["-m", *typed])[1:]
        fixed = [arg for arg in args if arg.startswith(("missing_keys=", "hydra."))]
        self.master = compose("config", fixed, return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
        self.sweeper = ListingSweeper(None, None)
        self.sweeper.context = HydraContext(config_loader=loader, callbacks=None)  # type: ignore[arg-type]
        self.sweeper.master = self.master
        self.overrides = OverridesParser.create(loader).parse_overrides(args)

    def jobs(self, size: int | None = None) -> list[list[list[str]]]:
        return self.sweeper.batches(self.overrides, size)


@pytest.fixture(autouse=True)
def _hydra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(naming, "_planned", {})
    with initialize_config_module("cl_runner.conf", **BASE):
        yield


@pytest.mark.slow
def test_a_value_of_any_kind_reaches_the_job() -> None:
    typed = ("strategy=ewc,imm", "strategy.fisher_samples=null", "strategy.fisher_labels='true'")
    sweeps = Sweeps(*typed, "model=mlp,mlp", "model.hidden_sizes=[7,8]")
    (jobs,) = sweeps.jobs()
    assert len(jobs) == 2
    for config in sweeps.sweeper.composed.values():
        assert config.strategy.fisher_samples is None
        assert config.strategy.fisher_labels in ("true", True)
        assert config.model.hidden_sizes == [7, 8]


@pytest.mark.slow
def test_each_value_goes_to_the_jobs_that_have_its_key() -> None:
    (jobs,) = Sweeps("strategy=er,derpp", "strategy.buffer_size=2,3", "seed=1").jobs()
    assert jobs == [
        [f"strategy={s}", f"strategy.buffer_size={n}", "seed=1"]
        for s in ("er", "derpp")
        for n in (2, 3)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (
            ["strategy=naive,er,ewc", "strategy.buffer_size=2"],
            "strategy.buffer_size is no key of strategy=naive, ewc; leave strategy=naive, ewc out",
        ),
        (["optimizer=sgd,adam", "optimizer.momentum=0.9"], "no key of optimizer=adam"),
        (["model=mlp,cnn", "model.hidden_sizes=[9]"], "no key of model=cnn"),
        (["benchmark=split_digits,permuted_digits", "benchmark.class_order=shuffled"], "permuted"),
        (
            [
                "+experiment=hsu2018/ewc_split_task,hsu2018/naive_split_task",
                "strategy.lambda=2",
            ],
            "strategy.lambda is no key of strategy=naive",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_choices_without_a_key_are_named_before_any_job(typed: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        Sweeps(*typed).jobs()
    assert line in str(caught.value)


@pytest.mark.slow
def test_skipped_keys_leave_one_job_where_there_would_be_two() -> None:
    typed = ("strategy=naive,er", "strategy.buffer_size=2,3", "missing_keys=skip")
    (jobs,) = Sweeps(*typed).jobs()
    assert [job[:-1] for job in jobs] == [
        ["strategy=naive"],
        ["strategy=er", "strategy.buffer_size=2"],
        ["strategy=er", "strategy.buffer_size=3"],
    ]


@pytest.mark.slow
def test_a_key_that_no_choice_has_is_unknown_whatever_is_skipped() -> None:
    from cl_runner.cli.messages import explain

    with pytest.raises(Exception, match=r"strategy\.bufer_size") as caught:
        Sweeps("strategy=naive,er", "strategy.bufer_size=2", "missing_keys=skip").jobs()
    code, line = explain(caught.value)
    assert code == 2
    assert "unknown key strategy.bufer_size (did you mean strategy.buffer_size" in line


@pytest.mark.slow
def test_a_sweep_of_mistakes_only_is_refused_before_its_jobs() -> None:
    with pytest.raises(UserError, match=r"seed must be int, got \[1, 2\]; .* -m seed=1,2"):
        Sweeps("seed=[1,2]").jobs()
    with pytest.raises(UserError, match=r"optimizer\.lr must be positive, got -1"):
        Sweeps("optimizer.lr=-1", "strategy=er,ewc").jobs()
    assert len(Sweeps("optimizer.lr=-1,0.1").jobs()[0]) == 2, "the others go on"


@pytest.mark.slow
def test_jobs_come_in_batches() -> None:
    sizes = [len(batch) for batch in Sweeps("seed=0,1,2,3,4,4").jobs(2)]
    assert sizes == [2, 2, 1]


@pytest.mark.slow
def test_a_job_is_named_by_what_differs_between_the_jobs(tmp_path) -> None:
    sweeps = Sweeps("strategy=er,derpp", "seed=0,1", "benchmark=split_digits", "training.epochs=1")
    ((job, *_),) = sweeps.jobs()
    config = sweeps.sweeper.composed[tuple(job)]
    name = naming.job(config.hydra.overrides.task, str(tmp_path), _root_=config)
    digest = naming.digest(_root_=config)
    assert name == f"strategy=er_seed=0-{digest}"
    (tmp_path / f"older_name-{digest}").mkdir()  # a sweep that goes on
    again = naming.job(config.hydra.overrides.task, str(tmp_path), _root_=config)
    assert again == f"older_name-{digest}"


def test_a_job_of_another_process_finds_its_name_in_the_list(tmp_path) -> None:
    sweeps = Sweeps("strategy=er,derpp", "seed=0")
    ((job, *_),) = sweeps.jobs()
    config = sweeps.sweeper.composed[tuple(job)]
    digest = naming.digest(_root_=config)
    naming._planned.clear()
    (tmp_path / "jobs.json").write_text(f'{{"listed-{digest}": []}}', encoding="utf-8")
    task = config.hydra.overrides.task
    assert naming.job(task, str(tmp_path), _root_=config) == f"listed-{digest}"


def test_a_single_job_is_named_by_all_its_overrides(tmp_path) -> None:
    sweeps = Sweeps("strategy=er", "seed=3")
    ((job,),) = sweeps.jobs()
    config = sweeps.sweeper.composed[tuple(job)]
    name = naming.job(config.hydra.overrides.task, str(tmp_path), _root_=config)
    assert name.startswith("strategy=er_seed=3-")


def test_a_name_that_is_too_long_leaves_out_whole_overrides_but_never_the_seed(tmp_path) -> None:
    long = ("benchmark=split_digits", "strategy=er", "eval.calibration=true", "eval.every=5")
    long += ("benchmark.train_samples=500", "training.epochs=2", "optimizer.lr=0.3", "seed=7")
    config = compose("config", list(long))
    name = naming.job(OmegaConf.create(list(long)), str(tmp_path), _root_=config)
    shown = (
        "benchmark=split_digits_strategy=er_benchmark.train_samples=500_eval.calibration=true_"
        "eval.every=5_seed=7"
    )
    assert name == f"{shown}-{naming.digest(_root_=config)}"
