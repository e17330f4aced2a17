"""Compile the kernels while the package is built. Without a C compiler the package is pure Python, slower and as exact."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("src/plait/kernels")
#: -ffp-contract=off: every operation is rounded by itself, as PyTorch's are
FLAGS = ("-O3", "-std=c11", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")


class Kernels(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        source, library = Path(self.root) / FOLDER / "kernels.c", Path(self.root) / FOLDER / "_kernels.so"
        names = [name for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name]
        compiler = next((path for name in names if (path := shutil.which(name))), None)
        if compiler is None or sys.platform == "win32":
            self.app.display_warning("no C compiler: plait will compute with PyTorch alone")
            return
        made = subprocess.run(
            [compiler, *FLAGS, "-o", str(library), str(source), "-lm"], capture_output=True, text=True
        )
        if made.returncode:
            self.app.display_warning(
                f"the kernels did not compile: plait will compute with PyTorch alone\n{made.stderr}"
            )
            return
        build_data["artifacts"].append(str(FOLDER / "_kernels.so"))
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")
