"""The system is told what will be read soon, and fetches it meanwhile."""

from __future__ import annotations

import os


def ahead(file: int, offset: int, nbytes: int) -> None:
    """Have the system fetch some bytes of a file, unless it has them: it would look at every page of them."""
    if hasattr(os, "posix_fadvise") and not (cached(file, offset) and cached(file, offset + nbytes - 1)):
        os.posix_fadvise(file, offset, nbytes, os.POSIX_FADV_WILLNEED)


def cached(file: int, offset: int) -> bool:
    """Whether a byte can be had without waiting for a disk, as far as the system says so."""
    try:
        return os.preadv(file, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except (AttributeError, OSError):  # no Linux; not there, or a file system that cannot tell
        return False
