"""`cl-run advise`: which strategies to take for a stream, by what was measured on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from cl_runner.advising.advice import Asked, advise, naive_of
from cl_runner.advising.features import of_config, of_stream
from cl_runner.advising.predict import table_of
from cl_runner.advising.tables import RESULTS, STREAMS, Row, read
from cl_runner.advising.words import text
from cl_runner.cli.search_path import key_of, with_yaml_of_plugins
from cl_runner.cli.typed import flags, understood
from cl_runner.config.identity import flatten
from cl_runner.config.outline import checked
from cl_runner.config.schema import MLP, Budget, Config
from cl_runner.errors import check
from cl_runner.machine.console import show

HELP = """\
cl-run advise benchmark=NAME [scenario=...] [key=value ...]

Which strategies to take for a stream, ranked by what was measured on the
streams that are nearest to it, with 80 % intervals. Nothing is trained. The
keys are those of a run; those that tell are

  benchmark=, benchmark.*, scenario=, data.path=  the stream
  training.epochs, training.batch_size            how long it is trained on
  training.boundaries=none|detected               tasks' borders are not told
  budget.bytes=N, budget.flops=N                  no strategy that takes more
  privacy=true                                    none that stores samples

docs/advise.md says where the numbers come from and how good they have been.
Exit code: 0, or 2 for a mistake."""
# Sections of the configuration in which a run may differ from those of the table; a stream's own
# keys, and how long it is trained on, are no difference.
SHARED = ("model", "adapter", "optimizer", "training", "ssl", "init_from")
OWN = ("training.epochs", "training.iterations", "training.boundaries")


def main(args: Sequence[str]) -> int:
    """`cl-run advise ...`. Raises UserError."""
    if {"-h", "--help"} & set(args):
        show(HELP)
        return 0
    privacy, typed = without_privacy(args)
    options = flags(typed)
    check(not options.multirun, "cl-run advise takes one stream, without -m")
    chosen = [arg for arg in typed if key_of(arg).partition(".")[0] == "strategy"]
    check(not chosen, f"cl-run advise ranks strategies: leave {' '.join(chosen)} out")
    cfg = composed(with_yaml_of_plugins(understood(typed)))
    config = checked(cfg)
    refuse(config)
    stream = features(config)
    hidden = config.model.hidden_sizes if isinstance(config.model, MLP) else None
    epochs = float(config.training.epochs)
    if config.training.iterations is not None:
        taken = config.training.iterations * config.training.batch_size
        epochs = taken / stream["samples_per_task"]
    naive_bytes, naive_flops = naive_of(stream, hidden, epochs)
    asked = Asked(
        boundaries=config.training.boundaries,
        privacy=privacy,
        most_bytes=config.budget.bytes,
        most_flops=config.budget.flops,
        naive_bytes=naive_bytes,
        naive_flops=naive_flops,
    )
    table = table_of(read(STREAMS), read(RESULTS))
    show(text(advise(stream, table, asked), differences(config)))
    return 0


def without_privacy(args: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether no samples may be stored, and the other arguments."""
    own = [arg for arg in args if key_of(arg) == "privacy"]
    values = {arg.partition("=")[2] for arg in own}
    right = values <= {"true", "false"} and len(values) <= 1
    check(right, f"privacy must be true or false, got {' '.join(own)}")
    return values == {"true"}, [arg for arg in args if arg not in own]


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration of naive fine-tuning on the stream, as cl-run composes it."""
    GlobalHydra.instance().clear()
    with initialize_config_module("cl_runner.conf", version_base="1.3"):
        return compose("config", ["strategy=naive", *overrides])


def refuse(config: Config) -> None:
    """Raise UserError for what the table cannot tell of."""
    chosen = f"benchmark={config.benchmark.name}, whose tasks the model itself chooses"
    check(not config.benchmark.chosen, f"cl-run advise knows nothing of {chosen}")
    for name in ("samples", "seconds"):
        asked = getattr(config.budget, name)
        message = f"cl-run advise cannot tell what budget.{name}={asked} leaves of accuracy"
        check(asked is None, f"{message}: it reckons with budget.bytes and budget.flops")


def features(config: Config) -> Row:
    """What is known of the stream; its data are read only where the settings do not tell."""
    known = of_config(config)
    if known is not None:
        return known
    from cl_runner.running.prepare import prepare, strategy_of  # torch

    free = replace(config, budget=Budget())  # a limit is no reason not to look at the data
    return of_stream(config, prepare(free, strategy_of(config)).stream)


def differences(config: Config) -> list[str]:
    """The keys of network, optimizer and training that are not those the table was made with."""
    ours, own = (flatten(c.resolved) for c in (checked(composed([])), config))
    keys = [key for key in {**ours, **own} if key.partition(".")[0] in SHARED and key not in OWN]
    return [key for key in keys if ours.get(key) != own.get(key)]
