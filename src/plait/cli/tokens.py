"""`plait tokens`: another model's tokenizer, fewer tokens, more tokens, more rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from plait.cli import _show, _work
from plait.cli._options import Size, idle, saving

#: options of mergekit-tokensurgeon that have nothing to do here
_WITHOUT = ("allow_crimes", "unsafe_truncate_embeddings", "batch_size")


@click.group()
def command() -> None:
    """Give a model other tokens. All other tensors are copied as they are."""


def shared(function: Any) -> Any:
    """What all verbs take."""
    for option in reversed(
        (
            click.option("--pad-to-multiple-of", type=click.IntRange(1), default=1, help="Of the rows.  [default: 1]"),
            click.option("--out-shard-size", type=Size(), default="5GB", show_default=True, help="Largest shard."),
            click.option("--transformers-cache", "cache", type=click.Path(), default=None, help="Downloaded models."),
            click.option("--resume", is_flag=True, help="Go on where a run into OUT stopped."),
            click.option("--random-seed", type=int, default=0, show_default=True, help="Of randn, john_hewitt, noise."),
        )
    ):
        function = option(function)
    return idle(saving(function))


def rows(default: str) -> Callable[[Any], Any]:
    """How rows are made."""

    def give(function: Any) -> Any:
        for option in reversed(
            (
                click.option(
                    "-a", "--approximation-method", "method", default=default, show_default=True,
                    help="omp, common_interpolation, landmark_pca, subword, mean, zero, randn, john_hewitt.",
                ),
                click.option(
                    "-s", "--subword-method", default="mean", show_default=True,
                    type=click.Choice(["mean", "sum", "weighted_mean", "first_last"]), help="Of -a subword.",
                ),
                click.option("-nvn", "--new-vocab-noise", "noise", type=float, default=0.0, help="Noise on new rows."),
                click.option("-nvs", "--new-vocab-scale", "scale", type=float, default=1.0, help="Factor on new rows."),
            )
        ):  # fmt: skip
            function = option(function)
        return function

    return give


@command.command("transplant")
@click.argument("model")
@click.argument("donor")
@click.argument("out", type=click.Path())
@rows("omp")
@click.option(
    "-k", "--k", "k", type=click.IntRange(1), default=64, show_default=True, help="Shared tokens for a new row."
)
@click.option(
    "-w", "--weight-scheme", default="distance_proportional", show_default=True,
    type=click.Choice(["distance_proportional", "barycentric", "least_squares"]), help="Of -a common_interpolation.",
)  # fmt: skip
@click.option("-c", "--cosine-similarity/--no-cosine-similarity", help="Nearest by angle, for common_interpolation.")
@click.option(
    "-pm", "--prefix-match", type=click.Choice(["lm_head", "embed", "yes", "no"]), default="no", show_default=True,
    help="The longest known beginning of a token stands in for it.",
)  # fmt: skip
@click.option(
    "-bm", "--byte-match", type=click.Choice(["lm_head", "embed", "yes", "no"]), default="no", show_default=True,
    help="<0x41> and A stand for each other.",
)  # fmt: skip
@click.option("--magikarp/--no-magikarp", help="Tokens that were hardly trained are no measure for others.")
@click.option("--batch-size", type=int, default=None, help="Nothing to do: blocks are as large as fits.")
@click.option("--lora-merge-dtype", default=None, help="Round weights with an adapter to this dtype.")
@click.option("--allow-crimes/--no-allow-crimes", help="Nothing to do.")
@click.option("--unsafe-truncate-embeddings/--no-unsafe-truncate-embeddings", help="Nothing to do.")
@shared
def transplant(model: str, donor: str, out: str, **options: Any) -> None:
    """Write MODEL with the tokenizer of DONOR to OUT. Takes the options of mergekit-tokensurgeon."""
    from plait.tokens.transplant import transplant

    _show.notes([f"--{n.replace('_', '-')} has nothing to do here" for n in _WITHOUT if options[n]], options["quiet"])
    how = _how(options, "k", "weight_scheme", "cosine_similarity")
    passed = {key: options[key] for key in ("prefix_match", "byte_match", "magikarp", "lora_merge_dtype")}
    _finish(out, options, lambda more: transplant(model, donor, how, **passed, **more))


@command.command("trim")
@click.argument("model")
@click.argument("out", type=click.Path())
@click.option(
    "--keep", "lists", multiple=True, type=click.Path(dir_okay=False, exists=True), help="Tokens, one a line."
)
@click.option(
    "--text", "texts", multiple=True, type=click.Path(dir_okay=False, exists=True), help="Keep what it needs."
)
@click.option("--unused", is_flag=True, help="Leave out the rows that no token has.")
@shared
def trim(model: str, out: str, lists: tuple[str, ...], texts: tuple[str, ...], unused: bool, **options: Any) -> None:
    """Write MODEL to OUT with the tokens of a list, or those that some texts need.

    Bytes, single letters, special tokens and the parts of kept tokens stay. Such texts are read as before.
    """
    from plait.tokens.trim import listed, trim

    keep = [token for path in lists for token in listed(Path(path))]
    paths = [Path(text) for text in texts]
    _finish(out, options, lambda more: trim(model, keep=keep, texts=paths, unused=unused, **more))


@command.command("add")
@click.argument("model")
@click.argument("out", type=click.Path())
@click.argument("tokens", nargs=-1)
@click.option(
    "--tokens-file", type=click.Path(dir_okay=False, exists=True), default=None, help="More tokens, one a line."
)
@click.option("--like", metavar="TOKEN", default=None, help="New rows are copies of this token's.")
@click.option("--special", is_flag=True, help="Decoding may leave them out.")
@rows("mean")
@shared
def add(
    model: str,
    out: str,
    tokens: tuple[str, ...],
    tokens_file: str | None,
    like: str | None,
    special: bool,
    **options: Any,
) -> None:
    """Write MODEL with more TOKENS to OUT."""
    from plait.tokens.grow import add
    from plait.tokens.trim import listed

    texts = [*tokens, *(listed(Path(tokens_file)) if tokens_file else ())]
    _finish(out, options, lambda more: add(model, texts, _how(options), like=like, special=special, **more))


@command.command("pad")
@click.argument("model")
@click.argument("out", type=click.Path())
@rows("mean")
@shared
def pad(model: str, out: str, **options: Any) -> None:
    """Write MODEL to OUT with a multiple of so many rows (--pad-to-multiple-of)."""
    from plait.tokens.grow import pad

    _finish(out, options, lambda more: pad(model, more.pop("pad_to_multiple_of"), _how(options), **more))


def _how(options: dict[str, Any], *names: str) -> Any:
    from plait.tokens.space import Options

    given = {name: options[name] for name in ("method", "subword_method", "noise", "scale", *names)}
    return Options(**given, seed=options["random_seed"])


def _finish(out: str, options: dict[str, Any], plan: Callable[[dict[str, Any]], Any]) -> None:
    _work.greet(options)
    more = {key: options[key] for key in ("pad_to_multiple_of", "cache")}
    made = plan({**more, "shard_size": options["out_shard_size"]})
    saved = _work.save(made, out, options, resume=options["resume"])
    if options["as_json"]:
        tokens = made.vocabulary
        _show.emit_json({**_work.facts(saved), "vocabulary": len(tokens.tokens.ids), "rows": tokens.rows})
