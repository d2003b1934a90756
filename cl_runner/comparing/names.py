"""What the field calls the strategies, for people to read; code, YAML and CSV keep their own names.

A name may depend on settings: EWC with `mode=online` is online EWC. A strategy that is not here, a
plugin's for one, keeps its own name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

MANY = 4  # names that a sentence can hold
NAMES = {
    "adam_nscl": "Adam-NSCL",
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
    "fromp": "FROMP",
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
# strategy -> the settings on which its name depends, and what it becomes by each one's value.
VARIANTS = {
    "ewc": {
        "strategy.mode": {"online": "online {}"},
        "strategy.curvature": {"kron": "Kronecker {}"},
    },
    "generative_replay": {
        "strategy.generator": {"diffusion": "diffusion replay", "gan": "GAN replay"},
    },
    "imm": {"strategy.merge": {"mean": "mean-{}", "mode": "mode-{}"}},
}


def display(strategy: str, settings: Mapping[str, str]) -> str:
    """The name that people know; settings: all of the run's, by their whole keys."""
    name = NAMES.get(strategy, strategy)
    for key in said_by_name(strategy, settings):
        name = VARIANTS[strategy][key][settings[key]].format(name)
    return name


def said_by_name(strategy: str, settings: Mapping[str, str]) -> list[str]:
    """The keys of the settings that the displayed name already says."""
    variants = VARIANTS.get(strategy, {})
    return [key for key, names in variants.items() if settings.get(key) in names]


def listed(names: Sequence[str]) -> str:
    """`a, b and c`; of more than MANY names the first ones, and how many more there are."""
    more = len(names) - MANY + 1
    shown = [*names] if more < 2 else [*names[: MANY - 1], f"{more} more"]
    return " and ".join(part for part in (", ".join(shown[:-1]), *shown[-1:]) if part)
