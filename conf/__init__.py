"""The YAML files, as the package cl_runner.conf: see pyproject.toml."""
