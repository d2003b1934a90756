"""What the field calls the strategies, for people to read; code, YAML and CSV keep their own names.

A name may depend on one setting: EWC with `mode=online` is online EWC. A strategy that is not here,
a plugin's for one, keeps its own name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

MANY = 4  # names that a sentence can hold
NAMES = {
    "agem": "A-GEM",
    "bic": "BiC",
    "bir": "BI-R",
    "cls_er": "CLS-ER",
    "den": "DEN",
    "der": "DER",
    "derpp": "DER++",
    "er": "ER",
    "er_ace": "ER-ACE",
    "er_aml": "ER-AML",
    "er_ewc": "ER + EWC",
    "ewc": "EWC",
    "expandable_head": "expandable head",
    "from_scratch": "from scratch",
    "frozen_features": "frozen features",
    "gdumb": "GDumb",
    "gem": "GEM",
    "generative_replay": "generative replay",
    "gpm": "GPM",
    "hat": "HAT",
    "icarl": "iCaRL",
    "imm": "IMM",
    "l2": "L2",
    "la_maml": "La-MAML",
    "latent_replay": "latent replay",
    "lucir": "LUCIR",
    "lwf": "LwF",
    "mas": "MAS",
    "mer": "MER",
    "mir": "MIR",
    "ncm": "nearest class mean",
    "ogd": "OGD",
    "owm": "OWM",
    "packnet": "PackNet",
    "piggyback": "Piggyback",
    "pnn": "PNN",
    "ridge": "ridge regression",
    "rwalk": "RWalk",
    "scr": "SCR",
    "si": "SI",
    "slda": "SLDA",
    "soft_sharing": "soft sharing",
    "supsup": "SupSup",
    "vcl": "VCL",
    "wa": "WA",
    "xdg": "XdG",
}
# strategy -> the setting on which its name depends, and the names by that setting's value.
VARIANTS = {
    "ewc": ("strategy.mode", {"online": "online EWC"}),
    "imm": ("strategy.merge", {"mean": "mean-IMM", "mode": "mode-IMM"}),
}


def display(strategy: str, settings: Mapping[str, str]) -> str:
    """The name that people know; settings: all of the run's, by their whole keys."""
    key, names = VARIANTS.get(strategy, ("", {}))
    return names.get(settings.get(key, ""), NAMES.get(strategy, strategy))


def said_by_name(strategy: str, settings: Mapping[str, str]) -> str | None:
    """The key of the setting that the displayed name already says; None where there is none."""
    key, names = VARIANTS.get(strategy, ("", {}))
    return key if settings.get(key) in names else None


def listed(names: Sequence[str]) -> str:
    """`a, b and c`; of more than MANY names the first ones, and how many more there are."""
    more = len(names) - MANY + 1
    shown = [*names] if more < 2 else [*names[: MANY - 1], f"{more} more"]
    return " and ".join(part for part in (", ".join(shown[:-1]), *shown[-1:]) if part)
