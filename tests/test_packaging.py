"""The wheel, not the checkout: what it holds, and that it runs from anywhere."""

import email
import os
import re
import runpy
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import cl_runner

REPOSITORY = Path(__file__).parents[1]
EVERY_YAML = {path.relative_to(REPOSITORY / "conf") for path in REPOSITORY.glob("conf/**/*.yaml")}


def output(*command: str | Path, cwd: Path) -> str:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that the checkout is left as it was."""
    source = tmp_path_factory.mktemp("source") / "source"
    for name in ("cl_runner", "conf", "hydra_plugins"):
        clean = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, source / name, ignore=clean)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    return source


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    folder = source.parent
    flags = ("--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    output(sys.executable, "-m", "pip", "wheel", *flags, source, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_every_yaml(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name) for name in archive.namelist()}
    assert EVERY_YAML
    assert {Path("cl_runner/conf", path) for path in EVERY_YAML} <= names
    modules = {path.relative_to(REPOSITORY) for path in REPOSITORY.glob("cl_runner/**/*.py")}
    page = {path.relative_to(REPOSITORY) for path in REPOSITORY.glob("cl_runner/comparing/page/*")}
    tables = {path.relative_to(REPOSITORY) for path in REPOSITORY.glob("cl_runner/data/tables/*")}
    assert page and modules | page <= names
    assert len(tables) == 3 and tables <= names
    assert {Path("cl_runner/advising", f"{name}.csv") for name in ("results", "streams")} <= names
    assert not [name for name in names if name.parts[0] == "tests"]


@pytest.mark.slow
def test_the_wheel_has_the_version_of_the_package(wheel: Path) -> None:
    assert wheel.name.startswith(f"cl_runner-{cl_runner.__version__}-")


@pytest.mark.slow
def test_the_installed_wheel_runs_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    environment, elsewhere = tmp_path / "environment", tmp_path / "elsewhere"
    elsewhere.mkdir()
    output(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    python, cl_run = environment / "bin/python", environment / "bin/cl-run"
    pip = (sys.executable, "-m", "pip", "--python", python)
    output(*pip, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)

    # The dependencies are borrowed, after the wheel's own copy of cl_runner in the order of search.
    own = Path(
        output(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=tmp_path).strip()
    )
    borrowed = [path for path in sys.path if path.endswith("-packages")] or site.getsitepackages()
    (own / "borrowed.pth").write_text("\n".join(borrowed), encoding="utf-8")
    code = "import cl_runner, cl_runner.conf; print(cl_runner.__file__, *cl_runner.conf.__path__)"
    for path in output(python, "-c", code, cwd=elsewhere).split():
        assert Path(path).is_relative_to(environment)

    assert "strategy:\n  name: ewc\n" in output(cl_run, "--cfg", "job", cwd=elsewhere)
    preset = output(cl_run, "--cfg", "job", "experiment=preset/split_mnist_class/er", cwd=elsewhere)
    assert "strategy:\n  name: er\n" in preset and "iterations: 500\n" in preset
    tiny = ("benchmark.num_tasks=2", "training.iterations=2", "model.hidden_sizes=[8]")
    output(cl_run, *tiny, "device=cpu", "hydra.run.dir=out", cwd=elsewhere)
    assert (elsewhere / "out/accuracy_matrix.csv").exists()


@pytest.mark.slow
def test_what_is_built_for_an_index_passes_its_checks(source: Path, tmp_path: Path) -> None:
    """The wheel is made from the archive of sources, so that this is complete."""
    for module in ("build", "twine"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    output(
        sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, source, cwd=tmp_path
    )
    files = sorted(tmp_path.iterdir())
    assert [file.name.rpartition(".")[2] for file in files] == ["whl", "gz"]
    said = output(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=tmp_path)
    assert said.count("PASSED") == 2
    with zipfile.ZipFile(files[0]) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        about = email.message_from_bytes(archive.read(name))
    assert about["Description-Content-Type"] == "text/markdown"
    assert about["Author"] == "The cl_runner authors"
    readme = about.get_payload()
    assert "## Strategies" in readme
    assert not re.findall(r"\]\((?!https://)", readme)


PAGE = "![A picture](docs/a.png) [Page](docs/a.md#b), [below](#b), [paper](https://arxiv.org/abs/1)"


def test_the_links_of_an_index_lead_to_the_repository_or_nowhere() -> None:
    setup = runpy.run_path(str(REPOSITORY / "setup.py"))
    absolute, repository = setup["absolute"], setup["repository"]
    assert absolute(PAGE, "https://host/me/it") == (
        "![A picture](https://host/me/it/raw/HEAD/docs/a.png) "
        "[Page](https://host/me/it/blob/HEAD/docs/a.md#b), [below](#b), "
        "[paper](https://arxiv.org/abs/1)"
    )
    assert absolute(PAGE, "") == " Page, [below](#b), [paper](https://arxiv.org/abs/1)"
    named = 'license = "MIT"\n[project.urls]\nRepository = "https://host/me/it/"\n'
    assert repository(named) == "https://host/me/it"
