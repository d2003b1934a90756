"""What is known of strategies and networks without a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from cl_runner.advising.tables import Row

# What a strategy keeps of the data between tasks, besides a network's weights. `weights`: copies of
# them, importances or masks of them, which no sample can be read from one by one; `statistics`:
# means and covariances of classes or inputs; `directions`: of the inputs of layers.
KEEPS = {
    "naive": "nothing",
    **dict.fromkeys(("joint", "cumulative"), "all data"),
    **dict.fromkeys(("er", "er_ace", "derpp", "agem", "gdumb", "icarl", "wa"), "samples"),
    **dict.fromkeys(("ewc", "si", "mas", "lwf"), "weights"),
    **dict.fromkeys(("packnet", "hat", "xdg", "separate"), "weights"),
    **dict.fromkeys(("gpm", "owm"), "directions"),
    **dict.fromkeys(("ncm", "slda", "ridge"), "statistics"),
    "bir": "generator",
}
STORES_SAMPLES = ("samples", "all data")


def outputs(stream: Row) -> int:
    """Outputs of the network: of domain-incremental learning those of one task, else of all."""
    tasks, per_task = int(stream["num_tasks"]), round(stream["classes_per_task"])
    if stream["scenario"] == "domain":
        return int(per_task)
    repeated = stream["scenario"] == "task" or stream["kind"] in ALL_APART
    return tasks * per_task if repeated else int(stream["classes"])


# Their tasks show the same classes, each with outputs of its own where outputs are not shared.
ALL_APART = ("permuted", "rotated", "conditions", "label_permuted", "random_labels")


def mlp_bytes(stream: Row, hidden: Sequence[int]) -> int:
    """The parameters of the MLP on a stream, in float32: what naive keeps."""
    sizes = [int(stream["input_size"]), *hidden, outputs(stream)]
    return 4 * sum(a * b + b for a, b in pairwise(sizes))


def mlp_flops(stream: Row, hidden: Sequence[int], epochs: float) -> float:
    """The FLOPs of naive's training: 6 per weight and sample, less the first layer's inputs."""
    sizes = [int(stream["input_size"]), *hidden, outputs(stream)]
    weights = [a * b for a, b in pairwise(sizes)]
    samples = float(stream["num_tasks"] * stream["samples_per_task"] * epochs)
    return samples * (6 * sum(weights) - 2 * weights[0])
