"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class Size(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic since click 8.3
    """A number of bytes: 5GB, 500MB, 1B (a billion), 2GiB."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from plait.types import parse_size

        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError:
            self.fail(f"{value!r} is not a size: write 5GB, 500MB, 1B (a billion bytes) or 2GiB", param, ctx)


def planning(function: F) -> F:
    """What every verb that plans a recipe takes."""
    for option in reversed(
        (
            click.option(
                "--load", "files", multiple=True, type=click.Path(), help="A Python file with methods of your own."
            ),
            click.option("--lenient", is_flag=True, help="Pass over what mergekit ignores, with a warning for each."),
            click.option("--allow-crimes/--no-allow-crimes", help="Mix architectures whose tensors fit."),
            click.option(
                "--unsafe-truncate-embeddings/--no-unsafe-truncate-embeddings",
                help="Cut vocabularies of different length to the shortest.",
            ),
            click.option(
                "--expert-layout",
                type=click.Choice(["split", "fused"]),
                default=None,
                help="A tensor for each expert, or one for all of a layer.  [default: as the base has it]",
            ),
            click.option(
                "--out-shard-size", type=Size(), default="5GB", show_default=True, help="Largest shard: 5GB, 500MB, 1B."
            ),
            click.option("--random-seed", type=int, default=None, help="Seed of dare and its kin.  [default: 0]"),
            click.option(
                "--transformers-cache", "cache", type=click.Path(), default=None, help="Folder of downloaded models."
            ),
            click.option(
                "--lora-merge-dtype",
                type=click.Choice(["float32", "float16", "bfloat16", "float64"]),
                default=None,
                help="Round weights with an adapter to this dtype.  [default: not before the merge]",
            ),
        )
    ):
        function = option(function)
    return function


def planned_how(options: dict[str, Any]) -> dict[str, Any]:
    """The options of `planning`, which are taken out of `options`, as `prepare` takes them; methods are loaded."""
    from plait.methods import load

    for file in options.pop("files"):
        load(file)
    return {
        "lenient": options.pop("lenient"),
        "allow_crimes": options.pop("allow_crimes"),
        "truncate_embeddings": options.pop("unsafe_truncate_embeddings"),
        "expert_layout": options.pop("expert_layout"),
        "shard_size": options.pop("out_shard_size"),
        "seed": options.pop("random_seed"),
        "cache": options.pop("cache"),
        "lora_merge_dtype": options.pop("lora_merge_dtype"),
    }


def prepared(recipe: Any, options: dict[str, Any]) -> Any:
    """The plan of a recipe under the options of `planning`, which are taken out of `options`."""
    from plait.prepare import prepare

    return prepare(recipe, **planned_how(options))


def saving(function: F) -> F:
    """What every verb that writes a merge takes."""
    for option in reversed(
        (
            click.option(
                "--copy-tokenizer/--no-copy-tokenizer", default=True, help="Tokenizer files into OUT.  [default: yes]"
            ),
            click.option(
                "--write-model-card/--no-write-model-card", default=True, help="README.md into OUT.  [default: yes]"
            ),
            click.option("--force", is_flag=True, help="Replace the model that is in OUT."),
            click.option("--allow-nonfinite", is_flag=True, help="Write NaN and infinity too."),
            click.option(
                "--hash-inputs", is_flag=True, help="Record the SHA-256 of every input file (reads them once more)."
            ),
            click.option(
                "--stream", is_flag=True, help="Read models on the Hub from there, in parts; no copy in the cache."
            ),
            click.option(
                "-j", "--num-threads", type=click.IntRange(1), default=None, help="Threads.  [default: one a core]"
            ),
            click.option(
                "--max-memory",
                type=Size(),
                default=None,
                help="Most memory that plait may hold, PyTorch included: 500MB.",
            ),
            click.option(
                "--device", metavar="NAME", default=None, help="cpu, auto, cuda, cuda:1, xpu, mps.  [default: cpu]"
            ),
            click.option("--cuda/--no-cuda", help="As --device cuda."),
            click.option("--multi-gpu/--no-multi-gpu", help="Share the tensors among all GPUs."),
            click.option("--gpu-rich/--no-gpu-rich", help="As --cuda --multi-gpu."),
            click.option("-v", "--verbose", count=True, help="Say more."),
            click.option("--quiet/--no-quiet", help="Say nothing but errors."),
            click.option("--json", "as_json", is_flag=True, help="The closing facts as JSON."),
        )
    ):
        function = option(function)
    return function


def saved_how(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `saving` as `Merge.save` takes them."""
    return {
        "force": options["force"],
        "threads": options["num_threads"],
        "copy_tokenizer": options["copy_tokenizer"],
        "card": options["write_model_card"],
        "hash_inputs": options["hash_inputs"],
        "allow_nonfinite": options["allow_nonfinite"],
        "stream": options["stream"],
        "max_memory": options["max_memory"],
        "device": options["device"] or ("cuda" if options["cuda"] or options["gpu_rich"] else None),
        "multi_gpu": bool(options["multi_gpu"] or options["gpu_rich"]),
    }


#: options of mergekit-yaml that have nothing left to do here: (spelling, takes a value)
IDLE = (
    ("--lora-merge-cache", True),
    ("--low-cpu-memory/--no-low-cpu-memory", False),
    ("--read-to-gpu/--no-read-to-gpu", False),
    ("--clone-tensors/--no-clone-tensors", False),
    ("--trust-remote-code/--no-trust-remote-code", False),
    ("--lazy-unpickle/--no-lazy-unpickle", False),
    ("--safe-serialization/--no-safe-serialization", False),
    ("--async-write/--no-async-write", False),
    ("--write-threads", True),
)
#: of these, the ones whose absence a user would want to hear of
TOLD = {
    "trust_remote_code": "no code of a model is ever run",
    "write_threads": "the threads of --num-threads write what they compute",
}


def idle(function: Any) -> Any:
    for spelling, valued in reversed(IDLE):
        kind: dict[str, Any] = {"type": str, "metavar": "X"} if valued else {"default": None}
        function = click.option(spelling, help="Nothing to do.", **kind)(function)
    return function
