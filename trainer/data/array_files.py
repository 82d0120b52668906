"""Arrays written as `.npy` files."""

from typing import IO

import numpy as np
from numpy.lib import format as npy


def save_array(stream: IO[bytes], array: np.ndarray) -> None:
    """Writes what `numpy.load` reads.

    numpy's own `save` does not notice when the last bytes of a file find no room.

    Raises:
        OSError: if the disk is full.
    """
    array = np.asarray(array, order="C")
    npy.write_array_header_1_0(stream, npy.header_data_from_array_1_0(array))
    stream.write(array.data)
    stream.flush()
