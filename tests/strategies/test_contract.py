"""What every strategy promises (`cl_runner.testing`), checked for all that are found."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from cl_runner import strategies
from cl_runner.core import TrainState
from cl_runner.running.evaluation import evaluate
from cl_runner.testing import CHECKS, OF_ONE_GRAPH, Case, Questions

pytestmark = pytest.mark.slow

PER_CLASS = "strategy.buffer_size=null strategy.per_class=5"
VARIANTS = {
    "cls_er": ("scenario=task strategy.stable_rate=0.5",),
    "cumulative": ("strategy.growing_batch=true", "strategy.restart=shrink_perturb"),
    "derpp": (f"strategy.policy=class_balanced {PER_CLASS}",),
    "bic": (f"strategy.policy=class_balanced {PER_CLASS}",),
    "icarl": (f"{PER_CLASS} strategy.temperature=2",),
    "er_ewc": ("strategy.policy=class_balanced", "strategy.penalty=loss"),
    "expandable_head": ("strategy.new_units=imprinted",),
    "rwalk": (
        "strategy.interval=2 strategy.variant=code",
        "strategy.penalty=loss strategy.score=false",
    ),
    "agem": ("strategy.policy=ring", "strategy.policy=class_balanced"),
    "den": ("strategy.tau=100 strategy.phase_epochs=1",),
    "gem": ("scenario=task strategy.margin=0",),
    "adam_nscl": ("scenario=task strategy.share=null strategy.multiple=10 optimizer=adam",),
    "fromp": ("scenario=task strategy.clip_norm=null strategy.lambda=0.001",),
    "gpm": ("scenario=task strategy.threshold=[1.0]",),
    "ogd": ("scenario=task", "strategy.logits=all strategy.directions=50"),
    "naive": ("adapter=lora adapter.rank=2",),
    "ewc": (
        *("strategy.mode=online", "strategy.penalty=proximal", "strategy.fisher_labels=sampled"),
        "strategy.curvature=kron",
    ),
    "der": (
        "strategy.policy=class_balanced",
        "strategy.policy=ring",
        "strategy.policy=herding",
        "strategy.policy=dual",
    ),
    "lwf": ("scenario=task", "strategy.warm_up=5 strategy.weight=fixed"),
    "imm": ("strategy.merge=mean scenario=task",),
    "si": ("strategy.gradient=total strategy.penalty=loss",),
    "mas": ("strategy.penalty=loss strategy.lambda=0.01",),
    "generative_replay": (
        "strategy.generator=gan strategy.critic_steps=2 strategy.hidden_sizes=[50]",
        "strategy.labels=distillation scenario=task strategy.replay_batch_size=9",
        "strategy.generator=diffusion strategy.sampling_steps=2 strategy.hidden_sizes=[50]",
    ),
    "hat": ("model.hidden_sizes=[24,12] training.iterations=7",),
    "packnet": ("strategy.retrain_epochs=0",),
    "pnn": ("strategy.adapter_size=5 model.hidden_sizes=[24,12]",),
    "piggyback": ("strategy.backbone=initial optimizer=adam",),
    "la_maml": ("strategy.variant=la_maml strategy.inner_steps=2",),
    "soft_sharing": ("strategy.penalty=proximal",),
    "mir": ("scenario=task strategy.policy=ring",),
    "latent_replay": ("scenario=task strategy.policy=class_balanced",),
    "ridge": ("strategy.input=features strategy.features=30 scenario=task",),
    "er": (
        "strategy.policy=ring",
        "strategy.policy=class_balanced strategy.weighting=task_share",
        "strategy.policy=herding",
        f"strategy.policy=herding {PER_CLASS}",
        f"strategy.policy=ring {PER_CLASS}",
    ),
}

LARGER = ("training.batch_size=32",)  # fewer steps of as many samples
QUICK = {  # what keeps a toy run short
    "bir": (*LARGER, "strategy.hidden_sizes=[50]", "strategy.latent_size=10"),
    "la_maml": (*LARGER, "strategy.inner_steps=2"),
    "fromp": (*LARGER, "strategy.buffer_size=50"),
    "gdumb": (*LARGER, "strategy.epochs=2"),
    # A step of it has one of its own for each sample, and is traced with all of them.
    "ridge": (*LARGER, "strategy.features=50"),
    "mer": ("training.batch_size=3", "benchmark.train_samples=100", "strategy.buffer_size=150"),
}
CASES = [
    pytest.param((name, *QUICK.get(name, LARGER), *variant.split()), id=f"{name} {variant}".strip())
    for name in strategies.available()
    for variant in ("", *VARIANTS.get(name, ()))
]


@pytest.fixture(scope="module", params=CASES)
def case(request, prepared) -> Case:
    """A strategy and its settings: of the module, so that the tests of a case follow each other."""
    name, *overrides = request.param
    return Case(name, overrides, prepared)


@pytest.mark.parametrize("promise", [*CHECKS, *OF_ONE_GRAPH])
def test_it_keeps_its_promise(case: Case, promise: str) -> None:
    if promise not in case.checks():
        pytest.skip(f"a step of {case.name} is not one graph; its docstring says why")
    case.checks()[promise](case)


def test_questions_are_noticed():
    x = torch.arange(3.0)
    for question in (lambda: x.sum().item(), lambda: x[x > 1], lambda: bool(x[0]), x.nonzero):
        with Questions() as questions:
            question()
        assert questions.asked


FIRST_TASK_IS_NAIVE = [
    ("rwalk",),
    ("ewc",),
    ("ewc", "strategy.penalty=proximal"),
    ("ewc", "strategy.curvature=kron", "strategy.penalty=loss"),
    ("l2",),
    ("cumulative",),
    ("from_scratch",),
    ("agem",),
    ("gem",),
    ("ogd",),
    ("gpm",),
    ("adam_nscl",),
    ("owm",),
    ("latent_replay",),
]


@pytest.fixture(scope="module")
def naive(prepared) -> TrainState:
    """What naive has after its first task."""
    return Case("naive", (), prepared).train(tasks=slice(1)).states[1]


@pytest.mark.parametrize("own", FIRST_TASK_IS_NAIVE, ids=" ".join)
def test_the_first_task_equals_naive(prepared, naive, own):
    s = Case(own[0], own[1:], prepared).train(tasks=slice(1)).states[1]
    torch.testing.assert_close(s.theta, naive.theta, rtol=1e-5, atol=1e-6)


LEARN = (
    *("training.epochs=15", "training.batch_size=32"),
    *("benchmark.train_samples=900", "model.hidden_sizes=[64]"),
)
SMALLER = "training.batch_size=16"  # for what shows only after more steps
SHORTER = ("training.epochs=8",)
SOONER = (*SHORTER, "optimizer.lr=0.25")  # for what shows after fewer steps already
CLAIMS = [
    # strategy, where its paper claims less forgetting, by how much ACC here exceeds naive's
    (("strategy=ewc", "strategy.lambda=30"), ("benchmark=permuted_digits",), 0.05),
    (
        ("strategy=ewc", "strategy.lambda=30", "strategy.penalty=proximal"),
        ("benchmark=permuted_digits",),
        0.05,
    ),
    (
        ("strategy=ewc", "strategy.curvature=kron", "strategy.lambda=10"),
        ("benchmark=permuted_digits",),
        0.15,
    ),
    (("strategy=l2", "strategy.lambda=0.1"), ("benchmark=permuted_digits", SMALLER), 0.02),
    (("strategy=er", "strategy.buffer_size=100"), ("benchmark=split_digits", *SOONER), 0.3),
    (
        ("strategy=er", "strategy.buffer_size=100", "strategy.policy=ring"),
        ("benchmark=split_digits", *SOONER),
        0.3,
    ),
    (
        ("strategy=er", "strategy.buffer_size=100", "strategy.policy=class_balanced"),
        ("benchmark=split_digits", *SOONER),
        0.3,
    ),
    (
        ("strategy=er", "strategy.buffer_size=100", "strategy.policy=herding"),
        ("benchmark=split_digits", *SOONER),
        0.3,
    ),
    (("strategy=icarl", "strategy.buffer_size=100"), ("benchmark=split_digits", *SOONER), 0.3),
    (
        ("strategy=gdumb", "strategy.buffer_size=100", "strategy.epochs=40"),
        ("benchmark=split_digits", *SOONER),
        0.3,
    ),
    (("strategy=der", "strategy.buffer_size=100"), ("benchmark=split_digits", *SOONER), 0.3),
    (("strategy=derpp", "strategy.buffer_size=100"), ("benchmark=split_digits", *SOONER), 0.3),
    (("strategy=er_ace", "strategy.buffer_size=100"), ("benchmark=split_digits", *SOONER), 0.3),
    (("strategy=mir", "strategy.buffer_size=100"), ("benchmark=split_digits", *SOONER), 0.3),
    (("strategy=bic", "strategy.buffer_size=100"), ("benchmark=split_digits", *SOONER), 0.3),
    (("strategy=lucir", "strategy.buffer_size=100"), ("benchmark=split_digits", *SOONER), 0.3),
    (("strategy=er_aml", "strategy.buffer_size=100"), ("benchmark=split_digits", *SOONER), 0.3),
    (("strategy=scr", "strategy.buffer_size=100"), ("benchmark=split_digits", *SOONER), 0.3),
    (("strategy=wa", "strategy.buffer_size=100"), ("benchmark=split_digits", *SOONER), 0.3),
    (
        ("strategy=mer", "strategy.buffer_size=100"),
        ("benchmark=split_digits", "training.epochs=1", "benchmark.train_samples=100"),
        0.3,
    ),
    (
        ("strategy=latent_replay", "strategy.buffer_size=100"),
        ("benchmark=split_digits", *SOONER),
        0.2,
    ),
    (("strategy=si",), ("benchmark=permuted_digits",), 0.05),
    (("strategy=mas",), ("benchmark=permuted_digits",), 0.05),
    (
        ("strategy=lwf",),
        ("benchmark=split_digits", "scenario=task", "benchmark.num_tasks=5", SMALLER),
        0.01,
    ),
    (("strategy=fromp", "strategy.buffer_size=100"), ("benchmark=split_digits",), 0.3),
    (("strategy=imm",), ("benchmark=permuted_digits",), 0.03),
    (("strategy=vcl",), ("benchmark=permuted_digits",), 0.02),
    (
        ("strategy=imm", "strategy.merge=mean"),
        ("benchmark=split_digits", "scenario=task", SMALLER),
        0.0,
    ),
    (("strategy=agem", "strategy.buffer_size=100"), ("benchmark=permuted_digits", *SOONER), 0.1),
    (("strategy=gem", "strategy.buffer_size=100"), ("benchmark=permuted_digits", *SOONER), 0.1),
    (("strategy=gem", "strategy.buffer_size=100"), ("benchmark=split_digits", *SOONER), 0.3),
    (("strategy=ogd",), ("benchmark=permuted_digits", *SOONER), 0.08),
    (("strategy=gpm",), ("benchmark=permuted_digits", *SOONER), 0.1),
    (("strategy=adam_nscl",), ("benchmark=permuted_digits", *SOONER), 0.1),
    (("strategy=owm",), ("benchmark=split_digits", *SOONER), 0.3),
    (("strategy=rwalk",), ("benchmark=permuted_digits",), 0.05),
    (("strategy=er_ewc", "strategy.buffer_size=100"), ("benchmark=split_digits", *SOONER), 0.3),
    (
        ("strategy=cls_er", "strategy.buffer_size=100", "strategy.replay_batch_size=16"),
        ("benchmark=split_digits",),
        0.3,
    ),
    (
        ("strategy=generative_replay", "strategy.hidden_sizes=[100]", "strategy.latent_size=20"),
        ("benchmark=split_digits", *SOONER),
        0.3,
    ),
    (
        (
            "strategy=generative_replay",
            "strategy.generator=gan",
            "strategy.critic_steps=1",
            "strategy.hidden_sizes=[50]",
            "strategy.latent_size=10",
            "strategy.generator_lr=3e-3",
            "training.batch_size=32",
        ),
        ("benchmark=split_digits", *SOONER),
        0.2,
    ),
    (
        ("strategy=bir", "strategy.hidden_sizes=[100]", "strategy.latent_size=20"),
        ("benchmark=split_digits", *SOONER),
        0.3,
    ),
    (
        ("strategy=den",),
        ("benchmark=split_digits", "scenario=task", "benchmark.num_tasks=5", "optimizer.lr=0.3"),
        0.01,
    ),
    (("strategy=cumulative",), ("benchmark=split_digits",), 0.5),
    (("strategy=from_scratch",), ("benchmark=split_digits",), 0.5),
    (
        ("strategy=pnn",),
        ("benchmark=rotated_digits", "scenario=task", "optimizer=adam", *SHORTER),
        0.03,
    ),
    (
        ("strategy=soft_sharing",),
        ("benchmark=rotated_digits", "scenario=task", "optimizer=adam", *SHORTER),
        0.04,
    ),
    *(
        (
            (f"strategy={name}",),
            (
                "benchmark=permuted_digits",
                "scenario=task",
                "benchmark.num_tasks=4",
                "model.hidden_sizes=[128,128]",
                "optimizer=adam",
                "optimizer.lr=0.01",
                "training.batch_size=32",
                "training.epochs=8",
            ),
            margin,
        )
        for name, margin in (
            ("xdg", 0.05),
            ("hat", 0.05),
            ("packnet", 0.08),
            ("piggyback", 0.08),
            ("supsup", 0.05),
        )
    ),
    *(
        ((f"strategy={name}",), ("benchmark=split_digits",), 0.5)
        for name in ("joint", "ncm", "slda", "ridge")
    ),
]


@cache
def mean_accuracy(prepared, strategy: str, *overrides: str) -> float:
    run = Case(strategy, (*LEARN, *overrides), prepared).train()
    (own, *_) = evaluate(run.strategy, run.env.commit(run.states[-1]), run.env).values()
    return sum(own) / len(own)


@pytest.mark.parametrize(
    ("claim", "where", "margin"), CLAIMS, ids=[" ".join(c + w) for c, w, _ in CLAIMS]
)
def test_it_keeps_more_than_naive_where_its_paper_claims_so(prepared, claim, where, margin):
    name, *own = claim
    naive = mean_accuracy(prepared, "naive", *where)
    assert mean_accuracy(prepared, name.removeprefix("strategy="), *where, *own) > naive + margin
