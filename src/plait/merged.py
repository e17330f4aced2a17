"""A merge that has not been written: a checkpoint whose tensors are computed when they are read."""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from plait.checkpoint import Rows
from plait.errors import ModelError, PlaitError
from plait.output.inputs import fetch
from plait.output.save import Saved, save
from plait.output.sidefiles import side_files
from plait.plan import Plan
from plait.run import OnDemand, Progress, tensor, tensors
from plait.types import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor


class Merge:
    """A merged model that has not been written: a `Checkpoint`. Reading a tensor computes it, and no other.

    Iterating yields (name, tensor) in the output's order, one tensor in memory at a time.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._steps = {step.name: step for step in plan.steps}
        self._rows = OnDemand(plan)
        self._beside: Path | None = None

    @property
    def config(self) -> Mapping[str, Any]:
        return self.plan.config

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        return self.plan.specs

    def read(self, name: str, rows: Rows | None = None) -> Tensor:
        """One tensor, or rows [start, stop) of its matrix view; raises `PlanError` for an unknown name."""
        step = self._steps.get(name) or self.plan.step(name)
        return tensor(self.plan, step) if rows is None else self._rows.read(step, rows)

    def folder(self) -> Path | None:
        """A folder with what lies beside the weights: the config's model's, or one with a tokenizer or template of its own.

        Such a folder is a temporary one, which lives as long as the merge.
        """
        donor, words = (opened := self.plan.models[self.plan.donor].opened).folder, opened.words
        if self.plan.recipe.chat_template is None and self.plan.vocabulary is None and words is None:
            return donor
        if self._beside is None:
            self._beside = Path(mkdtemp(prefix="plait-"))
            weakref.finalize(self, shutil.rmtree, self._beside, ignore_errors=True)
            side_files(fetch(self.plan, weights=False)).write(self._beside)
            if donor and (donor / "README.md").is_file():  # states the licence
                shutil.copy(donor / "README.md", self._beside)
        return self._beside

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return tensors(self.plan)

    def __len__(self) -> int:
        return len(self.plan.steps)

    def save(
        self,
        out: str | os.PathLike[str],
        *,
        force: bool = False,
        threads: int | None = None,
        copy_tokenizer: bool = True,
        card: bool = True,
        hash_inputs: bool = False,
        allow_nonfinite: bool = False,
        progress: Progress | None = None,
        stream: bool = False,
        resume: bool = False,
        stage: str | None = None,
        device: str | None = None,
        multi_gpu: bool = False,
        max_memory: int | None = None,
    ) -> Saved:
        """Write the model directory `out`: shards, index, config, tokenizer and side files, card, recipe, provenance.

        `force` replaces a model that is there; `threads`: one a core by default; `hash_inputs` records the SHA-256 of every
        input file; `allow_nonfinite` writes NaN and infinity too; `progress` is told the bytes done since its last call.
        `stream`: the weights of models on the Hub are read from there in parts, and not kept on this disk.
        `resume` goes on where a merge into `out` stopped; raises `OutputError` when it was a merge of something else.
        `stage`: the name under which a later run may know it again (`plait.multi`).
        `device`: where to compute, "cpu" by default, or "auto", "cuda", "cuda:1", "xpu", "mps"; with `multi_gpu` on all GPUs.
        `max_memory`: bytes that this process may hold; raises `PlaitError` when that is too little.
        """
        return save(
            self.plan,
            Path(out).expanduser(),
            force=force,
            threads=threads,
            copy_tokenizer=copy_tokenizer,
            write_card=card,
            hash_inputs=hash_inputs,
            allow_nonfinite=allow_nonfinite,
            progress=progress,
            stream=stream,
            resume=resume,
            stage=stage,
            device=device,
            multi_gpu=multi_gpu,
            max_memory=max_memory,
        )

    def to_transformers(self) -> Any:
        """The merge as a transformers model in memory, of the class that its config names; writes nothing."""
        try:
            import transformers
        except ImportError as error:
            raise PlaitError(
                "transformers is not installed", wanted="transformers", do='pip install "plait[run]"'
            ) from error
        config = dict(self.plan.config)
        kind = getattr(transformers, (config.get("architectures") or [""])[0], None)
        if kind is None:
            raise PlaitError(
                "transformers has no class for this model",
                wanted="a class that this transformers knows",
                found=str(config.get("architectures")),
                do="update transformers, or save the merge and load it with its own code",
            )
        weights = dict(self)
        try:
            return kind.from_pretrained(None, config=kind.config_class.from_dict(config), state_dict=weights)
        except Exception as error:  # of a strange config, transformers raises whatever comes up
            raise ModelError(
                "transformers cannot make a model of this merge",
                wanted="a config of a class that this transformers knows",
                found=f"{type(error).__name__}: {' '.join(str(error).split())}"[:200],
                do=f"mend the config.json of {self.plan.models[self.plan.donor].ref}, or install a newer transformers",
            ) from error
