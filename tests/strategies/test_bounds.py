"""What each strategy refuses of its own fields, in which words, and the edges of what it allows."""

from __future__ import annotations

from typing import Any

import pytest

from cl_runner.errors import UserError
from cl_runner.strategies import find

LAMBDA = ({"lambda_": -0.1}, "strategy.lambda must be at least 0, got -0.1")
PENALTY = (
    {"penalty": "no"},
    "strategy.penalty must be one of loss, proximal, got 'no'",
)
LABELS = (
    {"fisher_labels": "no"},
    "strategy.fisher_labels must be one of exact, sampled, true, predicted, got 'no'",
)
SAMPLES = ({"fisher_samples": 0}, "strategy.fisher_samples must be at least 1, got 0")
PLACES = [
    (
        {"buffer_size": 10, "per_class": 2},
        (
            "strategy.per_class=2 takes the place of strategy.buffer_size=10: "
            "set strategy.buffer_size=null"
        ),
    ),
    ({"buffer_size": None}, "one of strategy.buffer_size and strategy.per_class must be set"),
    ({"buffer_size": 0}, "strategy.buffer_size must lie between 1 and 1000000, got 0"),
    ({"buffer_size": 1000001}, "strategy.buffer_size must lie between 1 and 1000000, got 1000001"),
    (
        {"buffer_size": None, "per_class": 0, "policy": "ring"},
        "strategy.per_class must lie between 1 and 1000000, got 0",
    ),
]
CLOSED_FORM = [
    ({"input": "no"}, "strategy.input must be one of pixels, features, got 'no'"),
    ({"features": -1}, "strategy.features must be at least 0, got -1"),
    ({"input": "features", "layer": 0}, "strategy.layer must be at least 1, got 0"),
    (
        {"layer": 1},
        (
            "strategy.layer=1 has no meaning with strategy.input=pixels: leave it out, or use "
            "strategy.input=features"
        ),
    ),
]
Rows = list[tuple[dict[str, Any], str]]


def unweighted(name: str, why: str) -> tuple[dict[str, Any], str]:
    message = f"strategy.weighting has no meaning for strategy={name}: {why}"
    return {"weighting": "task_share"}, message


REFUSED: dict[str, Rows] = {
    "adam_nscl": [
        ({"share": -0.1}, "strategy.share must lie in [0, 1), got -0.1"),
        ({"share": 1}, "strategy.share must lie in [0, 1), got 1"),
        (
            {"share": None, "multiple": 0.9},
            "strategy.multiple must be at least 1, got 0.9",
        ),
        (
            {"multiple": 2},
            "exactly one of strategy.share and strategy.multiple must be set",
        ),
    ],
    "agem": [*PLACES[:1], unweighted("agem", "replay sets a limit")],
    "cls_er": [
        *PLACES[:1],
        LAMBDA,
        *(
            ({key: value}, f"strategy.{key} must lie in (0, 1], got {value}")
            for key in ("plastic_rate", "stable_rate")
            for value in (0, 1.5)
        ),
        *(
            ({key: value}, f"strategy.{key} must lie in [0, 1), got {value}")
            for key in ("plastic_decay", "stable_decay")
            for value in (-0.5, 1)
        ),
    ],
    "bir": [
        ({"temperature": 0}, "strategy.temperature must be positive, got 0"),
        ({"gated": 1}, "strategy.gated must lie in [0, 1), got 1"),
        ({"hidden_sizes": [4, 0]}, "strategy.hidden_sizes must be positive, got [4, 0]"),
        ({"replay_batch_size": 0}, "strategy.replay_batch_size must be positive, got 0"),
    ],
    "den": [
        LAMBDA,
        *(
            ({key: -0.1}, f"strategy.{key} must be at least 0, got -0.1")
            for key in ("mu", "l2", "gamma", "tau", "sigma", "expand", "duplicates")
        ),
        ({"phase_epochs": 0}, "strategy.phase_epochs must be at least 1 or null, got 0"),
    ],
    "der": [
        *PLACES[:1],
        ({"alpha": -0.1}, "strategy.alpha must be at least 0, got -0.1"),
        unweighted("der", "strategy.alpha weighs"),
    ],
    "derpp": [
        ({"alpha": -0.1}, "strategy.alpha must be at least 0, got -0.1"),
        ({"beta": -0.1}, "strategy.beta must be at least 0, got -0.1"),
    ],
    "er": [
        *PLACES,
        ({"replay_batch_size": 0}, "strategy.replay_batch_size must be at least 1, got 0"),
        (
            {"policy": "no"},
            (
                "strategy.policy must be one of reservoir, ring, dual, class_balanced, herding, "
                "got 'no'"
            ),
        ),
        (
            {"buffer_size": None, "per_class": 2},
            (
                "strategy.per_class has no meaning for strategy.policy=reservoir, which knows no "
                "classes; use ring, class_balanced, herding"
            ),
        ),
        (
            {"weighting": "no"},
            "strategy.weighting must be one of concatenation, task_share, got 'no'",
        ),
    ],
    "bic": [
        LAMBDA,
        ({"temperature": 0}, "strategy.temperature must be positive, got 0"),
        (
            {"policy": "ring"},
            "strategy.policy must be one of class_balanced, herding, got 'ring'",
        ),
        *(
            ({"validation": v}, f"strategy.validation must lie between 0 and 1, got {v}")
            for v in (0, 1)
        ),
    ],
    "lucir": [
        LAMBDA,
        ({"margin": -0.1}, "strategy.margin must be at least 0, got -0.1"),
        ({"negatives": 0}, "strategy.negatives must be at least 1, got 0"),
        ({"scale": 0}, "strategy.scale must be positive, got 0"),
    ],
    "wa": [LAMBDA, ({"temperature": 0}, "strategy.temperature must be positive, got 0")],
    "er_ace": [*PLACES[:1], unweighted("er_ace", "the means are added")],
    "er_aml": [
        *PLACES[:1],
        unweighted("er_aml", "the means are added"),
        ({"gamma": -0.1}, "strategy.gamma must be at least 0, got -0.1"),
        ({"temperature": 0}, "strategy.temperature must be positive, got 0"),
        (
            {"policy": "herding"},
            (
                "strategy.policy=herding holds no sample of the current task, whose classes "
                "strategy=er_aml learns from the buffer alone; use reservoir, ring or dual"
            ),
        ),
    ],
    "scr": [
        unweighted("scr", "samples are compared"),
        ({"temperature": 0}, "strategy.temperature must be positive, got 0"),
        ({"projection_size": 0}, "strategy.projection_size must be at least 1, got 0"),
    ],
    "er_ewc": [*PLACES[:1], LAMBDA, LABELS, PENALTY, SAMPLES],
    "ewc": [
        LAMBDA,
        ({"mode": "no"}, "strategy.mode must be one of separate, online, got 'no'"),
        ({"curvature": "no"}, "strategy.curvature must be one of diagonal, kron, got 'no'"),
        LABELS,
        PENALTY,
        ({"mode": "online", "gamma": 0}, "strategy.gamma must lie in (0, 1], got 0"),
        ({"mode": "online", "gamma": 1.5}, "strategy.gamma must lie in (0, 1], got 1.5"),
        (
            {"gamma": 0.5},
            "strategy.gamma=0.5 has no meaning with strategy.mode=separate: leave it out",
        ),
        SAMPLES,
    ],
    "expandable_head": [
        (
            {"new_units": "no"},
            "strategy.new_units must be one of initial, zero, mean, imprinted, got 'no'",
        ),
    ],
    "fromp": [
        LAMBDA,
        ({"clip_norm": 0}, "strategy.clip_norm must be positive or null, got 0"),
    ],
    "gdumb": [
        ({"buffer_size": 0}, PLACES[2][1]),
        ({"buffer_size": 1000001}, PLACES[3][1]),
        ({"epochs": 0}, "strategy.epochs must be at least 1, got 0"),
    ],
    "gem": [({"margin": -0.1}, "strategy.margin must be at least 0, got -0.1")],
    "generative_replay": [
        ({"generator": "no"}, "strategy.generator must be one of vae, gan, diffusion, got 'no'"),
        ({"labels": "no"}, "strategy.labels must be one of hard, distillation, got 'no'"),
        ({"temperature": 0}, "strategy.temperature must be positive, got 0"),
        ({"hidden_sizes": [4, 0]}, "strategy.hidden_sizes must be positive, got [4, 0]"),
        ({"gradient_penalty": -0.1}, "strategy.gradient_penalty must be at least 0, got -0.1"),
        (
            {"generator": "diffusion", "diffusion_steps": 9},
            "strategy.sampling_steps must be at most strategy.diffusion_steps=9, got 10",
        ),
        *(
            (
                {choice: value, key: 1},
                f"strategy.{key}=1 has no meaning with strategy.{choice}={value}: leave it out",
            )
            for choice, value, key in (
                ("labels", "hard", "temperature"),
                ("generator", "vae", "gradient_penalty"),
                ("generator", "vae", "critic_steps"),
                ("generator", "vae", "sampling_steps"),
                ("generator", "gan", "diffusion_steps"),
                ("generator", "diffusion", "latent_size"),
                ("generator", "diffusion", "critic_steps"),
            )
        ),
    ],
    "gpm": [
        *(
            (
                {"threshold": value},
                f"strategy.threshold must be one or more numbers in (0, 1], got {value}",
            )
            for value in ([], [0.5, 0], [0.5, 1.5])
        ),
        ({"samples": 0}, "strategy.samples must be at least 1, got 0"),
    ],
    "hat": [LAMBDA, ({"s_max": 1}, "strategy.s_max must be more than 1, got 1")],
    "icarl": [
        *PLACES[:4],
        ({"temperature": 0}, "strategy.temperature must be above 0, got 0"),
    ],
    "imm": [
        ({"merge": "no"}, "strategy.merge must be one of mean, mode, got 'no'"),
        LABELS,
        SAMPLES,
        *(
            (
                {"merge": "mean", key: value},
                f"strategy.{key}={value} has no meaning with strategy.merge=mean: leave it out",
            )
            for key, value in (("fisher_labels", "true"), ("fisher_samples", 3))
        ),
    ],
    "l2": [LAMBDA],
    "latent_replay": [
        *PLACES[:1],
        *(
            (
                {"lower_lr_factor": value},
                f"strategy.lower_lr_factor must lie in [0, 1], got {value}",
            )
            for value in (-0.5, 1.5)
        ),
    ],
    "lwf": [
        LAMBDA,
        ({"temperature": 0}, "strategy.temperature must be positive, got 0"),
        ({"weight": "no"}, "strategy.weight must be one of fixed, growing, got 'no'"),
        ({"max_weight": 0}, "strategy.max_weight must be positive, or null, got 0"),
        ({"over": "no"}, "strategy.over must be one of old, seen, got 'no'"),
        ({"warm_up": -1}, "strategy.warm_up must be at least 0 steps, got -1"),
    ],
    "mas": [
        LAMBDA,
        PENALTY,
        ({"samples": 0}, "strategy.samples must be at least 1, got 0"),
        ({"gamma": -0.1}, "strategy.gamma must lie in [0, 1], got -0.1"),
        ({"gamma": 1.1}, "strategy.gamma must lie in [0, 1], got 1.1"),
    ],
    "mer": [
        *PLACES[:1],
        ({"policy": "ring"}, "strategy.policy must be reservoir for strategy=mer, got ring"),
        unweighted("mer", "samples come singly"),
        ({"batches": 0}, "strategy.batches must be at least 1, got 0"),
        *(
            ({key: value}, f"strategy.{key} must lie in (0, 1], got {value}")
            for key in ("beta", "gamma")
            for value in (0, 1.5)
        ),
    ],
    "mir": [
        *PLACES[:1],
        (
            {"replay_batch_size": 4, "candidates": 3},
            "strategy.candidates must be at least strategy.replay_batch_size=4, got 3",
        ),
    ],
    "ncm": CLOSED_FORM,
    "ogd": [
        ({"directions": 0}, "strategy.directions must be at least 1, got 0"),
        ({"logits": "no"}, "strategy.logits must be one of ground_truth, all, got 'no'"),
    ],
    "owm": [
        ({"alpha": 0}, "strategy.alpha must be positive, got 0"),
        ({"samples": 0}, "strategy.samples must be at least 1, got 0"),
    ],
    "packnet": [
        ({"prune": -0.1}, "strategy.prune must lie in [0, 1), got -0.1"),
        ({"prune": 1}, "strategy.prune must lie in [0, 1), got 1"),
        ({"retrain_epochs": -1}, "strategy.retrain_epochs must be at least 0, got -1"),
    ],
    "pnn": [
        ({"adapter_size": 0}, "strategy.adapter_size must be at least 1, got 0"),
        ({"alpha_init": 0}, "strategy.alpha_init must be positive, got 0"),
    ],
    "ridge": [*CLOSED_FORM, LAMBDA],
    "rwalk": [
        LAMBDA,
        ({"alpha": 0}, "strategy.alpha must lie in (0, 1], got 0"),
        ({"alpha": 1.5}, "strategy.alpha must lie in (0, 1], got 1.5"),
        ({"interval": 0}, "strategy.interval must be at least 1 step, got 0"),
        ({"damping": 0}, "strategy.damping must be positive, got 0"),
        (
            {"score": False, "damping": 0.1},
            "strategy.damping=0.1 has no meaning with strategy.score=false: leave it out",
        ),
        PENALTY,
    ],
    "si": [
        LAMBDA,
        ({"damping": 0}, "strategy.damping must be positive, got 0"),
        ({"gradient": "no"}, "strategy.gradient must be one of task, total, got 'no'"),
        PENALTY,
        (
            {"gradient": "total"},
            "strategy.gradient=total needs strategy.penalty=loss: a proximal step has no gradient",
        ),
    ],
    "slda": [
        *CLOSED_FORM,
        *(
            ({"shrinkage": value}, f"strategy.shrinkage must lie in [0, 1], got {value}")
            for value in (-0.1, 1.1)
        ),
    ],
    "soft_sharing": [LAMBDA, PENALTY],
    "vcl": [
        LAMBDA,
        ({"initial_std": 0}, "strategy.initial_std must lie in (0, 1], got 0"),
        ({"initial_std": 1.5}, "strategy.initial_std must lie in (0, 1], got 1.5"),
        ({"std_lr": 0}, "strategy.std_lr must be positive, got 0"),
    ],
    "xdg": [
        (
            {"initial": "no"},
            "strategy.initial must be one of subnetwork, network, got 'no'",
        ),
        LAMBDA,
        ({"gated": -0.1}, "strategy.gated must lie in [0, 1), got -0.1"),
        ({"gated": 1}, "strategy.gated must lie in [0, 1), got 1"),
    ],
}
EDGES: dict[str, list[dict[str, Any]]] = {
    "adam_nscl": [{"share": 0}, {"share": None, "multiple": 1}],
    "cls_er": [
        {"lambda_": 0, "plastic_rate": 1, "stable_rate": 1, "plastic_decay": 0, "stable_decay": 0},
        {"plastic_rate": 0.1, "stable_rate": 0.1, "plastic_decay": 0.9, "stable_decay": 0.9},
    ],
    "bir": [{"gated": 0, "hidden_sizes": [1], "latent_size": 1}],
    "den": [
        dict.fromkeys(("mu", "l2", "lambda_", "gamma", "tau", "sigma", "expand", "duplicates"), 0),
        {"phase_epochs": 1},
    ],
    "der": [{"alpha": 0}],
    "derpp": [{"alpha": 0, "beta": 0}],
    "er": [
        {"buffer_size": 1, "replay_batch_size": 1},
        {"buffer_size": 1000000, "weighting": "task_share"},
        *(
            {"buffer_size": None, "per_class": 1, "policy": policy}
            for policy in ("ring", "class_balanced", "herding")
        ),
    ],
    "er_aml": [{"gamma": 0, "temperature": 0.1}],
    "scr": [{"temperature": 0.1, "projection_size": 1}],
    "er_ewc": [{"lambda_": 0, "fisher_samples": 1, "penalty": "loss"}, {"fisher_samples": None}],
    "ewc": [
        {"lambda_": 0, "fisher_samples": 1, "penalty": "proximal"},
        {"mode": "online", "gamma": 0.1, "fisher_samples": None},
        {"mode": "online", "gamma": 1},
    ],
    "expandable_head": [{"new_units": rule} for rule in ("initial", "zero", "mean", "imprinted")],
    "fromp": [{"lambda_": 0, "clip_norm": 1e-9}, {"clip_norm": None}],
    "gdumb": [{"buffer_size": 1, "epochs": 1}, {"buffer_size": 1000000}],
    "gem": [{"margin": 0}],
    "generative_replay": [
        {"temperature": 0.1, "hidden_sizes": [1], "replay_batch_size": 1},
        {"generator": "gan", "labels": "hard", "gradient_penalty": 0, "critic_steps": 1},
        {"generator": "diffusion", "diffusion_steps": 1, "sampling_steps": 1},
    ],
    "gpm": [{"threshold": [0.1, 1], "samples": 1}],
    "hat": [{"lambda_": 0, "s_max": 1.5}],
    "icarl": [
        {"buffer_size": 1, "temperature": 0.1},
        {"buffer_size": None, "per_class": 1},
        {"buffer_size": 1000000},
    ],
    "imm": [{"merge": "mean"}, {"fisher_samples": 1}, {"fisher_samples": None}],
    "l2": [{"lambda_": 0}],
    "latent_replay": [{"lower_lr_factor": 0}, {"lower_lr_factor": 1}],
    "lwf": [
        {"lambda_": 0, "temperature": 0.1, "weight": "fixed", "over": "seen"},
        {"warm_up": 0, "max_weight": None},
        {"max_weight": 1e-9},
    ],
    "mas": [{"lambda_": 0, "samples": 1, "penalty": "loss"}, {"samples": None, "gamma": 0}],
    "mer": [{"batches": 1, "beta": 1, "gamma": 1}, {"beta": 0.1, "gamma": 0.1}],
    "mir": [{"replay_batch_size": 4, "candidates": 4}],
    "ncm": [{"features": 1}, {"input": "features", "layer": 1}],
    "ogd": [{"directions": 1, "logits": "all"}],
    "owm": [{"alpha": 1e-9, "samples": 1}, {"samples": None}],
    "packnet": [{"prune": 0, "retrain_epochs": 0}, {"prune": 0.9, "retrain_epochs": None}],
    "pnn": [{"adapter_size": 1, "alpha_init": 0.05}, {"adapter_size": None}],
    "ridge": [{"lambda_": 0, "features": 0}],
    "rwalk": [
        {"lambda_": 0, "alpha": 1, "interval": 1, "damping": 1e-9, "penalty": "loss"},
        {"alpha": 0.1, "variant": "code", "score": False},
    ],
    "si": [
        {"lambda_": 0, "damping": 1e-9, "penalty": "loss", "gradient": "total"},
        {"penalty": "loss"},
    ],
    "slda": [{"shrinkage": 0}, {"shrinkage": 1}],
    "soft_sharing": [{"lambda_": 0, "penalty": "proximal"}],
    "bic": [
        {"lambda_": 0, "temperature": 0.1, "validation": 0.9, "policy": "class_balanced"},
        {"validation": 0.1},
    ],
    "lucir": [{"lambda_": 0, "margin": 0, "negatives": 1, "scale": 0.1}],
    "wa": [{"lambda_": 0, "temperature": 0.1}],
    "vcl": [{"lambda_": 0, "initial_std": 1, "std_lr": 1e-9}],
    "xdg": [{"gated": 0, "initial": "network"}, {"gated": 0.9}],
}


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [(name, *row) for name, rows in REFUSED.items() for row in rows],
)
def test_a_value_out_of_bounds_is_refused_in_one_line(name, keys, message):
    with pytest.raises(UserError) as error:
        find(name)(name=name, **keys)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("name", "keys"), [(name, keys) for name, rows in EDGES.items() for keys in rows]
)
def test_a_value_at_the_edge_is_allowed(name, keys):
    strategy = find(name)(name=name, **keys)
    assert {key: getattr(strategy, key) for key in keys} == keys
