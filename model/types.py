"""Types of image arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
"""An image or a tile, (H, W, C)."""

Pixels8 = NDArray[np.uint8]
"""An image of 8 bits, (H, W, C)."""

Values = NDArray[np.float32]
"""Output of a network, (H, W, C) with values in about [0, 1]."""
