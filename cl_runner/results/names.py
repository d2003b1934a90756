"""The names of the files that a run or a sweep leaves, and the states that a job can be in."""

from __future__ import annotations

SUMMARY, STATISTICS, COMPARISON = "summary.csv", "statistics.csv", "comparison.csv"
ACCURACY_MATRIX, ACCURACY_TABLE = "accuracy_matrix.csv", "accuracies.csv"
COST_TABLE, GUARD_TABLE = "costs.csv", "guard.csv"
CALIBRATION_TABLE, CONFUSION_TABLE = "calibration.csv", "confusion.csv"  # with eval.calibration
CONFIG, OVERRIDES = "config.yaml", "overrides.yaml"
STATUS, JOBS = "status.json", "jobs.json"
CHECKPOINT = "checkpoint.safetensors"
LOG, TRACEBACK = "cl-run.log", "traceback.txt"
STATES = ("complete", "running", "interrupted", "failed", "killed", "missing")
