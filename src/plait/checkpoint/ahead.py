"""The system is told what will be read soon, and fetches it into its page cache meanwhile."""

from __future__ import annotations

import os

from plait import kernels


def _most() -> int:
    names = getattr(os, "sysconf_names", {})
    known = {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= names.keys()
    return min(1 << 30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4 if known else 1 << 28)


LIMIT = _most()  # bytes that are fetched before they are used: small beside the memory of the machine


def ahead(file: int, offset: int, nbytes: int) -> None:
    """Have the system fetch some bytes of a file, unless it has them; it may wait until the disk takes that on.

    All of them come, and of many up to 16 MB more, as the system reads in large steps.
    """
    if kernels.library() is not None:
        kernels.call("ahead", file, offset, nbytes)
    elif hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, offset, nbytes, os.POSIX_FADV_WILLNEED)


def cached(file: int, offset: int) -> bool | None:
    """Whether the page cache holds a byte of a file; None where the system does not tell, as of files of other users."""
    found = kernels.call("cached", file, offset) if kernels.library() is not None else -1
    return None if found < 0 else found == 1
