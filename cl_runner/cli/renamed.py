"""The names that experiments had before each stood below its paper or its protocol.

They are understood for one more release; then this file goes, and what calls it.
"""

from __future__ import annotations

import re

from cl_runner.cli import choices

PUBLISHED = {
    "hsu-adam-til": "hsu2018/naive_split_task",
    "hsu-adam-cil": "hsu2018/naive_split_class",
    "hsu-l2-til": "hsu2018/l2_split_task",
    "hsu-ewc-til": "hsu2018/ewc_split_task",
    "hsu-ewc-cil": "hsu2018/ewc_split_class",
    "hsu-oewc-til": "hsu2018/online_ewc_split_task",
    "hsu-joint-cil": "hsu2018/joint_split_class",
    "der-sgd-cil": "buzzega2020/naive_split_class",
    "der-sgd-til": "buzzega2020/naive_split_task",
    "der-der500-cil": "buzzega2020/der500_split_class",
    "der-derpp200-cil": "buzzega2020/derpp200_split_class",
    "der-pmnist-sgd": "buzzega2020/naive_permuted",
    "der-pmnist-der500": "buzzega2020/der500_permuted",
    "nmi-si-til": "vandeven2022/si_split_task",
    "nmi-lwf-til": "vandeven2022/lwf_split_task",
    "nmi-joint-cil": "vandeven2022/joint_split_class",
    "nmi-icarl-cil": "vandeven2022/icarl_split_class",
    "kirkpatrick-naive": "kirkpatrick2017/naive_permuted",
    "kirkpatrick-ewc": "kirkpatrick2017/ewc_permuted",
}
PRESET = re.compile(r"(split-mnist-task|split-mnist-class|permuted-mnist)-([a-z0-9-]+)")


def current(name: str) -> str:
    """The name that an experiment has now; a name that is no old one stays as it is."""
    if preset := PRESET.fullmatch(name):
        protocol, strategy = (part.replace("-", "_") for part in preset.groups())
        new = f"preset/{protocol}/{strategy}"
        return new if new in choices.options("experiment") else name
    return PUBLISHED.get(name, name)


def note(names: list[str]) -> str:
    """The line for a user who has written old names."""
    old, new = ", ".join(names), ", ".join(map(current, names))
    if len(names) == 1:
        return f"experiment={old} is now {new}; the old name goes in the next release"
    return f"experiment={old} are now {new}; the old names go in the next release"
