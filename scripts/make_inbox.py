"""An inbox of images, month by month, for docs/updating.md: digits that change and grow in number.

    python scripts/make_inbox.py [FOLDER]     (inbox)

Writes FOLDER/<month>/<digit>/*.png for six months, of scikit-learn's 8x8 digits, each image in one
month only. The light drifts: from month to month the paper is darker and the ink paler. The digit 7
comes in March and stays. Nothing is downloaded, and the same files are written each time.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

MONTHS = ("2025-01", "2025-02", "2025-03", "2025-04", "2025-05", "2025-06")
NEW, SINCE = 7, "2025-03"
DIMMER = 0.11  # of the range between paper and ink that is lost each month, at both ends


def drifted(images: NDArray[np.float64], month: int) -> NDArray[np.uint8]:
    """Images in [0, 1], dark ink on light paper, in the light of a month, 0 the first."""
    lost = DIMMER * month
    return np.round(255 * (1 - lost - (1 - 1.5 * lost) * images)).astype(np.uint8)


def write(folder: Path) -> int:
    """Write the months into a folder that is not there yet; the number of images."""
    folder.mkdir(parents=True)
    digits = load_digits()
    count = 0
    for month, name in enumerate(MONTHS):
        mine = np.arange(len(digits.target)) % len(MONTHS) == month
        if name < SINCE:
            mine &= digits.target != NEW
        rows = np.flatnonzero(mine)
        for row, pixels in zip(rows, drifted(digits.images[rows] / 16, month), strict=True):
            own = folder / name / str(digits.target[row])
            own.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(own / f"{row:04}.png")
        count += len(rows)
    return count


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "inbox")
    if target.exists():
        sys.exit(f"{target} is there already; name another folder")
    print(f"{write(target)} images of {len(MONTHS)} months in {target}")
