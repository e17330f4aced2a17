"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
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


def prepared(recipe: Any, options: dict[str, Any]) -> Any:
    """The plan of a recipe under the options of `planning`, which are taken out of `options`."""
    from plait.methods import load
    from plait.prepare import prepare

    for file in options.pop("files"):
        load(file)

    return prepare(
        recipe,
        lenient=options.pop("lenient"),
        allow_crimes=options.pop("allow_crimes"),
        truncate_embeddings=options.pop("unsafe_truncate_embeddings"),
        expert_layout=options.pop("expert_layout"),
        shard_size=options.pop("out_shard_size"),
        seed=options.pop("random_seed"),
        cache=options.pop("cache"),
        lora_merge_dtype=options.pop("lora_merge_dtype"),
    )
