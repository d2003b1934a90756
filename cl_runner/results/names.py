"""The names of the files that a run or a sweep leaves, and the states that a job can be in."""

from __future__ import annotations

SUMMARY, STATISTICS, COMPARISON = "summary.csv", "statistics.csv", "comparison.csv"
ACCURACY_MATRIX, ACCURACY_TABLE = "accuracy_matrix.csv", "accuracies.csv"
COST_TABLE, TASK_TABLE = "costs.csv", "tasks.csv"  # the latter where tasks have names
PERSONAL_TABLE = "personal.csv"  # with benchmark.base
ONLINE_TABLE = "online.csv"  # with eval.online
EDIT_TABLE = "edits.csv"  # with benchmark=edits
GUARD_TABLE = "guard.csv"  # with guard.drop
CALIBRATION_TABLE, CONFUSION_TABLE = "calibration.csv", "confusion.csv"  # with eval.calibration
REPRESENTATION_TABLE = "representation.csv"  # with eval.features
BOUNDARY_TABLE = "boundaries.csv"  # with training.boundaries=detected
CONFIG, OVERRIDES = "config.yaml", "overrides.yaml"
STATUS, JOBS = "status.json", "jobs.json"
CHECKPOINT = "checkpoint.safetensors"
# With checkpoint.keep, beside the weights: what else makes the model (see running.model).
MODEL, MODEL_MEMORY = "model.json", "model.safetensors"
PRETRAINED = "pretrained.safetensors"  # with training.ssl, before the first task
LOG, TRACEBACK = "cl-run.log", "traceback.txt"
LOGGERS = "loggers.json"  # with logger=...: what the libraries call the run
STATES = ("complete", "running", "interrupted", "failed", "killed", "missing")
