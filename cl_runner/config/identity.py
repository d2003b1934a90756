"""Which run a configuration stands for: what makes another run, and what may change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# Top-level keys that are no part of a run.
ABOUT_THE_COMMAND = {"seeds", "resume", "fail_fast", "missing_keys", "logger"}
UNSET = ("plugins",)  # no part of a run that does not use them
# Nor are these, where they are null or have this value.
UNSET_WITHIN: dict[tuple[str, str], Any] = {
    ("benchmark", "classes"): None,
    ("model", "freeze"): [],
    ("model", "weights"): None,
    ("model", "weights_for"): None,
    ("model", "cache_features"): "auto",
    ("training", "passes"): 1,
}
# What may change between two parts of a run. Threads and device change the last digits at most.
IMMATERIAL = {
    *("data.root", "device", "threads", "verbose", "plots"),
    *("checkpoint.every", "checkpoint.every_steps", "checkpoint.keep"),
}


def of_run(node: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that identify a run: without the keys about the command, and what is not used.

    That is what is not set (`UNSET`, `UNSET_WITHIN`), the detector of a run that detects no
    borders, the adapter of a run that trains the model's own weights, what there is of
    self-supervised learning in a run without, and `eval.features` where it is off.
    """
    unset, training = {key for key in UNSET if not node.get(key)}, node.get("training", {})
    if training.get("boundaries") != "detected":
        unset.add("detector")
    if training.get("ssl", "none") == "none":
        unset.add("ssl")
        training = {k: v for k, v in training.items() if k != "ssl"}
        node = {k: training if k == "training" else v for k, v in node.items()}
    if node.get("adapter", {}).get("name") == "none":
        unset.add("adapter")
    used = {k: v for k, v in node.items() if k not in ABOUT_THE_COMMAND | unset}
    for (section, key), trivial in UNSET_WITHIN.items():
        if section in used and used[section].get(key) in (None, trivial):
            used[section] = {k: v for k, v in used[section].items() if k != key}
    if "eval" in used and not used["eval"].get("features"):
        used["eval"] = {k: v for k, v in used["eval"].items() if k != "features"}
    return used


def canonical(value: Any) -> Any:
    """The values in canonical form (1.0 becomes 1), so that equal runs compare equal."""
    if isinstance(value, Mapping):
        return {str(key): canonical(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [canonical(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration as one level: {"strategy.lambda": 1.0, ...}."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def config_hash(config: Mapping[str, Any]) -> str:
    """16 hex digits that tell which run a resolved configuration stands for.

    They are the beginning of the SHA-256 of its JSON, with sorted keys and 1.0 written as 1, and
    without the keys that may change when a run goes on (`IMMATERIAL`).
    """
    material = {k: v for k, v in flatten(config).items() if k not in IMMATERIAL}
    text = json.dumps(canonical(material), sort_keys=True)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]
