"""While a verb loads what it needs, the disk would be idle: it fetches the beginnings of the models that a recipe names.

This is a guess by the look of the text, and nothing depends on it; what a recipe means is found out by those who plan it.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

#: what follows `model:` or `base_model:` on a line, up to an adapter, a revision or a comment
_MODEL = re.compile(r"""^[^#\n]*?\b(?:base_)?model:[ \t]*["']?([^\s"'#+@{}\[\],&*]+)""", re.MULTILINE)
_RECIPE = 1 << 20  # characters of a recipe that are looked at
STEP = 1 << 23  # bytes that are fetched at once
SWITCH = (
    0.0002  # seconds after which the thread that loads lets this one go on: a step takes the disk a few thousandths
)


@contextmanager
def beginnings(recipe: str) -> Iterator[None]:
    """Fetch as long as the block lasts."""
    enough, before = threading.Event(), sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    threading.Thread(target=_fetch, args=(recipe, enough), name="plait-early", daemon=True).start()
    try:
        yield
    finally:
        enough.set()
        sys.setswitchinterval(before)


def _fetch(recipe: str, enough: threading.Event) -> None:
    """A step of each model, then the next; two of each are under way at most, so that a slow disk is not kept busy."""
    from plait.checkpoint.ahead import LIMIT, ahead

    with ExitStack() as opened, suppress(OSError):  # told when it is read
        files = [opened.enter_context(path.open("rb", buffering=0)) for path in weights(recipe)]
        sizes = {file.fileno(): os.fstat(file.fileno()).st_size for file in files}
        for at in range(0, LIMIT // max(1, len(files)), STEP):
            for number, size in sizes.items():
                if enough.is_set():
                    return
                if at > STEP:
                    os.pread(number, 1, at - STEP - 1)
                ahead(number, at, min(STEP, size - at))


def weights(recipe: str) -> list[Path]:
    """The first weight file of each folder on this disk that a recipe names."""
    found: dict[Path, None] = {}
    with suppress(OSError, ValueError, RuntimeError):  # no recipe, or none that is text; nobody's home
        with open(recipe, encoding="utf-8") as file:
            names = _MODEL.findall(file.read(_RECIPE))
        for name in names:
            for folder in (Path(name).expanduser(), Path(recipe).parent / name):
                first = min((path for path in folder.glob("*.safetensors") if path.is_file()), default=None)
                if first:
                    found[first] = None
                    break
    return list(found)
