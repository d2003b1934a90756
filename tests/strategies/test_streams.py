"""The contract of strategies on streams that do more to a sample than to move its pixels."""

from __future__ import annotations

import pytest
from test_contract import LARGER, QUICK

from cl_runner import strategies
from cl_runner.errors import UserError
from cl_runner.testing import CHECKS, OF_ONE_GRAPH, Case

pytestmark = pytest.mark.slow

SMALL = ("benchmark.train_samples=120", "model.hidden_sizes=[12]")
STREAMS = {  # of three tasks; the noise and the blur are in the second, where steps are looked at
    "conditions": (
        "benchmark=conditions_digits benchmark.conditions=[noise,blur,occlusion] "
        "benchmark.train_samples=120"
    ),
    "random labels": "benchmark=random_labels_digits",
    "sequence": (
        "benchmark=sequence benchmark.datasets=[digits,digits,digits] "
        "benchmark.train_samples=500 benchmark.samples_per_task=100 scenario=class"
    ),
    "fresh": (
        "benchmark=label_permuted_digits benchmark.train_samples=300 "
        "benchmark.samples_per_task=100 benchmark.fresh=true"
    ),
}
REAL = {  # tables, in slices and cut by class
    "weather": "benchmark=weather benchmark.samples_per_task=60",
    "letter": "benchmark=split_letter benchmark.num_tasks=2 benchmark.samples_per_task=60",
}
# Those in which the stream has a part.
PROMISES = ("resumed equals unbroken", *list(CHECKS)[-1:], *OF_ONE_GRAPH)


# One that replays nothing, one that replays labels, one with logits, one without one graph.
SOME = ("naive", "er", "derpp", "gem")


@pytest.fixture(scope="module", params=[(n, s) for n in SOME for s in STREAMS], ids=" ".join)
def case(request, prepared) -> Case:
    name, stream = request.param
    own = QUICK.get(name, LARGER)
    return Case(name, (*SMALL, *STREAMS[stream].split(), *own), prepared)


@pytest.mark.parametrize("promise", PROMISES)
def test_it_keeps_its_promise_on_other_streams(case: Case, promise: str) -> None:
    if promise not in case.checks():
        pytest.skip(f"a step of {case.name} is not one graph; its docstring says why")
    case.checks()[promise](case)


@pytest.mark.parametrize("stream", ["conditions", "sequence", "fresh", *REAL])
@pytest.mark.parametrize("name", strategies.available())
def test_every_strategy_goes_on_where_it_stopped(prepared, name: str, stream: str) -> None:
    """Under conditions, on tables, other data sets, labels that change: or it is not for them."""
    supported = strategies.find(name).scenarios
    scenario = next(s for s in ("class", "domain", "task") if s in supported)
    scenario = (
        "domain"
        if stream in ("conditions", "fresh", "weather") and "domain" in supported
        else scenario
    )
    own = [o for o in (STREAMS | REAL)[stream].split() if not o.startswith("scenario=")]
    quick = [o for o in QUICK.get(name, LARGER) if "train_samples" not in o]
    whole = () if stream in STREAMS else ("benchmark.train_samples=null",)
    less = ("model.hidden_sizes=[12]", "training.epochs=1")
    settings = (*less, *own, *whole, *quick, f"scenario={scenario}")
    case = Case(name, settings, prepared)
    if name in ("generative_replay", "bir") and stream in REAL:
        with pytest.raises(UserError, match=f"{name} needs images"):
            case.prepared()
        return
    CHECKS["resumed equals unbroken"](case)
