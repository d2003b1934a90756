"""cl-run as its users see it: a process with output, exit code and folders.

Most tests replace `run.loop` by a stub whose outcome depends on the seed; the last ones train. The
processes are forked where the command is already imported; test_commands.py starts the installed
one, as shells do here.
"""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from cl_runner.config.parse import validate
from cl_runner.config.versions import BASE
from cl_runner.errors import UserError
from cl_runner.results import naming, status
from cl_runner.sweeping import merge

pytestmark = pytest.mark.slow

CL_RUN = Path(sys.executable).with_name("cl-run")
HEAVY = {"torch", "torchvision", "pandas", "sklearn"}

# The process's last words are the heavy modules that it imported.
WITNESS = f"""
import sys
from cl_runner.cli.app import main
sys.argv[0] = "cl-run"
try:
    main()
finally:
    print("imported:", *({HEAVY!r} & set(sys.modules)), file=sys.stderr)
"""

STUB = """
import csv, logging, sys, types

def run(config, out, overrides, job=""):
    from cl_runner.results import status
    from cl_runner.errors import Diverged, UserError
    logging.getLogger("cl_runner").info("task 1")
    if config.seed == 7 and not config.resume:
        raise UserError("seed must not be 7")
    if config.seed == 9:
        return 1 / 0
    row = {"status": "complete", "seed": config.seed, "ACC": config.seed / 10}
    row |= {"forgetting": 0.25} if config.seed == 2 else {}
    row |= {"status": "failed"} if config.seed == 8 else {}
    status.write(out, "running", task=1, tasks=2)
    with open(out / "summary.csv", "x") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    if config.seed == 8:
        raise Diverged("the loss is not finite")
    if config.seed == 10:
        print("waiting", flush=True)
        import signal
        signal.pause()
    status.write(out, "complete", task=2, tasks=2)
    return row["ACC"]

sys.modules["cl_runner.running.loop"] = types.ModuleType("cl_runner.running.loop")
sys.modules["cl_runner.running.loop"].run = run
from cl_runner.cli.app import main
sys.argv[0] = "cl-run"
main()
"""
TINY = (
    "benchmark=split_digits",
    "benchmark.num_tasks=2",
    "benchmark.train_samples=60",
    "training.iterations=2",
    "training.batch_size=8",
    "model.hidden_sizes=[8]",
    "threads=1",
    "device=cpu",
)


def call(command: list[str | Path], cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def stubbed(forked) -> Callable[..., subprocess.CompletedProcess[str]]:
    """stubbed("seed=1", cwd=...): what cl-run does with the stub in the runner's place."""
    return partial(forked, STUB)


@pytest.fixture
def waiting(forked_started, tmp_path: Path) -> Callable[..., Any]:
    """waiting("seed=10"): a process of the stub's, once the seed 10 has come."""

    def function(*args: str) -> Any:
        process = forked_started(STUB, *args, cwd=tmp_path)
        while "waiting\n" not in process.said()[0]:
            assert process.poll() is None, process.said()
            time.sleep(0.005)
        return process

    return function


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def only(paths: object) -> Path:
    (path,) = paths  # type: ignore[misc]
    return path


# Help, completion, configuration


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        ["--cfg", "job"],
        ["-sc", "query=bash"],
        ["--flag"],
        ["strategy=unknown"],
        ["seeed=1"],
        ["+seeed=1"],
        ["optimizer.lr=-1"],
        ["-m", "strategy=ewc,unknown"],
        ["list"],
        ["explain", "ewc"],
        ["--help", "ewc"],
        ["ewc", "permuted_mnist"],
        ["strategy=ewc", "strategy.mode=onlin"],
        ["strategy=packnet", "scenario=class"],
        ["benchmark=split_digits", "benchmark.num_tasks=20"],
        ["benchmark=split_npz", "data.path=nowhere.npz"],
        ["data.path=mine.npz"],
    ],
    ids=" ".join,
)
def test_answers_without_importing_torch(forked, args: list[str], tmp_path: Path) -> None:
    result = forked(WITNESS, *args, cwd=tmp_path, COMP_LINE="cl-run strategy=")
    assert result.stderr.splitlines()[-1] == "imported:"
    assert not list(tmp_path.iterdir())


def test_help_explains_itself(cl_run, tmp_path: Path) -> None:
    result = cl_run("--help", cwd=tmp_path)
    assert result.returncode == 0
    assert result.stdout.startswith("cl-run: ")
    assert len(re.findall(r"^  cl-run", result.stdout, re.MULTILINE)) >= 6
    assert re.search(r"^  strategy .*\bewc\b.*\bnaive\b", result.stdout, re.MULTILINE | re.DOTALL)
    for named in ("--cfg job", "cl-run list", "cl-run explain", "missing_keys", "budget.{samples"):
        assert named in result.stdout
    lines = result.stdout.splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= 80, "a screen"
    assert "$" not in result.stdout.replace("${", "").replace("$(cl-run", "")


def test_help_names_commands_that_compose(cl_run, tmp_path: Path) -> None:
    text = cl_run("--help", cwd=tmp_path).stdout
    for example in re.findall(
        r"^  cl-run( .*?)(?:  .*)?$", text.partition("More")[0], re.MULTILINE
    ):
        args = [re.sub(r"=(\w+),[\w,]+$", r"=\1", a) for a in example.split() if a != "-m"]
        assert cl_run("--cfg", "job", *args, cwd=tmp_path).returncode == 0, example


def test_cfg_job_prints_yaml(cl_run, tmp_path: Path) -> None:
    result = cl_run("--cfg", "job", "strategy=naive", "seed=3", cwd=tmp_path)
    cfg = OmegaConf.create(result.stdout)
    assert (cfg.strategy.name, cfg.seed) == ("naive", 3)
    assert "hydra" not in cfg


def test_an_old_name_is_told_beside_the_configuration(cl_run, tmp_path: Path) -> None:
    old = cl_run("--cfg", "job", "experiment=hsu-ewc-til", cwd=tmp_path)
    new = cl_run("--cfg", "job", "experiment=hsu2018/ewc_split_task", cwd=tmp_path)
    assert (old.returncode, new.returncode, new.stderr) == (0, 0, "")
    assert old.stdout == new.stdout
    assert OmegaConf.create(old.stdout).optimizer.name == "adam"
    assert re.fullmatch("experiment=hsu-ewc-til is now hsu2018/ewc_split_task; .*\n", old.stderr)


def test_completion_looks_into_folders(cl_run, tmp_path: Path) -> None:
    line = "cl-run -m experiment=hsu2018/ewc"
    result = cl_run("-sc", "query=bash", cwd=tmp_path, COMP_LINE=line)
    assert result.stdout.split() == [
        "experiment=hsu2018/ewc_split_class",
        "experiment=hsu2018/ewc_split_task",
    ]


def test_completion(cl_run, tmp_path: Path) -> None:
    script = cl_run("-sc", "install=bash", cwd=tmp_path).stdout
    query = 'COMP_LINE="cl-run -m strategy=ew" COMP_CWORD=2; hydra_bash_completion'
    path = f"{CL_RUN.parent}{os.pathsep}{os.environ['PATH']}"
    shell = ["bash", "-c", f'{script}\n{query}; echo "${{COMPREPLY[@]}}"']
    assert "strategy=ewc" in call(shell, tmp_path, PATH=path).stdout.split()


@pytest.mark.parametrize("before", ["", "autoload -Uz compinit && compinit -D -u; "])
def test_completion_in_zsh(before: str, tmp_path: Path) -> None:
    """Whether or not .zshrc has called compinit."""
    if shutil.which("zsh") is None:
        pytest.skip("there is no zsh")
    path = f"{CL_RUN.parent}{os.pathsep}{os.environ['PATH']}"
    script = f'{before}eval "$(cl-run -sc install=zsh)"; print ${{_comps[cl-run]}}'
    result = call(["zsh", "-fc", script], tmp_path, PATH=path, HOME=f"{tmp_path}")
    assert (result.stderr, result.returncode) == ("", 0)
    assert "hydra_bash_completion" in result.stdout


@pytest.mark.parametrize("flags", [["--config-dir", "my"], ["hydra.searchpath=[file://my]"]])
def test_own_configuration_files(cl_run, flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "my/strategy").mkdir(parents=True)
    (tmp_path / "my/strategy/mine.yaml").write_text("name: ewc\nlambda: 3.0\n", encoding="utf-8")
    result = cl_run("--cfg", "job", "-p", "strategy", *flags, "strategy=mine", cwd=tmp_path)
    assert result.stdout == "# @package strategy\nname: ewc\nlambda: 3.0\n"


# Mistakes


@pytest.mark.parametrize(
    ("args", "fragments"),
    [
        (["strategy=ecw"], ["strategy=ecw", "did you mean ewc?", "naive"]),
        (["+experiment=unknown"], ["experiment=unknown"]),
        (["experiment=unknown"], ["experiment=unknown", "cl-run list experiments"]),
        (["experiment=hsu2018/ewc_splt_task"], ["did you mean hsu2018/ewc_split_task?"]),
        (["experiment=ewc_split_task"], ["did you mean hsu2018/ewc_split_task?"]),
        (["protocol=split_mnist"], ["protocol=split_mnist", "cl-run list experiments"]),
        (["strategy='a\nb'"], ["strategy=a b"]),
        (["strategy=ER"], ["did you mean er?"]),
        (["benchmark=split_mnist", "benchmark=split_digits"], ["benchmark is given twice"]),
        (["seeds=3"], ["seeds must be a list of int, or null, such as 'seeds=[3]'"]),
        (["model.hidden_sizes=400"], ["such as 'model.hidden_sizes=[400]'"]),
        (["-m", "seed=[1,2]"], ["seed must be int, got [1, 2]", "-m seed=1,2"]),
        (["seed=1\n2"], ["cannot read seed=1 2"]),
        (["strategy.mode=onlin"], ["strategy.mode must be one of separate, online"]),
        ([f"hydra.run.dir={'x' * 256}"], ["name too long"]),
        pytest.param(
            ["-m", "hydra.sweep.dir=/dev/null", "seed=1,2"], ["/dev/null"], marks=pytest.mark.unix
        ),
        (["-m", "strategy=naive,er", "strategy.buffer_size=9"], ["no key of strategy=naive"]),
        (["strategy.lamda=1"], ["strategy.lamda", "did you mean strategy.lambda", "known in"]),
        (["epoch=3"], ["unknown key epoch", "did you mean training.epochs?"]),
        (["stratgy=ewc"], ["stratgy", "did you mean strategy?"]),
        (["foo.bar.baz=1"], ["foo", "benchmark"]),
        (["+training.epoch=1"], ["training.epoch", "epochs"]),
        (["seed=abc"], ["seed", "abc"]),
        (["seed=-1"], ["seed", "at least 0"]),
        (["seed"], ["seed", "key=value"]),
        (["seed=[1"], ["seed=[1", "key=value"]),
        (["strategy=ewc,naive"], ["strategy=ewc,naive", "--multirun"]),
        (["training=3"], ["training=3"]),
        (["--unknown"], ["--unknown", "cl-run --help"]),
        (["seed=1", "-m", "strategy=ewc"], ["strategy=ewc", "flags go before"]),
        (["--config-dir", "nowhere"], ["nowhere"]),
        (["--config-name", "nothing"], ["nothing"]),
        (["data.root=${oc.env:NOT_SET_ANYWHERE}"], ["NOT_SET_ANYWHERE"]),
        (["hydra.run.dir=${oc.env:NOT_SET_ANYWHERE}"], ["NOT_SET_ANYWHERE"]),
        pytest.param(["hydra.run.dir=/dev/null/x"], ["/dev/null/x"], marks=pytest.mark.unix),
        (["hydra.run.dir=new/folder", "seed=7"], ["seed must not be 7"]),
        (["seed=7"], ["seed must not be 7"]),
        (["-m", "strategy=ewc,unknown", "seed=0,1"], ["strategy=unknown", "ewc"]),
        (["-m", "strategy=ewc,naive", "strategy.lambda=1"], ["strategy.lambda"]),
        (["-m", "seed=interval(0,1)"], ["INTERVAL"]),
        (["-m", "strategy=glob(zz*)"], ["strategy=glob(zz*): nothing is there that matches"]),
        (["-m", "hydra/launcher=unknown"], ["hydra/launcher=unknown", "basic"]),
        (["hydra/launcher=joblib"], ["needs -m"]),
        (["resume=nowhere"], ["resume=", "nowhere: there is no run"]),
        (["-m", "seed=1,2", "resume=out"], ["resume=FOLDER is for one run", "resume=true"]),
        (["checkpoint.every=-1"], ["checkpoint.every must be at least 0 seconds"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line(
    stubbed, args: list[str], fragments: list[str], tmp_path: Path
) -> None:
    result = stubbed(*args, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert re.fullmatch(r"cl-run: .+\n", result.stderr), result.stderr
    for fragment in fragments:
        assert fragment in result.stderr
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_broken_yaml_file_of_the_user_is_one_line(stubbed, tmp_path: Path) -> None:
    (tmp_path / "my/strategy").mkdir(parents=True)
    (tmp_path / "my/strategy/mine.yaml").write_text("name: [", encoding="utf-8")
    result = stubbed("--config-dir", "my", "strategy=mine", cwd=tmp_path)
    assert result.returncode == 2
    assert re.fullmatch(r"cl-run: .+mine.yaml.+\n", result.stderr), result.stderr


@pytest.mark.parametrize("variable", ["CL_RUNNER_TRACEBACK", "HYDRA_FULL_ERROR"])
def test_a_traceback_for_those_who_want_it(stubbed, variable: str, tmp_path: Path) -> None:
    result = stubbed("seed=7", cwd=tmp_path, **{variable: "1"})
    assert result.returncode == 2
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("\ncl-run: seed must not be 7\n")


def test_a_bug_leaves_its_traceback_in_the_folder(stubbed, tmp_path: Path) -> None:
    result = stubbed("hydra.run.dir=out", "seed=9", cwd=tmp_path)
    path = tmp_path / "out/traceback.txt"
    assert result.returncode == 1
    assert re.fullmatch(r"cl-run: a bug in cl_runner: ZeroDivisionError.+\n", result.stderr)
    assert str(path) in result.stderr
    assert "in run" in path.read_text(encoding="utf-8")


def test_a_diverged_run_exits_with_1_and_keeps_its_files(stubbed, tmp_path: Path) -> None:
    result = stubbed("hydra.run.dir=out", "seed=8", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (1, "cl-run: the loss is not finite\n")
    assert read(tmp_path / "out/summary.csv")[0]["status"] == "failed"


@pytest.mark.unix
@pytest.mark.parametrize("args", [["seed=10"], ["-m", "seed=1,10,2", "hydra.sweep.dir=out"]])
def test_ctrl_c_stops_with_130(waiting, args: list[str], tmp_path: Path) -> None:
    process = waiting(*args)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    hint = f"; to go on: the same command with hydra.sweep.dir={tmp_path}/out resume=true"
    said = f"cl-run: interrupted{hint if '-m' in args else ''}\n"
    assert (process.returncode, stderr) == (130, said)
    if "-m" in args:
        assert [row["seed"] for row in read(tmp_path / "out/summary.csv")] == ["1", "10"]


# Folders


def test_two_runs_in_the_same_second_have_two_folders(forked_started, tmp_path: Path) -> None:
    processes = [forked_started(STUB, "seed=1", cwd=tmp_path) for _ in range(2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert len(list(tmp_path.glob("outputs/*/*/summary.csv"))) == 2


@pytest.mark.parametrize(
    "override",
    [
        "strategy.name=/a/b/../c",
        "strategy.name='a b'",
        f"strategy.name='{'x ' * 150}'",
        'strategy.name="héé ✓ 数"',
        "strategy.name='${device}'",
        "strategy.name='a;b|c&d'",
    ],
)
@pytest.mark.parametrize("mode", ["outputs", "multirun"])
def test_odd_values_make_safe_folders(stubbed, mode: str, override: str, tmp_path: Path) -> None:
    args = ["-m"] if mode == "multirun" else []
    result = stubbed(*args, override, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    pattern = "*/*/*/summary.csv" if args else "*/*/summary.csv"
    folder = only((tmp_path / mode).glob(pattern)).parent
    assert re.fullmatch(r"[A-Za-z0-9._=+-]{1,140}", folder.name)
    assert "strategy.name=" in folder.name


def test_a_folder_that_holds_a_run_is_not_overwritten(stubbed, tmp_path: Path) -> None:
    assert stubbed("hydra.run.dir=a/b", cwd=tmp_path).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    result = stubbed("hydra.run.dir=a/b", "seed=1", cwd=tmp_path)
    assert result.returncode == 2
    assert "already holds summary.csv, status.json; resume=true goes on with it" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_folder_with_files_of_the_users_own_is_not_overwritten(stubbed, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("my: precious")
    result = stubbed("hydra.run.dir=.", cwd=tmp_path)
    assert result.returncode == 2
    assert "already holds config.yaml" in result.stderr
    assert (tmp_path / "config.yaml").read_text() == "my: precious"


def test_the_log_is_in_the_folder_and_not_on_the_console(stubbed, tmp_path: Path) -> None:
    result = stubbed("hydra.run.dir=out", cwd=tmp_path)
    assert result.stdout + result.stderr == ""
    assert "task 1" in (tmp_path / "out/cl-run.log").read_text(encoding="utf-8")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "cl-run.log",
        "status.json",
        "summary.csv",
    ]


def job(*overrides: str, sweep: str = "nowhere") -> str:
    """The folder of a job with these overrides."""
    with initialize_config_module("cl_runner.conf", **BASE):
        config = compose("config", list(overrides))
    return naming.job(OmegaConf.create(list(overrides)), sweep, _root_=config)


def test_jobs_with_a_long_common_beginning_are_told_apart() -> None:
    a, b = (job(f"data.path={'x' * 300}{end}") for end in "ab")
    assert a[:110] == b[:110] == f"data.path={'x' * 100}"
    assert a != b == job(f"data.path={'x' * 300}b")


def test_what_makes_no_other_run_makes_no_other_folder() -> None:
    name = job("strategy=ewc", "seed=1", "strategy.lambda=1")
    assert re.fullmatch("strategy=ewc_strategy.lambda=1_seed=1-[0-9a-f]{8}", name)
    assert job("seed=1", "strategy=ewc", "strategy.lambda=1.0") == name
    silent = ("++verbose=false", "checkpoint.every=5", "resume=true", "threads=2", "data.root=a")
    assert job(*silent, "strategy.lambda=1e0", "seed=1", "strategy=ewc", "device=cpu") == name
    others = ("strategy.lambda=1.5", "model.hidden_sizes=[8]", "scenario=task", "optimizer=adam")
    names = {job("strategy=ewc", "seed=1", "strategy.lambda=1", other) for other in others}
    assert len({other[-8:] for other in {name, *names}}) == 5


def test_a_changed_default_makes_another_folder() -> None:
    """The name is that of the resolved configuration, not of the overrides."""
    config = OmegaConf.create({"seed": 1, "lr": 0.1, "twice": "${seed}", "hydra": {"x": 1}})
    name = naming.digest(_root_=config)
    assert naming.digest(_root_=OmegaConf.merge(config, {"hydra": {"x": 2}})) == name
    assert naming.digest(_root_=OmegaConf.merge(config, {"twice": 1})) == name
    assert naming.digest(_root_=OmegaConf.merge(config, {"lr": 0.2})) != name


def test_a_default_said_aloud_is_the_same_job(tmp_path: Path) -> None:
    (tmp_path / job("strategy=si")).mkdir()
    said = job("strategy=si", "seed=0", sweep=str(tmp_path))
    assert said == job("strategy=si") != job("strategy=si", "seed=0")


def test_more_seeds_join_the_folder_of_seeds(tmp_path: Path) -> None:
    (tmp_path / job("seeds=[0,1]")).mkdir()
    assert job("seeds=[0,1,2]", sweep=str(tmp_path)) == job("seeds=[0,1]") != job()


# Resuming (what it computes is in tests/reliability)


def test_resume_with_a_folder_takes_its_configuration(cl_run, tmp_path: Path) -> None:
    folder = tmp_path / "a=b, 'c\\'"
    folder.mkdir()
    overrides = ["seed=3", "data.root='x y'", "strategy=naive", 'data.path="a=b"']
    with initialize_config_module("cl_runner.conf", **BASE):
        config = validate(compose("config", overrides))
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config.resolved), encoding="utf-8")
    (folder / "overrides.yaml").write_text("- of no interest", encoding="utf-8")
    result = cl_run("--cfg", "job", f"resume={folder.name}", "seed=4", cwd=tmp_path)
    cfg = OmegaConf.create(result.stdout)
    assert (cfg.seed, cfg.strategy.name, cfg.resume) == (4, "naive", True)
    assert (cfg.data.root, cfg.data.path) == ("x y", "a=b")
    result = cl_run("--cfg", "hydra", f"resume={folder.name}", cwd=tmp_path)
    assert OmegaConf.create(result.stdout).hydra.run.dir == str(folder)
    assert {path.name for path in tmp_path.iterdir()} == {folder.name}


def test_two_processes_do_not_run_the_same_job(stubbed, waiting, tmp_path: Path) -> None:
    first = waiting("hydra.run.dir=a", "seed=10", "verbose=false")
    result = stubbed("hydra.run.dir=a", "seed=1", "resume=true", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == f"cl-run: another process is at work in {tmp_path}/a\n"
    assert (tmp_path / "a/.lock").exists() and (tmp_path / "a/cl-run.log").exists()
    first.kill()
    first.communicate(timeout=60)
    (tmp_path / "a/summary.csv").unlink()
    result = stubbed("hydra.run.dir=a", "seed=1", "resume=true", cwd=tmp_path)
    assert result.returncode == 0, "the lock died with its holder"
    assert not (tmp_path / "a/.lock").exists()

    first = waiting("-m", "seed=10", "hydra.sweep.dir=b", "verbose=false")
    args = ("-m", "seed=10,1", "hydra.sweep.dir=b", "resume=true", "verbose=false")
    result = stubbed(*args, cwd=tmp_path)
    assert result.returncode == 0
    assert re.fullmatch(r"cl-run: another process is at work in .*/seed=10-\w+\n", result.stderr)
    assert [row["seed"] for row in read(tmp_path / "b/summary.csv")] == ["1", "10"]
    assert "another process" not in "".join(p.read_text() for p in tmp_path.glob("b/*/*.json"))
    first.kill()
    first.communicate(timeout=60)


def test_a_job_that_failed_is_repeated_and_its_error_goes(stubbed, tmp_path: Path) -> None:
    assert stubbed("-m", "seed=1,7", "hydra.sweep.dir=out", cwd=tmp_path).returncode == 1 + 1
    (failed,) = tmp_path.glob("out/seed=7*")
    assert status.state(failed) == "failed"
    result = stubbed("-m", "seed=7", "hydra.sweep.dir=out", "resume=true", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "reason" not in status.read(failed)
    assert [row["status"] for row in read(tmp_path / "out/summary.csv")] == ["complete"] * 2


def test_resuming_in_a_folder_of_the_users_own_removes_nothing(stubbed, tmp_path: Path) -> None:
    (tmp_path / "traceback.txt").write_text("mine")
    assert stubbed("hydra.run.dir=.", "seed=1", "resume=true", cwd=tmp_path).returncode == 0
    assert (tmp_path / "traceback.txt").read_text() == "mine"


# Sweeps


def test_a_sweep_goes_on_when_jobs_fail(stubbed, tmp_path: Path) -> None:
    result = stubbed("-m", "seed=1,7,2,8,9,3", "hydra.sweep.dir=out", cwd=tmp_path)
    out = tmp_path / "out"
    rows = {row["seed"] or row["run"]: row for row in read(out / "summary.csv")}
    assert result.returncode == 1
    assert next(iter(rows["1"])) == "run"
    assert (rows["1"]["ACC"], rows["1"]["forgetting"]) == ("0.1", "")
    assert (rows["2"]["ACC"], rows["2"]["forgetting"]) == ("0.2", "0.25")
    assert [rows[seed]["status"] for seed in "1238"] == ["complete"] * 3 + ["failed"]
    assert len(rows) == 6
    for run, row in rows.items():
        assert status.state(out / row["run"]) == row["status"], run

    failed = {path.name[:6]: path for path in out.glob("seed=[789]*")}
    told = {seed: status.read(path) for seed, path in failed.items()}
    reasons = {seed: (about["exception"], about["reason"]) for seed, about in told.items()}
    assert reasons["seed=7"] == ("UserError", "seed must not be 7")
    assert reasons["seed=8"] == ("Diverged", "the loss is not finite")
    assert (told["seed=8"]["task"], told["seed=8"]["tasks"]) == (1, 2)
    assert reasons["seed=9"][0] == "ZeroDivisionError"
    assert "seed must not be 7" in (failed["seed=7"] / "cl-run.log").read_text()
    assert [p.parent.name[:6] for p in out.glob("*/traceback.txt")] == ["seed=9"]
    assert [seed for seed, about in told.items() if "traceback" in about] == ["seed=9"]

    *shown, final = result.stdout.splitlines()
    assert any(re.search(r"\b2 +0\.2000 +0\.2500 +complete +seed=2", line) for line in shown)
    assert "out/summary.csv" in final
    listed = result.stderr.partition("3 of 6 runs failed:\n")[2].splitlines()
    assert [line.strip().partition(": ")[0] for line in listed] == [
        f"out/{failed[f'seed={seed}'].name}" for seed in "789"
    ]


def test_a_sweep_with_only_mistakes_exits_with_2(stubbed, tmp_path: Path) -> None:
    result = stubbed("-m", "seed=1,7", "optimizer.lr=0.1,-1", "verbose=false", cwd=tmp_path)
    assert result.returncode == 2
    rows = read(only(tmp_path.glob("multirun/*/*/summary.csv")))
    assert sorted(row["status"] for row in rows) == ["complete", "failed", "failed", "failed"]
    assert "forgetting" not in result.stdout


def test_a_job_that_is_asked_for_twice_runs_once(stubbed, tmp_path: Path) -> None:
    result = stubbed("-m", "seed=1,1", "hydra.sweep.dir=out", cwd=tmp_path)
    assert result.returncode == 0
    assert len(read(tmp_path / "out/summary.csv")) == 1


def test_a_folder_that_holds_a_sweep_is_refused(stubbed, tmp_path: Path) -> None:
    assert stubbed("-m", "seed=1,2", "hydra.sweep.dir=out", cwd=tmp_path).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    result = stubbed("-m", "seed=1,3", "hydra.sweep.dir=out", cwd=tmp_path)
    assert result.returncode == 2
    assert re.fullmatch(r"cl-run: .*already holds results; resume=true .*\n", result.stderr)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_summary_that_cannot_be_merged_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out/job").mkdir(parents=True)
    (tmp_path / "out/job/summary.csv").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="is empty; the file is damaged"):
        merge.merge(tmp_path / "out")


# With training


def test_a_job_is_named_by_the_hash_in_its_summary(cl_run, tmp_path: Path) -> None:
    result = cl_run("-m", *TINY, "optimizer.lr=1.0", "hydra.sweep.dir=out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    row = only_row(tmp_path / "out")
    assert row["run"].endswith(f"-{row['config_hash'][:8]}")


def only_row(folder: Path) -> dict[str, str]:
    (row,) = read(folder / "summary.csv")
    return row


def test_a_run_trains_and_writes_its_files(cl_run, tmp_path: Path) -> None:
    result = cl_run(*TINY, "hydra.run.dir=out", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "ACC" in result.stdout
    out = tmp_path / "out"
    for name in ("accuracy_matrix.csv", "accuracies.csv", "summary.csv", "cl-run.log"):
        assert (out / name).stat().st_size > 0
    assert OmegaConf.load(out / "config.yaml").model.hidden_sizes == [8]
    assert OmegaConf.load(out / "overrides.yaml") == list(TINY)
    assert not (out / ".hydra").exists()


def test_a_sweep_trains_merges_and_survives_divergence(cl_run, tmp_path: Path) -> None:
    sweeps = ("strategy=naive,ewc", "optimizer.lr=0.1,-1,1e30")
    result = cl_run("-m", *TINY, *sweeps, "hydra.sweep.dir=out", cwd=tmp_path)
    rows = read(tmp_path / "out/summary.csv")
    assert result.returncode == 1
    assert sorted(row["status"] for row in rows) == ["complete"] * 2 + ["failed"] * 4
    complete = [row for row in rows if row["status"] == "complete"]
    assert sorted(row["strategy"] for row in complete) == ["ewc", "naive"]
    assert all(0 <= float(row["ACC"]) <= 1 for row in complete)
    told = [status.read(path.parent) for path in (tmp_path / "out").glob("*/status.json")]
    errors = sorted(about["exception"] for about in told if about["state"] == "failed")
    assert errors == ["Diverged"] * 2 + ["UserError"] * 2


@pytest.mark.parametrize(
    "args",
    [["+strategy.unknown=1"], ["benchmark=split_npz", "data.path=nowhere.npz"]],
    ids=" ".join,
)
def test_a_mistake_that_needs_torch_leaves_nothing_behind(
    cl_run, args: list[str], tmp_path: Path
) -> None:
    result = cl_run(*args, cwd=tmp_path)
    assert result.returncode == 2
    assert re.fullmatch(r"cl-run: .+\n", result.stderr), result.stderr
    assert not list(tmp_path.iterdir())


def test_a_sweep_stopped_between_two_jobs_is_merged_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "seed=0").mkdir()
    (tmp_path / "seed=0" / "summary.csv").write_text("status,ACC\ncomplete,0.5\n")
    monkeypatch.setattr(merge, "sweeps", [tmp_path])
    merge.gather(tell=False)
    assert (tmp_path / "summary.csv").read_text() == "run,status,ACC\nseed=0,complete,0.5\n"


def test_the_runs_of_a_sweep_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for seed in (10, 9, 1):
        (tmp_path / f"seed={seed}").mkdir()
        (tmp_path / f"seed={seed}" / "summary.csv").write_text(f"seed\n{seed}\n")
    assert [row["seed"] for row in merge.merge(tmp_path)] == ["1", "9", "10"]


def test_a_sweep_over_presets_of_old_names_goes_on_under_the_new_ones(
    cl_run, tmp_path: Path
) -> None:
    rest = (*TINY, f"data.root={tmp_path}", "verbose=false", "hydra.sweep.dir=out")
    names = "experiment=split-mnist-class-naive,split-mnist-class-er"
    first = cl_run("-m", names, *rest, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stderr.count(" are now ") == 1
    files = sorted(tmp_path.glob("out/*/overrides.yaml"))
    asked = [OmegaConf.to_container(OmegaConf.load(path))[0] for path in files]
    new = ["preset/split_mnist_class/er", "preset/split_mnist_class/naive"]
    assert asked == [f"+experiment={name}" for name in new]
    assert all(re.fullmatch(r"[A-Za-z0-9._=+-]{1,140}", path.parent.name) for path in files)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/summary.csv")}

    again = cl_run("-m", f"experiment={','.join(new)}", *rest, "resume=true", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/summary.csv")} == before
