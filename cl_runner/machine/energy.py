"""The energy that the machine spends, by its own counters; never a guess.

NVML counts what a GPU takes, RAPL what the processors' packages take (Intel's and AMD's, by the
same files of Linux, which often only root may read). Both are of the whole device: whatever else
runs on it counts as well. The two readers are so short that no library has to bring them; those
there are estimate where nothing can be read, which a result must not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

POWERCAP = Path("/sys/class/powercap")
SOURCES = ("declared", "nvml", "rapl")
Counter = tuple[int, int]  # what a counter says, and the value after which it begins anew; 0: none


class Energy:
    """What is spent from one look to the next, in joules."""

    def __init__(self, source: str, read: Callable[[], list[Counter]], unit: float) -> None:
        self.source, self.read, self.unit = source, read, unit  # joules of one count
        self.last = read()

    def spent(self, seconds: float) -> float | None:
        """Joules since the last call; None where that cannot be read any more.

        A counter that has begun anew is seen once: more often than that it must be read, which for
        RAPL is once in some minutes at full load.
        """
        try:
            before, self.last = self.last, self.read()
        except Exception:  # noqa: BLE001 - of files, or of a driver
            return None
        pairs = zip(before, self.last, strict=True)
        turned = [now - then + (most if now < then else 0) for (then, most), (now, _) in pairs]
        return self.unit * sum(turned)


class Declared:
    """A constant draw that the user has declared, in watts (`energy.watts`)."""

    source = "declared"

    def __init__(self, watts: float) -> None:
        self.watts = watts

    def spent(self, seconds: float) -> float:
        """Joules of so many seconds."""
        return self.watts * seconds


def reader(device: torch.device, watts: float | None = None) -> Energy | Declared | None:
    """What counts the energy of a run on a device; None where nothing can be read."""
    if watts is not None:
        return Declared(watts)
    if device.type == "mps":
        return None  # the processors' counters tell nothing of it
    with suppress(Exception):  # whatever a driver says, there is no counter then
        return of_gpu(device) if device.type == "cuda" else of_processors(POWERCAP)
    return None


def of_processors(root: Path) -> Energy:
    """RAPL's counters of all packages. Raises OSError or ValueError where they cannot be read."""
    packages = [
        folder
        for folder in sorted(root.glob("intel-rapl:*"))
        if folder.name.count(":") == 1
        and (folder / "name").read_text(encoding="ascii").startswith("package")
    ]
    if not packages:
        raise FileNotFoundError(root)

    def number(path: Path) -> int:
        return int(path.read_text(encoding="ascii"))

    turns = [number(folder / "max_energy_range_uj") for folder in packages]
    return Energy(
        "rapl",
        lambda: [(number(f / "energy_uj"), turn) for f, turn in zip(packages, turns, strict=True)],
        1e-6,
    )


def of_gpu(device: torch.device) -> Energy:
    """NVML's counter of the GPU that is used. Raises whatever NVML raises where there is none."""
    import torch

    if find_spec("pynvml") is None:
        raise ModuleNotFoundError("pynvml")
    nvml: Any = import_module("pynvml")
    nvml.nvmlInit()
    own = torch.cuda.get_device_properties(device).uuid
    handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{own}")
    return Energy("nvml", lambda: [(nvml.nvmlDeviceGetTotalEnergyConsumption(handle), 0)], 1e-3)
