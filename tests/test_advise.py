"""`cl-run advise`: distances, predictions and intervals in closed form, the tables, the command."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import advice_backtest
import pandas as pd
import pytest
from omegaconf import OmegaConf

from cl_runner import strategies
from cl_runner.advising import advice, facts, features, predict, similar, words
from cl_runner.advising.advice import Asked, advise
from cl_runner.advising.predict import CORE, Table, table_of
from cl_runner.advising.tables import (
    RESULT_COLUMNS,
    RESULTS,
    STREAM_COLUMNS,
    STREAMS,
    Row,
    read,
)
from cl_runner.cli.advise import composed
from cl_runner.cli.app import answer
from cl_runner.config.outline import checked
from cl_runner.running.footprint import PLACES
from cl_runner.running.prepare import prepare, strategy_of

REPOSITORY = Path(__file__).parents[1]


def a_stream(name: str, **changes: object) -> Row:
    """A stream of ten classes in ten tasks, domain-incremental, but for changes."""
    plain = {
        "stream": name,
        "settings": "",
        "scenario": "domain",
        "kind": "permuted",
        "data": name,
        "change": "inputs",
        "boundaries": "sharp",
        "images": 1,
        "num_tasks": 10,
        "classes": 10,
        "classes_per_task": 10,
        "samples_per_task": 1000,
        "input_size": 100,
        "largest_to_smallest_class": 1,
        "steps_per_task": 10,
    }
    return plain | changes


def a_result(stream: str, strategy: str, acc: float | None, **changes: object) -> Row:
    plain = {
        "stream": stream,
        "scenario": "domain",
        "strategy": strategy,
        "status": "complete",
        "n": 2,
        "ACC": acc,
        "ACC_sd": 0.01,
        "forgetting": 0.1,
        "kept_bytes": 100,
        "flops": 10,
        "needs_borders": 0,
        "needs_tasks": 0,
        "source": "run",
    }
    return plain | changes


def a_table(accuracies: dict[str, dict[str, float]], **streams: Row) -> Table:
    """Streams with accuracies of some strategies; those of CORE that are not told have 0.5."""
    rows = [
        a_result(name, strategy, acc)
        for name, own in accuracies.items()
        for strategy, acc in (dict.fromkeys(CORE, 0.5) | own).items()
    ]
    return table_of([streams.get(name, a_stream(name)) for name in accuracies], rows)


@pytest.fixture(scope="module")
def table() -> Table:
    """The one that comes with the package."""
    return table_of(read(STREAMS), read(RESULTS))


# Distances


def test_a_distance_adds_up_what_differs():
    def far(**changes: object) -> float:
        return similar.distance(a_stream("a"), a_stream("b", **{"data": "a"} | changes))

    assert far() == 0
    assert far(data="b") == 0.5
    assert far(num_tasks=100) == pytest.approx(1)
    assert far(num_tasks=1, input_size=10) == pytest.approx(1.5)
    assert far(change="labels", images=0) == pytest.approx(1.5)
    assert far(boundaries="fuzzy") == pytest.approx(0.5)
    assert far(scenario="class") == math.inf


def test_the_nearest_come_first_and_none_of_another_scenario():
    others = [
        a_stream("far", num_tasks=1000),
        a_stream("other", scenario="task"),
        a_stream("near", num_tasks=20),
    ]
    found = similar.nearest(a_stream("a"), others, 5)
    assert [s["stream"] for s, _ in found] == ["near", "far"]
    assert [d for _, d in found] == pytest.approx([0.5 + math.log10(2), 2.5])
    assert len(similar.nearest(a_stream("a"), others, 1)) == 1


@pytest.mark.parametrize(
    ("own", "shared"),
    [
        ({"data": "mnist", "kind": "split"}, "kind"),
        ({"data": "mnist", "kind": "rotated"}, "data"),
        ({"data": "folders", "kind": "split"}, "nothing"),
    ],
)
def test_what_a_stream_shares_with_others(own: dict[str, str], shared: str):
    others = [a_stream("x", data="mnist", kind="split", scenario="class")]
    assert similar.relation(a_stream("a", **own), others) == shared


# Predictions


def test_chance_is_that_of_the_classes_among_which_a_sample_is_told():
    few = {"classes": 10, "classes_per_task": 2}
    chances = {s: predict.chance(a_stream("a", scenario=s, **few)) for s in ("class", "task")}
    assert chances == {"class": 0.1, "task": 0.5}
    assert predict.chance(a_stream("a", classes_per_task=1)) == 0.5


def test_a_score_is_the_logit_of_accuracy_above_chance():
    assert predict.score(0.55, 0.1) == pytest.approx(0)  # half of what is above chance
    assert predict.score(1.0, 0.1) == pytest.approx(math.log(99))
    assert predict.score(0.0, 0.1) == pytest.approx(-math.log(99))
    assert predict.accuracy(predict.score(0.7, 0.5), 0.5) == pytest.approx(0.7)


def test_a_prediction_is_the_weighted_mean_of_the_nearest():
    own = a_table(
        {"x": {"er": 0.55}, "y": {"er": 0.9}}, y=a_stream("y", num_tasks=100), x=a_stream("x")
    )
    found, far = predict.expected(a_stream("a", data="x"), own)
    w = 1 / predict.SOFT, 1 / (1.5 + predict.SOFT)
    scores = 0.0, math.log(8)  # (0.9 - 0.1) / 0.9 is 8 / 9
    mean = (w[0] * scores[0] + w[1] * scores[1]) / sum(w)
    variance = sum(v * (x - mean) ** 2 for v, x in zip(w, scores, strict=True)) / sum(w)
    assert far == 0
    assert found["er"].score == pytest.approx(mean)
    assert found["er"].spread == pytest.approx(math.sqrt(variance + predict.FLOOR**2))
    assert found["er"].streams == 2


def test_an_interval_grows_with_the_distance_of_the_nearest():
    own = a_table({"x": {"er": 0.6}, "y": {"er": 0.6}})
    near, _ = predict.expected(a_stream("a", data="x"), own)
    far, distance = predict.expected(a_stream("a", data="x", num_tasks=100), own)
    assert distance == pytest.approx(1)
    assert far["er"].spread == pytest.approx(2 * near["er"].spread)
    assert far["er"].score == pytest.approx(near["er"].score)


def test_a_strategy_that_an_easy_stream_lacks_is_not_taken_for_a_bad_one():
    """Where it was run it is as good as er, on hard streams; on the easy one it was not run."""
    easy, hard = dict.fromkeys(CORE, 0.9), dict.fromkeys(CORE, 0.3)
    own = a_table({"x": easy, "y": hard | {"bir": 0.3}, "z": hard | {"bir": 0.3}})
    found, _ = predict.expected(a_stream("a"), own)
    assert found["bir"].score == pytest.approx(found["er"].score)
    assert found["bir"].streams == 2


def test_a_strategy_that_one_stream_has_is_not_predicted():
    own = a_table({"x": {"bir": 0.9}, "y": {}})
    assert "bir" not in predict.expected(a_stream("a"), own)[0]


def test_what_diverged_is_counted_and_has_no_accuracy():
    own = a_table({"x": {"ewc": 0.5}, "y": {"ewc": 0.5}, "z": {}})
    own.results["z", "domain"]["ewc"] = a_result("z", "ewc", None, status="diverged")
    found, _ = predict.expected(a_stream("a"), own)
    assert (found["ewc"].streams, found["ewc"].diverged) == (2, 1)


def test_the_position_lies_between_naive_and_joint():
    rows = {n: a_result("x", n, a) for n, a in {"naive": 0.2, "joint": 0.8, "er": 0.65}.items()}
    assert predict.position("er", rows) == pytest.approx(0.75)
    assert (predict.position("naive", rows), predict.position("joint", rows)) == (0, 1)
    rows["joint"] = a_result("x", "joint", 0.22)
    assert predict.position("er", rows) is None


def test_the_rank_is_the_share_of_better_ones_without_the_bounds():
    acc = {"naive": 0.2, "joint": 0.9, "er": 0.5, "lwf": 0.5, "si": 0.8}
    rows = {n: a_result("x", n, a) for n, a in acc.items()}
    ranks = {n: predict.rank_of(n, rows) for n in acc}
    assert ranks["si"] == 0
    assert ranks["er"] == pytest.approx(0.5)  # of naive, lwf and si one is better, one as good
    assert ranks["naive"] == 1


def test_bytes_are_those_of_the_nearest_sizes():
    streams = {"x": a_stream("x", input_size=64), "y": a_stream("y", input_size=784)}
    own = a_table({"x": {}, "y": {}}, **streams)
    own.results["x", "domain"]["er"] |= {"kept_bytes": 200}
    own.results["y", "domain"]["er"] |= {"kept_bytes": 300}
    own.results["y", "domain"]["ridge"] |= {"kept_bytes": 5000}
    assert predict.kept("er", a_stream("a", input_size=50), own, 1e6) == 2  # times naive's 100
    assert predict.kept("er", a_stream("a", input_size=900), own, 1e6) == 3
    ridge = predict.kept("ridge", a_stream("a", input_size=900), own, 1e6)
    assert ridge == pytest.approx(0.005)  # 5000 bytes, whatever network naive has
    assert predict.kept("ridge", a_stream("a", input_size=900), own, None) == 50
    assert predict.kept("bir", a_stream("a"), own, 1e6) is None
    own.results["y", "domain"]["naive"] |= {"kept_bytes": None}  # as of rows that were taken over
    assert predict.kept("er", a_stream("a", input_size=900), own, 1e6) == 2


# Intervals


def test_the_factor_is_the_quantile_of_n_plus_one():
    assert predict.factor([9, 1, 2, 3, 4, 5, 6, 7, 8]) == 8  # the ceil(10 * 0.8)-th
    assert predict.factor([1, 2, 3, 4]) == 4
    assert predict.factor([1, 2, 3]) == math.inf  # ceil(4 * 0.8) is 4


def test_four_fifths_of_exchangeable_streams_lie_within_their_intervals():
    acc = {f"s{i}": {"er": 0.3 + 0.02 * ((7 * i) % 25)} for i in range(25)}
    cases = predict.left_out(a_table(acc), "nothing")
    assert len(cases) == 25
    own = [predict.errors([case]) for case in cases]
    for place in range(len(CORE)):
        q = predict.factor([errors[place] for errors in own])
        inside = [errors[place] <= q for errors in own]
        assert 0.8 <= sum(inside) / 25 <= 1


@pytest.mark.parametrize("level", ["data", "nothing"])
def test_what_was_measured_on_a_stream_has_no_part_in_its_own_prediction(level: str):
    """Nor what was measured on its relatives."""

    def with_er(acc: float) -> Table:
        streams = {"x": a_stream("x", data="d"), "relative": a_stream("relative", data="d")}
        values = {"x": {"er": acc}, "relative": {"er": acc}, "y": {"er": 0.6}, "z": {"er": 0.7}}
        return a_table(values, **streams)

    scores = []
    for acc in (0.2, 0.9):
        case = next(c for c in predict.left_out(with_er(acc), level) if c.stream["stream"] == "x")
        assert set(case.near) == {"y", "z"}
        assert case.truth["er"]["ACC"] == acc
        scores.append(case.expected["er"].score)
    assert scores[0] == scores[1]


def test_leaving_out_one_stream_keeps_its_relatives_and_skips_who_has_none():
    streams = {n: a_stream(n, data="d") for n in ("x", "relative")}
    own = a_table({"x": {}, "relative": {}, "y": {}, "z": {}}, **streams)
    cases = predict.left_out(own, "kind")
    assert [(c.stream["stream"], c.relation) for c in cases] == [
        ("x", "kind"),
        ("relative", "kind"),
    ]
    assert "relative" in cases[0].near


# Advice


def many(**own: float) -> Table:
    """Twelve streams of as many data sets, a little apart."""
    streams = {f"s{i}": a_stream(f"s{i}", num_tasks=10 + i) for i in range(12)}
    return a_table(dict.fromkeys(streams, own), **streams)


def test_strategies_are_ranked_by_expected_accuracy_bounds_apart():
    said = advise(a_stream("a"), many(er=0.8, ridge=0.7, naive=0.2, joint=0.9), Asked())
    assert [line.strategy for line in said.lines][:2] == ["er", "ridge"]
    assert said.lines[-1].strategy == "naive"
    assert [line.strategy for line in said.bounds] == ["joint"]
    assert said.lines[0].gain == pytest.approx(6 / 7)
    assert not said.unlike
    assert said.measured is None
    assert said.lost == pytest.approx([0.0] * 12)
    assert said.lines[0].low <= 0.8 <= said.lines[0].high
    assert "how hard your data are" in words.text(said)
    known = advise(a_stream("a", data="s3", kind="split"), many(er=0.8), Asked())
    assert "how hard" not in words.text(known)


def test_a_stream_unlike_all_has_an_order_and_no_accuracy():
    said = advise(a_stream("a", num_tasks=10**6), many(er=0.8, naive=0.2), Asked())
    assert said.unlike
    assert said.lines[0].strategy == "er"
    assert all(line.acc is None and line.low is None for line in said.lines)
    assert "Nothing like this stream" in words.text(said)


def test_a_stream_of_the_table_is_told_as_it_was_measured():
    table = many(er=0.8)
    own = dict(table.streams[3])
    said = advise(own, table, Asked())
    (er,) = (line for line in said.lines if line.strategy == "er")
    assert said.measured == own
    assert er.acc == 0.8
    assert er.high - er.acc == pytest.approx(3.078 * 0.01 / math.sqrt(2))  # 80 %, of two seeds


def test_what_is_asked_for_leaves_out_with_a_reason():
    table = many(er=0.8)
    for rows in table.results.values():
        rows["lwf"] |= {"needs_borders": 1, "needs_tasks": 0}
        rows["si"] |= {"needs_borders": 1, "needs_tasks": 1}
        rows["er_ace"] |= {"kept_bytes": 1000, "flops": 1000}
    stream = a_stream("a")

    def left(**asked: object) -> dict[str, list[str]]:
        said = advise(stream, table, Asked(**asked))
        gone = {name for names in said.left.values() for name in names}
        assert not gone & {line.strategy for line in said.lines}
        return {why: sorted(names) for why, names in said.left.items()}

    assert left() == {}
    assert left(privacy=True) == {"store samples": ["agem", "er", "er_ace"]}
    borders = "need the borders between tasks"
    assert left(boundaries="none") == {borders: ["lwf", "si"]}
    assert left(boundaries="detected") == {borders: ["si"]}
    most = {"naive_bytes": 500.0, "naive_flops": 5e9}
    assert left(most_bytes=4999, **most) == {"keep more than budget.bytes": ["er_ace"]}
    assert left(most_bytes=5000, **most) == {}
    assert left(most_flops=4.9e11, **most) == {"take more than budget.flops": ["er_ace"]}
    assert left(most_bytes=1) == {}  # of a network of unknown size


# The tables that come with the package


def test_the_tables_have_their_columns_and_each_row_once(table: Table):
    streams, results = pd.read_csv(STREAMS), pd.read_csv(RESULTS)
    assert tuple(streams.columns) == STREAM_COLUMNS
    assert tuple(results.columns) == RESULT_COLUMNS
    assert not streams.duplicated(["stream", "scenario"]).any()
    assert not results.duplicated(["stream", "scenario", "strategy"]).any()
    known = set(zip(streams.stream, streams.scenario, strict=True))
    assert set(zip(results.stream, results.scenario, strict=True)) <= known
    assert results.ACC.dropna().between(0, 1).all()
    assert results[results.status == "complete"].ACC.notna().all()
    assert (results[results.source == "run"].n <= 2).all()
    assert len(table.streams) >= 20
    assert RESULTS.stat().st_size + STREAMS.stat().st_size < 300_000


def test_what_strategies_keep_and_need_is_what_they_say():
    rows = read(RESULTS)
    for name in {row["strategy"] for row in rows}:
        own = strategies.build(OmegaConf.load(REPOSITORY / f"conf/strategy/{name}.yaml"))
        stored = any(hasattr(own, place) for place in PLACES)
        assert (facts.KEEPS[name] == "samples") == stored, name
        for row in (row for row in rows if row["strategy"] == name):
            assert row["scenario"] in own.scenarios
            assert bool(own.needs_borders(row["scenario"])) == row["needs_borders"], row
            assert bool(own.needs_tasks(row["scenario"])) == row["needs_tasks"], row


def test_what_naive_keeps_and_takes_follows_from_the_stream(table: Table):
    checked_ = 0
    for stream in table.streams:
        naive = table.of(stream)["naive"]
        if naive["source"] == "run":
            assert facts.mlp_bytes(stream, [256, 256]) == naive["kept_bytes"]
            epochs = epochs_of(stream)
            flops = facts.mlp_flops(stream, [256, 256], epochs)
            assert flops == pytest.approx(naive["flops"], rel=0.02), stream["stream"]
            checked_ += 1
    assert checked_ >= 10


def epochs_of(stream: Row) -> int:
    """The default number of epochs of a stream of the table."""
    benchmark = stream["settings"].split()[0].partition("=")[2]
    own = OmegaConf.load(REPOSITORY / f"conf/benchmark/{benchmark}.yaml")
    return int(own.default_epochs)


# What is known of a stream before training


@pytest.mark.parametrize(
    "settings",
    [
        "benchmark=split_digits benchmark.num_tasks=3 scenario=class",
        "benchmark=split_digits benchmark.classes=[1,2,3,4] benchmark.num_tasks=2 scenario=task",
        "benchmark=permuted_digits benchmark.train_samples=500 scenario=domain",
        "benchmark=conditions_digits benchmark.samples_per_task=100 training.epochs=3",
        "benchmark=label_permuted_digits benchmark.validation_fraction=0.2",
        "benchmark=split_letter training.iterations=7 training.batch_size=64",
    ],
)
def test_what_settings_tell_of_a_stream_is_what_its_data_tell(settings: str):
    config = checked(composed(settings.split()))
    told = features.of_config(config)
    found = features.of_stream(config, prepare(config, strategy_of(config)).stream)
    assert told.keys() == found.keys()
    words_ = {key for key, value in found.items() if isinstance(value, str)}
    assert {key: told[key] for key in words_} == {key: found[key] for key in words_}
    for key in found.keys() - words_:
        tolerance = 0.5 if key == "largest_to_smallest_class" else 0.05
        assert told[key] == pytest.approx(found[key], rel=tolerance), key


def test_the_streams_of_the_table_are_what_their_settings_give():
    """Of those that need no data; the others are read when the table is made."""
    for row in read(STREAMS)[:8]:
        config = checked(composed([*row["settings"].split(), f"scenario={row['scenario']}"]))
        told = features.of_config(config)
        if told is not None:
            assert advice.is_same(told | {"stream": ""}, row), row["stream"]


@pytest.mark.parametrize(
    "settings", ["benchmark=weather", "benchmark=split_digits benchmark.imbalance=10"]
)
def test_what_settings_do_not_tell_is_read_from_the_data(settings: str):
    assert features.of_config(checked(composed(settings.split()))) is None


# The back-test


def test_the_page_quotes_the_committed_backtest():
    rows, regrets = pd.read_csv(advice_backtest.CSV), pd.read_csv(advice_backtest.REGRET)
    assert (rows.inside == rows.ACC.between(rows.low, rows.high)).all()
    page = advice_backtest.PAGE.read_text(encoding="utf-8")
    for name, found in (
        ("backtest", advice_backtest.summaries(rows)),
        ("by data", advice_backtest.by_data(rows)),
        ("regret", advice_backtest.regret_summaries(regrets)),
    ):
        begin, end = advice_backtest.marked(name)
        shown = advice_backtest.markdown(found)
        assert page.partition(begin)[2].partition(end)[0].strip() == shown


def test_the_committed_backtest_is_that_of_the_table(table: Table):
    """Expectations, distances and the streams, of one way of leaving out; widths take longer."""
    rows = pd.read_csv(advice_backtest.CSV)
    own = rows[rows.left_out == advice_backtest.LEVELS["nothing"]]
    want = own.set_index(["stream", "scenario", "strategy"])
    cases = predict.left_out(table, "nothing")
    assert {(c.stream["stream"], c.stream["scenario"]) for c in cases} == {
        i[:2] for i in want.index
    }
    for case in cases:
        for name in case.truth.keys() & case.expected.keys():
            row = want.loc[(case.stream["stream"], case.stream["scenario"], name)]
            found = predict.accuracy(case.expected[name].score, predict.chance(case.stream))
            assert row.expected == pytest.approx(found, abs=1e-4)
            assert case.truth[name]["ACC"] == row.ACC
            assert row.distance == pytest.approx(case.distance, abs=1e-3)


# The command


def test_the_page_shows_what_the_command_prints(capsys):
    page = advice_backtest.PAGE.read_text(encoding="utf-8")
    (block,) = re.findall(
        r"^```\n\$ cl-run advise (.*?)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL
    )
    assert command(block[0].split()) == 0
    assert capsys.readouterr().out == block[1]


def test_the_command_ranks_within_eighty_columns(cl_run, tmp_path: Path):
    done = cl_run("advise", "benchmark=permuted_mnist", "benchmark.num_tasks=7", cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert max(map(len, lines)) <= 80
    start = lines.index(words.HEAD)
    ranked = lines[start + 1 : lines.index("", start + 1)]
    assert ranked[-1].startswith("joint")
    assert all(line.split()[0] in facts.KEEPS for line in ranked)
    accuracies = [
        float(line.split()[1]) for line in ranked if line.split()[0] not in predict.BOUNDS
    ]
    assert accuracies == sorted(accuracies, reverse=True)
    assert "packnet" not in done.stdout  # which is for task-incremental learning only
    assert re.search(r"^Take \w+: ACC", done.stdout, re.MULTILINE)
    assert "Not known:" in done.stdout
    assert not list(tmp_path.iterdir())


def test_the_command_without_data_imports_no_torch(tmp_path: Path):
    code = "import sys; from cl_runner.cli import advise; advise.main(['benchmark=split_digits']); "
    code += "print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"


def test_limits_of_the_command(capsys):
    asked = ("privacy=true", "training.boundaries=none", "optimizer.lr=0.01", "model=cnn")
    assert command(["benchmark=split_digits", *asked]) == 0
    out = capsys.readouterr().out
    said = " ".join(out.split())
    assert "store samples" in said
    assert "need the borders between tasks" in said
    assert "optimizer.lr" in said
    assert not re.search(r"^(er|derpp|ewc) ", out.partition(words.HEAD)[2], re.MULTILINE)


def command(args: list[str]) -> int:
    """The exit code of `cl-run advise ...`, in this process."""
    return answer(["advise", *args])


def test_a_stream_of_ones_own_is_read(capsys, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("CL_RUNNER_DATA", str(tmp_path / "data"))
    rows = [f"{i % 7},{i % 5},{'ab'[i % 2]},{i // 50}" for i in range(300)]
    file = tmp_path / "own.csv"
    file.write_text("\n".join(["x,y,label,site", *rows, ""]), encoding="utf-8")
    own = ("benchmark=table", f"data.path={file}", "benchmark.label=label", "benchmark.slice=site")
    assert command([*own]) == 0
    assert "6 tasks, 40 training samples each" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["benchmark=nothing"], "unknown option benchmark=nothing"),
        (["benchmark.numtasks=3"], "unknown key benchmark.numtasks"),
        (["strategy=er"], "ranks strategies"),
        (["strategy.buffer_size=3"], "ranks strategies"),
        (["privacy=maybe"], "privacy must be true or false"),
        (["-m", "seed=0,1"], "one stream"),
        (["benchmark=edits"], "benchmark=edits"),
        (["budget.seconds=3"], "budget.seconds"),
        (["budget.bytes=0"], "budget.bytes must be positive"),
        (["scenario=both"], "scenario must be one of"),
        (["split_mnist"], "did you mean benchmark=split_mnist"),
        (["benchmark=folders"], "data.path"),
    ],
)
def test_a_mistake_is_one_line(capsys, args: list[str], told: str):
    assert command(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert told in line


def test_help_says_what_the_keys_are(capsys):
    assert command(["--help"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for key in ("privacy=true", "budget.bytes", "training.boundaries=none", "docs/advise.md"):
        assert key in out
