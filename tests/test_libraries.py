"""model=torchvision and model=timm: networks of libraries, their weights, and what these want."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import load_file

from cl_runner.config import libraries
from cl_runner.config.parse import validate
from cl_runner.config.weights import WEIGHTS
from cl_runner.errors import UserError
from cl_runner.nn.network import Network
from cl_runner.nn.networks import build, factory
from cl_runner.results.files import read_rows
from cl_runner.results.matrices import read_matrix
from cl_runner.running.loop import run

TOY = (
    *("benchmark=split_digits", "benchmark.num_tasks=2", "benchmark.train_samples=60"),
    *("strategy=naive", "training.epochs=1", "training.batch_size=20", "verbose=false"),
    "eval.tasks=seen",
)
SHUFFLE = ("model=torchvision", "model.arch=shufflenet_v2_x0_5", "benchmark.resize=32")
VIT = ("model=timm", "model.arch=test_vit", "benchmark.resize=32")
EACH = pytest.mark.parametrize("own", [SHUFFLE, VIT], ids=["torchvision", "timm"])
HEAD = "model.freeze=all_but_head"


@pytest.fixture(autouse=True)
def _timm(request) -> None:
    if "own" in request.fixturenames and request.getfixturevalue("own") is VIT:
        pytest.importorskip("timm", reason="model=timm is an extra: pip install 'cl_runner[timm]'")


@pytest.fixture
def drawn(tmp_path: Path):
    """drawn("resnet18") -> a file as a library's users have one: of 1000 classes, at random."""

    def function(arch: str) -> Path:
        torch.manual_seed(1)
        if arch == "test_vit":
            network = libraries.timm().create_model(arch, img_size=32)
        else:
            network = libraries.torchvision().models.get_model(arch)
        file = tmp_path / f"{arch}.pth"
        torch.save(network.state_dict(), file)
        return file

    return function


@EACH
def test_a_library_s_network_is_one_of_two_stages(configure, own):
    """The features, and the output layer; together they are what the library computes."""
    config = configure(*TOY, *own)
    network = build(factory(config.model, (3, 32, 32), 7), 3).eval()
    assert isinstance(network, Network)
    x = torch.rand(2, 3, 32, 32)
    before, head = network.stages()
    features = before(x)
    assert before(x[:0]).shape == (0, features.shape[1])
    assert features.ndim == 2 and torch.equal(head(features), network(x, 0))
    if own is SHUFFLE:
        plain = libraries.torchvision().models.shufflenet_v2_x0_5(num_classes=7)
    else:
        plain = libraries.timm().create_model("test_vit", num_classes=7, img_size=32)
    assert isinstance(network, type(plain))
    plain.load_state_dict(network.state_dict())  # the names are the library's
    assert torch.allclose(plain.eval()(x), network(x), atol=1e-6)


@EACH
def test_both_modes_reach_all_layers(configure, own):
    network = build(factory(configure(*TOY, *own).model, (3, 32, 32), 7), 3)
    before = network.__dict__["before_output"]
    assert before.training and all(layer.training for layer in network.modules())
    network.eval()
    assert not before.training and not any(layer.training for layer in network.modules())


@EACH
def test_other_weights_reach_all_tensors(prepared, own):
    """Those of an old network, say; also what a ViT holds outside of its layers."""
    config, _, env = prepared(*TOY, *own)
    theta = env.flat.theta.detach()
    other = theta + 0.05 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(0))
    x, task = torch.rand(3, 3, 32, 32), torch.zeros(3, dtype=torch.int64)
    answers = env.answers(other, x, task)
    network = build(factory(config.model, (3, 32, 32), 10), 1).eval()
    named = env.flat.views(other) | dict(env.flat.module.named_buffers())
    network.load_state_dict(named, strict=False)
    assert torch.allclose(network(x, 0), answers, atol=1e-4)
    assert not torch.allclose(env.answers(theta, x, task), answers, atol=1e-3)


@EACH
def test_weights_of_a_file_are_taken_but_for_the_output_layer(prepared, drawn, own, capsys):
    file = drawn(own[1].partition("=")[2])
    _, _, env = prepared(*TOY, *own, f"model.weights={file}", "verbose=true")
    theirs, head = torch.load(file, weights_only=True), env.flat.module.output_name
    for name, value in env.flat.module.state_dict().items():
        same = value.shape == theirs[name].shape and torch.equal(value, theirs[name])
        assert same != name.startswith(f"{head}."), name
    said = capsys.readouterr().out
    assert f"the output layer is new: {head}.weight is float32 [1000, " in said
    assert "sees 3x32x32 (grey images, three times), normalised by benchmark.mean=[0." in said


@EACH
def test_a_run_trains_the_output_layer_on_features_and_leaves_the_whole(
    configure, drawn, tmp_path, own
):
    """The library takes the file; the next run begins where this one ended."""
    file = drawn(own[1].partition("=")[2])
    begin = (*TOY, *own, HEAD, "checkpoint.keep=true", "model.cache_features=true")
    run(configure(*begin, f"model.weights={file}", root=tmp_path), tmp_path / "run")
    left, theirs = load_file(tmp_path / "run" / WEIGHTS), torch.load(file, weights_only=True)
    assert left.keys() == theirs.keys()
    changed = [k for k, v in left.items() if v.shape != theirs[k].shape]
    assert len(changed) == 2 and all(torch.equal(left[k], theirs[k]) for k in left.keys() - changed)
    again = configure(*begin, f"model.weights={tmp_path / 'run'}", root=tmp_path)
    run(again, tmp_path / "on")
    ended = read_matrix(tmp_path / "run" / "accuracy_matrix.csv")[-1]
    assert read_matrix(tmp_path / "on" / "accuracy_matrix.csv")[0][0] == ended[0]
    row = read_rows(tmp_path / "run" / "summary.csv")[0]
    assert row["model.arch"] == own[1].partition("=")[2] and row["benchmark.resize"] == "32"
    assert row["benchmark.mean"].startswith("[0.") and row["model"] == own[0].partition("=")[2]


# What the weights want.


def shown(configure, *overrides: str) -> dict:
    benchmark = configure(*overrides).resolved["benchmark"]
    return {key: benchmark[key] for key in libraries.INPUTS}


IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "resize": 224}


def test_normalisation_and_size_go_with_the_weights(configure, drawn):
    model, file = ("model=torchvision", "model.arch=resnet18"), drawn("resnet18")
    begin = (*TOY, *model, f"model.weights={file}")
    assert shown(configure, *begin) == IMAGENET
    cifar = ("benchmark=split_cifar10", "benchmark.num_tasks=5")
    assert shown(configure, *begin, *cifar) == IMAGENET  # the benchmark's own is no choice
    own = ("benchmark.mean=[0.5]", "benchmark.std=[0.2]", "benchmark.resize=32")
    assert shown(configure, *begin, *own) == {"mean": [0.5], "std": [0.2], "resize": 32}
    padded = shown(configure, *begin, "benchmark.pad_to=32")
    assert padded["resize"] is None
    # Without weights everything stays, but for what the architecture must have.
    none = {"mean": None, "std": None, "resize": None}
    assert shown(configure, *TOY, *model) == none
    fixed = shown(configure, *TOY, "model=torchvision", "model.arch=vit_b_16")
    assert fixed == none | {"resize": 224}


def test_weights_of_a_run_want_what_the_run_was_shown(configure, tmp_path):
    own = ("benchmark.mean=[0.4]", "benchmark.std=[0.3]")
    run(configure(*TOY, *SHUFFLE, *own, "checkpoint.keep=true"), tmp_path / "run")
    on = (*TOY, *SHUFFLE[:2])
    expected = {"mean": [0.4], "std": [0.3], "resize": 32}
    for name in ("run", f"run/{WEIGHTS}"):
        assert shown(configure, *on, f"model.weights={tmp_path / name}") == expected
    config = configure(*on, f"model.weights={tmp_path / 'run'}")
    from omegaconf import OmegaConf

    again = validate(OmegaConf.create(dict(config.resolved) | {"seed": config.seed}))
    assert again.resolved == config.resolved  # config.yaml says what it is


def test_default_weights_have_the_library_s_name_in_config_yaml(configure):
    default = (*TOY, "model=torchvision", "model.arch=resnet18", "model.weights=DEFAULT")
    config = configure(*default)
    assert config.resolved["model"]["weights"] == "DEFAULT#IMAGENET1K_V1"
    assert shown(configure, *default) == IMAGENET
    assert shown(configure, *default[:-1], "model.weights='DEFAULT#IMAGENET1K_V1'") == IMAGENET
    with pytest.raises(UserError, match="DEFAULT: torchvision's are now IMAGENET1K_V1, not OLD"):
        configure(*default[:-1], "model.weights='DEFAULT#OLD'")


@EACH
def test_default_weights_are_the_library_s(prepared, monkeypatch, own):
    """They are asked for by the library's own functions, and the output layer is new."""
    arch = own[1].partition("=")[2]
    torch.manual_seed(1)
    if own is VIT:
        theirs = libraries.timm().create_model(arch, img_size=32).state_dict()
    else:
        theirs = libraries.torchvision().models.get_model(arch).state_dict()
    monkeypatch.setattr(libraries, "downloaded", lambda *_: theirs)
    libraries.default_weights.cache_clear()
    _, _, env = prepared(*TOY, *own, "model.weights=DEFAULT")
    libraries.default_weights.cache_clear()
    named = env.flat.module.state_dict()
    assert sum(not torch.equal(v, theirs[k]) for k, v in named.items() if v.ndim == 1) == 1


@EACH
def test_without_a_network_default_weights_are_one_line(configure, monkeypatch, tmp_path, own):
    def fails(*_: object, **__: object) -> None:
        raise URLError("Name or\nservice not known")

    if own is VIT:
        monkeypatch.setattr(libraries.timm(), "create_model", fails)
    else:
        weights = libraries.torchvision().models.ShuffleNet_V2_X0_5_Weights
        monkeypatch.setattr(weights, "get_state_dict", fails)
    libraries.default_weights.cache_clear()
    config = configure(*TOY, *own, "model.weights=DEFAULT")
    message = r"model.weights=DEFAULT: (torchvision|timm) cannot get those of .*service not known"
    with pytest.raises(UserError, match=message) as error:
        run(config, tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


# What is refused.


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("model=torchvision", "model.arch=resnet19"),
            "model.arch=resnet19 is no network of torchvision: did you mean resnet18 or",
        ),
        (("model=torchvision", "model.arch=qqqqqq"), "no network of torchvision, of which it has"),
        (
            ("model=torchvision", "model.arch=squeezenet1_0", "benchmark.resize=32"),
            "has no nn.Linear with 10 units as its output layer",
        ),
        (
            ("model=torchvision", "model.arch=alexnet", "benchmark.resize=16"),
            r"cannot be used here \(.*\); images of 3x16x16 may be too small: set benchmark.resize",
        ),
        (("model=torchvision", "benchmark=split_letter"), "needs images; the data are feature vec"),
        (("model=mlp", "model.weights=DEFAULT"), "model.weights=DEFAULT: model=mlp has none; name"),
    ],
)
def test_what_cannot_be_is_one_line(prepared, overrides, message):
    with pytest.raises(UserError, match=message) as error:
        prepared(*TOY, *overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_225", "test_vit.none"])
def test_what_timm_has_not_is_one_line(configure, arch):
    pytest.importorskip("timm", reason="model=timm is an extra: pip install 'cl_runner[timm]'")
    with pytest.raises(UserError, match=r"did you mean|timm knows no such weights") as error:
        configure(*TOY, "model=timm", f"model.arch={arch}")
    assert "\n" not in str(error.value)


def test_without_timm_a_line_says_what_to_install(configure, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    libraries.architectures.cache_clear()
    libraries.wants.cache_clear()
    with pytest.raises(UserError, match=r"model=timm needs timm: pip install 'cl_runner\[timm\]'"):
        configure(*TOY, "model=timm", "model.arch=test_resnet", "seed=77")


@EACH
@pytest.mark.parametrize("strategy", ["icarl", "lucir", "scr", "latent_replay", "er_aml", "lwf"])
@pytest.mark.slow
def test_strategies_that_look_at_features_or_outputs_take_it(configure, tmp_path, own, strategy):
    more = ("strategy.layer=1",) if strategy == "latent_replay" else ()
    if strategy == "latent_replay" and own is SHUFFLE:
        more = (*more, HEAD)  # its BatchNorm must not move
    few = ("benchmark.train_samples=40",)
    config = configure(*TOY, *own, *few, f"strategy={strategy}", *more, "scenario=class")
    run(config, tmp_path / "run")
    assert (tmp_path / "run" / "summary.csv").exists()
