"""model.cache_features: what frozen layers make of the samples is computed once, nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cl_runner.config.identity import config_hash
from cl_runner.config.weights import WEIGHTS
from cl_runner.errors import UserError
from cl_runner.exporting.load import load_model
from cl_runner.results.files import read_rows
from cl_runner.results.matrices import read_matrix
from cl_runner.running import features
from cl_runner.running.loop import run
from cl_runner.running.tasks import initial_state, train_task

TOY = (
    *("benchmark=split_digits", "benchmark.num_tasks=2", "benchmark.train_samples=200"),
    *(
        "training.epochs=3",
        "optimizer.lr=0.03",
        "training.batch_size=20",
        "optimizer=adam",
        "verbose=false",
    ),
)
CNN = ("model=cnn", "model.channels=[4]", "model.hidden_size=24")
HEAD = "model.freeze=all_but_head"
BOTH = ("model.cache_features=true", "model.cache_features=false")
STRATEGIES = {
    "naive": (),
    "er": ("strategy.buffer_size=30",),
    "ewc": ("strategy.lambda=10", "strategy.fisher_samples=50"),
    "icarl": ("strategy.buffer_size=30",),
    "lucir": ("strategy.buffer_size=30",),
    "latent_replay": ("strategy.buffer_size=30", "strategy.layer=2"),
    "ncm": ("strategy.input=features",),
    "joint": (),
    "from_scratch": (),
}


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A cache folder of the test's own."""
    features._alive.clear()
    return tmp_path / "cache"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_on_features_is_the_same_run(configure, fresh, tmp_path, strategy):
    """Accuracies and weights, up to rounding."""
    own = (*TOY, *CNN, HEAD, f"strategy={strategy}", *STRATEGIES[strategy], "scenario=class")
    for name, how in zip(("on", "off"), BOTH, strict=True):
        run(configure(*own, how, "checkpoint.keep=true", root=fresh), tmp_path / name)
    on, off = (read_matrix(tmp_path / name / "accuracy_matrix.csv") for name in ("on", "off"))
    assert on == pytest.approx(off, abs=0.011, nan_ok=True)  # of 90 samples, one at a border
    assert on[-1].max() > 0.3
    left, plain = (load_file(tmp_path / name / WEIGHTS) for name in ("on", "off"))
    assert left.keys() == plain.keys()
    for name, value in plain.items():
        assert torch.allclose(left[name], value, atol=2e-4), name


def test_features_are_computed_once_and_kept(configure, fresh, tmp_path, capsys):
    """By one run of three: the second reads them, the third of other settings, too."""
    common = (*TOY, *CNN, HEAD, "strategy=er", "strategy.buffer_size=20", "verbose=true")
    other = (*TOY, *CNN, HEAD, "strategy=naive", "training.epochs=1", "verbose=true")
    for name, overrides in (("a", common), ("b", common), ("c", other)):
        run(configure(*overrides, root=fresh), tmp_path / name)
    said = capsys.readouterr().out
    assert said.count("and is counted; kept in") == 1
    assert said.count("they are there already, kept in") == 2
    (file,) = (fresh / "features").glob("*.npz")
    rows = {name: read_rows(tmp_path / name / "summary.csv")[0] for name in "abc"}
    first, second = (float(rows[name]["flops"]) for name in "ab")
    assert first > second > 0
    costs = read_rows(tmp_path / "a" / "costs.csv")
    assert float(costs[0]["flops"]) == first - second
    assert float(rows["a"]["evaluation_flops"]) > float(rows["b"]["evaluation_flops"]) > 0
    assert rows["a"]["buffer_bytes"] == str(20 * 24 * 4)  # 24 numbers of float32 each
    assert rows["a"]["ACC"] == rows["b"]["ACC"] and file.stat().st_size > 0


def test_other_layers_weights_and_images_have_features_of_their_own(prepared, fresh):
    own = (*TOY, *CNN, HEAD, "strategy=naive")
    for more in (
        *((), ("seed=1", "benchmark.seed=0"), ("model.hidden_size=10",), ("scenario=domain",)),
        *(("benchmark.resize=10",), ("benchmark.mean=[0.1]", "benchmark.std=[0.2]")),
        ("benchmark.train_samples=150",),
    ):
        prepared(*own, *more, root=fresh)
    # The scenario changes the output layer alone.
    assert len([*(fresh / "features").glob("*.npz")]) == 6


def test_runs_that_share_weights_share_features(configure, prepared, fresh, tmp_path):
    """Of other seeds and scenarios, whose output layers differ."""
    run(configure(*TOY, *CNN, "strategy=joint", "checkpoint.keep=true"), tmp_path / "trunk")
    own = (*TOY, *CNN, HEAD, "strategy=naive", f"model.weights={tmp_path / 'trunk'}")
    seeds = ("benchmark.seed=0", "seed=3", "scenario=domain")
    envs = [prepared(*own, *more, root=fresh)[2] for more in (("benchmark.seed=0",), seeds)]
    assert len([*(fresh / "features").glob("*.npz")]) == 1
    assert envs[0].stream.x is envs[1].stream.x
    theta = [env.flat.theta for env in envs]
    assert len(theta[0]) == 25 * 10 and len(theta[1]) == 25 * 5  # the output layers alone


@pytest.mark.parametrize("content", [b"noise", b"", None])
def test_a_damaged_file_is_computed_again_and_told(configure, fresh, tmp_path, capsys, content):
    config = configure(*TOY, *CNN, HEAD, "strategy=naive", "verbose=true", root=fresh)
    run(config, tmp_path / "a")
    (file,) = (fresh / "features").glob("*.npz")
    whole_file = file.read_bytes()
    flipped = bytearray(whole_file)
    flipped[len(flipped) // 2] ^= 1
    file.write_bytes(bytes(flipped) if content is None else content)
    features._alive.clear()
    capsys.readouterr()
    run(config, tmp_path / "b")
    said = capsys.readouterr().out
    assert "the features are computed again" in said and "and is counted; kept in" in said
    assert file.read_bytes() == whole_file
    matrices = [read_matrix(tmp_path / name / "accuracy_matrix.csv").tolist() for name in "ab"]
    assert matrices[0] == matrices[1]


def test_where_nothing_can_be_written_they_are_computed_each_time(prepared, fresh):
    (fresh / "features").parent.mkdir(exist_ok=True)
    prepared(*TOY, *CNN, HEAD, "strategy=naive", root=fresh)
    for file in (fresh / "features").iterdir():
        file.unlink()
    (fresh / "features").rmdir()
    (fresh / "features").write_bytes(b"in the way")
    features._alive.clear()
    _, _, env = prepared(*TOY, *CNN, HEAD, "strategy=naive", root=fresh)
    assert env.on_features is not None and env.on_features.features.file is None


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("model.freeze=[]",), "model.freeze names no part"),
        (("training.augment=crop",), "training.augment=crop shows a sample otherwise each time"),
        (("training.ssl=masked",), "training.ssl=masked learns from the samples themselves"),
        (("eval.features=true",), "eval.features=true looks at all layers"),
        (("strategy=scr",), "strategy=scr needs the samples themselves, or all layers"),
        (("benchmark=permuted_digits",), "each task of benchmark=permuted_digits changes the imag"),
        (("benchmark=edits",), "the tasks of benchmark=edits change the images"),
        (("model.freeze=[output]",), "the first stage of the model is trained"),
    ],
)
def test_where_it_cannot_be_a_line_says_why(prepared, fresh, more, reason, capsys):
    own = ("strategy=naive", "verbose=true", "benchmark.train_samples=null", *more)
    common = [
        o for o in (*TOY, *CNN, HEAD) if o.split("=")[0] not in [m.split("=")[0] for m in own]
    ]
    with pytest.raises(UserError, match=f"^model.cache_features=true: {reason}") as error:
        prepared(*common, *own, "model.cache_features=true", root=fresh)
    assert "\n" not in str(error.value)
    _, _, env = prepared(*common, *own, root=fresh)
    assert env.on_features is None
    told = "features are not computed once (model.cache_features=auto)"
    assert (told in capsys.readouterr().out) == (more != ("model.freeze=[]",))


def test_rows_of_a_file_are_no_features(prepared, fresh):
    own = ("strategy=mas", "strategy.rows=mine.npz", "model.cache_features=true")
    with pytest.raises(UserError, match="strategy=mas needs the samples themselves"):
        prepared(*TOY, *CNN, HEAD, *own, root=fresh)


def test_layers_in_part_frozen_and_a_run_that_is_resumed(configure, fresh, tmp_path, monkeypatch):
    """The first convolution of two stays; the run is stopped after a task, then goes on."""
    own = (*TOY, "model=cnn", "model.channels=[4,5]", "model.hidden_size=12", "strategy=er")
    part = ("model.freeze=[convolutions.0]", "strategy.buffer_size=20")
    whole_run = configure(*own, *part, root=fresh)
    run(whole_run, tmp_path / "whole")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    stopped = configure(*own, *part, "checkpoint.every=0", root=fresh)
    with monkeypatch.context() as patch:
        patch.setattr("cl_runner.running.loop.remark", stop)
        with pytest.raises(KeyboardInterrupt):
            run(stopped, tmp_path / "two")
    features._alive.clear()
    run(configure(*own, *part, "resume=true", root=fresh), tmp_path / "two")
    matrices = [read_matrix(tmp_path / n / "accuracy_matrix.csv") for n in ("whole", "two")]
    assert matrices[0].tolist() == matrices[1].tolist()


@pytest.mark.parametrize("resize", [(), ("benchmark.resize=12",)], ids=["as it is", "late"])
def test_the_model_that_a_run_on_features_leaves_takes_images(
    configure, prepared, fresh, tmp_path, resize
):
    """The same as that of a run on images, and as accurate as the matrix says."""
    own = (*TOY, *CNN, HEAD, "strategy=naive", "scenario=class", "checkpoint.keep=true", *resize)
    for name, how in zip(("on", "off"), BOTH, strict=True):
        run(configure(*own, how, root=fresh), tmp_path / name)
    _, _, env = prepared(*TOY, *CNN, "strategy=naive", "scenario=class", root=fresh)
    rows, expected = env.stream[1].test, read_matrix(tmp_path / "on" / "accuracy_matrix.csv")
    images, y = env.stream.x_test[rows], env.stream.label[1, env.stream.y_test[rows]]
    assert images.dtype == torch.uint8 and images.shape[1:] == (1, 8, 8)
    on, off = (load_model(tmp_path / name)(images) for name in ("on", "off"))
    assert torch.allclose(on, off, atol=1e-3)
    assert (on.argmax(1) == y).float().mean().item() == pytest.approx(expected[-1][1], abs=0.012)


@pytest.mark.parametrize("strategy", ["naive", "er"])
def test_an_output_layer_alone_takes_the_steps_of_autograd(prepared, fresh, strategy):
    """Its backward pass is written out, as an MLP's is."""
    own = (*TOY, *CNN, HEAD, f"strategy={strategy}", *STRATEGIES[strategy])
    found = []
    for by_hand in (True, False):
        _, own_strategy, env = prepared(*own, root=fresh)
        assert env.flat.by_hand
        env.flat.by_hand = by_hand
        s = train_task(own_strategy, initial_state(own_strategy, env), env.stream[0], env)
        found.append(s.theta.detach())
    assert torch.allclose(found[0], found[1], atol=1e-5) and found[0].abs().max() > 0.1


def test_without_it_a_run_is_what_it_was(configure):
    plain, own = configure(*TOY), configure(*TOY, "model.cache_features=auto")
    assert "cache_features" not in plain.resolved["model"] and plain.resolved == own.resolved
    other = configure(*TOY, "model.cache_features=false")
    assert config_hash(other.resolved) != config_hash(plain.resolved)
    with pytest.raises(UserError, match=r"model\.cache_features must be one of"):
        configure(*TOY, "model.cache_features=maybe")
