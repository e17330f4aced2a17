"""The system is told what will be read soon, and fetches it into its page cache meanwhile."""

from __future__ import annotations

import os

from plait import kernels


def ahead(file: int, offset: int, nbytes: int) -> None:
    """Have the system fetch some bytes of a file, all of them, unless it has them; it may wait until the disk takes that on."""
    if kernels.library() is not None:
        kernels.call("ahead", file, offset, nbytes)
    elif hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, offset, nbytes, os.POSIX_FADV_WILLNEED)


def cached(file: int, offset: int) -> bool | None:
    """Whether the page cache holds a byte of a file; None where the system does not tell, as of files of other users."""
    found = kernels.call("cached", file, offset) if kernels.library() is not None else -1
    return None if found < 0 else found == 1
