"""The nearest to works of benchmark_speed.py in CLArena (clarena), as its documentation has them.

    python scripts/peer_clarena.py W1 --data FOLDER [--threads 2]

A folder of configuration files, then what `clarena pipeline=CL_MAIN_EXPR index=W1` runs: its own
PermutedMNIST and SplitMNIST, with their transforms and data loaders, its MLP, its Finetuning, its
metrics as CSV files; no plots, progress bars, checkpoints, saved models or validation. FOLDER holds
MNIST in torchvision's layout (MNIST/raw), and gets it there if it does not.

What differs from the loops of lean_loops.py: the images are normalised by mean and deviation; an
epoch leaves out its last batch if that is a smaller one; evaluation has the batch size of training
and averages accuracies by batch, not by sample; only the tasks so far are evaluated, after each
task, which is 55 test sets rather than 110 in W1, and 15 rather than 30 in W3. In W1, each task has
an output layer of its own: it knows task- and class-incremental learning, neither of which shares
one among the tasks. In W3, there is no replay, for it has none: Finetuning sees half as many
samples a step. Its output layer grows by two classes with each task.
"""

from __future__ import annotations

import csv
import os
import sys
import tempfile
from pathlib import Path

from peer_avalanche import import_torchvision, parsed

ENTRANCE = """defaults:
  - _self_
  - index: null
pipeline: null
"""
INDEX = """# @package _global_
pipeline: CL_MAIN_EXPR
expr_name: {work}
train_tasks: {tasks}
eval_after_tasks: {tasks}
global_seed: 1
cl_paradigm: {paradigm}
cl_dataset:
  _target_: clarena.cl_datasets.{dataset}
  root: "{data}"
  {parts}
  validation_percentage: 0.0
  batch_size: {batch}
backbone:
  _target_: clarena.backbones.CLMLP
  input_dim: 784
  hidden_dims: [256]
  output_dim: 256
cl_algorithm:
  _target_: clarena.cl_algorithms.Finetuning
optimizer:
  _target_: torch.optim.SGD
  _partial_: true
  lr: 0.1
lr_scheduler:  # one is needed; this one keeps the rate
  _target_: torch.optim.lr_scheduler.ConstantLR
  _partial_: true
  factor: 1.0
trainer:
  _target_: lightning.Trainer
  accelerator: cpu
  devices: 1
  max_epochs: 1
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
metrics:
  - _target_: clarena.metrics.CLAccuracy
    save_dir: ${{output_dir}}/results
    test_acc_csv_name: acc.csv
  - _target_: clarena.metrics.CLLoss
    save_dir: ${{output_dir}}/results
    test_loss_cls_csv_name: loss.csv
lightning_loggers:
  csv:
    _target_: lightning.pytorch.loggers.CSVLogger
    save_dir: ${{output_dir}}
callbacks:
  - _target_: clarena.callbacks.CLPylogger
output_dir: outputs
hydra:
  run:
    dir: ${{output_dir}}
misc:
  config_tree: null
"""
WORKS: dict[str, dict[str, object]] = {
    "W1": {
        "paradigm": "TIL",
        "tasks": 10,
        "batch": 128,
        "dataset": "PermutedMNIST",
        "parts": "num_tasks: 10",
    },
    "W3": {
        "paradigm": "CIL",
        "tasks": 5,
        "batch": 32,
        "dataset": "SplitMNIST",
        "parts": "class_split: {1: [0, 1], 2: [2, 3], 3: [4, 5], 4: [6, 7], 5: [8, 9]}",
    },
}


def configure(work: str, data: Path, folder: Path) -> None:
    """Write the configuration files into the folder that the command looks for."""
    (folder / "example_configs" / "index").mkdir(parents=True)
    (folder / "example_configs" / "entrance.yaml").write_text(ENTRANCE)
    index = INDEX.format(work=work, data=data.resolve(), **WORKS[work])
    (folder / "example_configs" / "index" / f"{work}.yaml").write_text(index)


def command(*arguments: str) -> None:
    """What the command `clarena` runs, in the current folder."""
    from clarena.cli import clarena

    sys.argv = ["clarena", *arguments]
    clarena()


def main() -> None:
    """Run one work and print its ACC."""
    arguments = parsed(__doc__, WORKS)
    import_torchvision()
    with tempfile.TemporaryDirectory() as folder:
        configure(arguments.work, arguments.data, Path(folder))
        before = Path.cwd()
        os.chdir(folder)  # before its import, which looks for the configuration here
        command("pipeline=CL_MAIN_EXPR", f"index={arguments.work}")
        lines = Path("outputs", "results", "acc.csv").read_text().splitlines()
        last = list(csv.DictReader(lines))[-1]
        os.chdir(before)
    print(f"ACC {float(last['average_accuracy']):.4f}")


if __name__ == "__main__":
    main()
