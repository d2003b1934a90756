"""cl-compare: from the CSV files of many runs to an answer. Nothing here imports torch."""
