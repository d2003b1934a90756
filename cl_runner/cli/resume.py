"""`resume=FOLDER`: the command that goes on with the run in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from cl_runner.cli.search_path import listed
from cl_runner.cli.typed import flags
from cl_runner.config import outline
from cl_runner.config.identity import ABOUT_THE_COMMAND
from cl_runner.config.parse import validate
from cl_runner.config.schema import SECTIONS
from cl_runner.config.versions import AGAIN
from cl_runner.errors import UserError, check
from cl_runner.machine import reading
from cl_runner.results.names import CONFIG, OVERRIDES
from cl_runner.results.naming import plain, written

# Values of `resume` that are no folder's name.
YES_OR_NO = {"", "true", "false", "yes", "no", "on", "off", "1", "0", "null"}
SEED = "${seed}"  # the one reference in it, where several runs differ in nothing but their seeds
RESUMED = "cl_run_resumed"  # Hydra's name for the configuration of the run that goes on


def continued(args: Sequence[str]) -> list[str]:
    """The command's arguments; in the place of `resume=FOLDER` the configuration of its run.

    That is what config.yaml holds, in plain values that the schema has checked. The overrides of
    the folder are text of unknown origin: to compose them anew would execute what they say.
    """
    folders = [i for i, arg in enumerate(args) if is_folder(*arg.partition("=")[::2])]
    if not folders:
        return list(args)
    i, options = folders[-1], flags(args)
    folder = Path(args[i].partition("=")[2]).expanduser().absolute()
    single = not options.multirun
    check(single, "resume=FOLDER is for one run; repeat a sweep's own command with resume=true")
    own = options.config_name is None
    check(own, "resume=FOLDER takes the folder's own config, no --config-name")
    for arg in options.overrides:
        changes = arg.partition("=")[0].lstrip("+~") in SECTIONS
        check(not changes, f"resume={folder} goes on with the run there, which {arg} cannot change")
    named = [listed(arg) for arg in options.overrides if arg.startswith("plugins=")]
    node = configuration_of(folder, named[-1] if named else None)
    store(node)
    where = [f"hydra.run.dir={written(str(folder))}", "resume=true"]
    return [f"--config-name={RESUMED}", *args[:i], *where, *args[i + 1 :]]


def configuration_of(folder: Path, plugins: Sequence[str] | None) -> dict[str, Any]:
    """What the config.yaml of a run's folder says. Raises UserError for what is none of ours.

    plugins: the packages that the command itself names, if it does. Those of the folder are left
    out for them: nothing is imported because a folder says so.
    """
    for name in (CONFIG, OVERRIDES):
        there = (folder / name).exists()
        check(there, f"resume={folder}: there is no run, for there is no {name} of cl-run")
    path = folder / CONFIG
    node = reading.yaml_values(path)
    check(isinstance(node, dict), f"{path} is not a configuration of cl-run")
    plain_values = "${" not in str(node).replace(SEED, "")
    check(plain_values, f"{path} has references, ${{...}}, which cl-run does not write")
    there = node.get("plugins", [])
    words = isinstance(there, list) and all(isinstance(name, str) for name in there)
    check(words, f"{path} is not a configuration of cl-run: plugins must be a list of str")
    message = (
        f"resume={folder} would import {', '.join(there)}: if you trust what is called "
        f"that on this machine, add plugins=[{','.join(there)}]"
    )
    check(plugins is not None or not there, message)
    try:
        config = validate(OmegaConf.create({**node, "plugins": list(plugins or [])}))
        outline.check_strategy(config.strategy, config.scenario)
    except UserError as error:
        raise UserError(f"{path} is not a configuration of cl-run: {error}") from None
    return {**node, "plugins": []}


def store(node: Mapping[str, Any]) -> None:
    """Give Hydra a run's configuration, with our own `hydra` section, under the name RESUMED."""
    text = (files("cl_runner.conf") / CONFIG).read_text(encoding="utf-8")
    ours: Any = OmegaConf.to_container(OmegaConf.create(text))
    kept = ("hydra/", "logger")
    defaults = [choice for choice in ours["defaults"] if any(name in str(choice) for name in kept)]
    command = {key: ours[key] for key in ABOUT_THE_COMMAND & ours.keys()}
    whole = {"defaults": ["_self_", *defaults], **command, **node, "hydra": ours["hydra"]}
    ConfigStore.instance().store(name=RESUMED, node=whole, provider="cl_runner", **AGAIN)


def said(out: Path) -> list[str]:
    """The overrides of the run in `out`, which its folder and tables tell; without `resume`.

    Those of a run that goes on from its folder alone are there, as text that nobody interprets.
    """
    job = HydraConfig.get()
    here, there = plain(job.overrides.task), []
    if job.job.config_name == RESUMED:
        there = reading.yaml_values(out / OVERRIDES)
        right = isinstance(there, list)
        check(right, f"{out / OVERRIDES} is not of cl-run: it holds no list of overrides")
    overrides = [*(o for o in map(str, there) if o not in here), *here]
    return [override for override in overrides if not override.startswith("resume=")]


def is_folder(key: str, value: str) -> bool:
    """Whether an override is resume=FOLDER."""
    return key == "resume" and value.lower() not in YES_OR_NO
