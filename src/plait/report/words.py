"""What a merge says beside its weights: whether tokens, template, config and tensors belong to each other and to its parents."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from plait.checkpoint.directory import read_json
from plait.diff.comparison import Comparison
from plait.diff.phrases import count
from plait.diff.sides import Side
from plait.diff.verdicts import Verdict
from plait.diff.vocabulary import Words, words
from plait.output.sidefiles import tokenizer_donor
from plait.report.origin import Origin
from plait.report.weights import some
from plait.vocabulary.read import read_tokens

#: how templates write special tokens
_MARKED = re.compile(r"<\|[^|<>\s]{1,60}\|>|</?[a-z_]{1,40}>|\[/?[A-Z_]{2,40}\]")


def verdicts(origin: Origin, found: Comparison) -> Iterator[Verdict]:
    """All that the files beside the weights say, and which tensors are there."""
    yield from _tensors(origin)
    yield from _ties(origin.out)
    own = words(origin.out)
    parents = [(side, words(side)) for side in found.sides[:-1]]
    yield from _tokens(origin, own, parents)
    yield from _ends(origin.out, own)
    yield from _templates(origin.out, own, parents)


def _tensors(origin: Origin) -> Iterator[Verdict]:
    """Tensors that the recipe makes and the merge lacks, and what of the parents it was made without."""
    plan, specs, name = origin.plan, origin.out.checkpoint.specs, origin.out.name
    if plan is None:
        return
    if lost := [n for n in plan.specs if n not in specs]:
        yield Verdict("tensors", "bad", f"{name} lacks {count(len(lost), 'tensor')} that its recipe makes", some(lost))
    if more := [n for n in specs if n not in plan.specs]:
        yield Verdict(
            "tensors", "note", f"{name} has {count(len(more), 'tensor')} that its recipe does not make", some(more)
        )
    if other := [n for n, spec in plan.specs.items() if n in specs and specs[n].shape != spec.shape]:
        shown = some([f"{n}: {list(specs[n].shape)}, not {list(plan.specs[n].shape)}" for n in other])
        yield Verdict(
            "tensors", "bad", f"{count(len(other), 'tensor')} of {name} have another shape than its recipe makes", shown
        )
    for d in plan.dropped:
        says = f"{count(len(d.names), 'tensor')} of {plan.models[d.model].ref} are not in {name}"
        yield Verdict("tensors", "note", says, f"{d.reason}: {some(d.names)}")
    if not lost and not other and not plan.dropped:
        yield Verdict(
            "tensors", "good", "no tensor is lost", f"{count(len(plan.specs), 'tensor')}, as the recipe makes them"
        )


def _ties(out: Side) -> Iterator[Verdict]:
    """Head and embedding: what the config says of them, and what is in the files."""
    specs = out.checkpoint.specs
    for head, embedding in out.arch.tied.items():
        if head not in specs or embedding not in specs:
            yield Verdict("tied", "note", f"{head} is tied to {embedding}", "as the config says; it is stored once")
        elif not _equal(out, head, embedding):
            says = f"{head} and {embedding} differ, and the config ties them: a loader drops one of them"
            yield Verdict("tied", "bad", says, '"tie_word_embeddings": true')
    absent = out.arch.head
    if absent and absent not in specs and absent not in out.arch.tied:
        says = f"{out.name} has no output head: {absent} is missing, and the config does not tie it"
        yield Verdict("tied", "bad", says, '"tie_word_embeddings": false; a loader fills it with random numbers')


def _equal(out: Side, one: str, other: str) -> bool:
    import torch

    specs = out.checkpoint.specs
    if specs[one].shape != specs[other].shape:
        return False
    rows = range(0, specs[one].matrix[0], 1024)
    ends = [(at, min(at + 1024, specs[one].matrix[0])) for at in rows]
    return all(torch.equal(out.checkpoint.read(one, at), out.checkpoint.read(other, at)) for at in ends)


def _tokens(origin: Origin, own: Words, parents: Sequence[tuple[Side, Words]]) -> Iterator[Verdict]:
    """Whether the rows of the embedding are the rows of these tokens."""
    out = origin.out
    rows = out.checkpoint.specs[out.arch.embedding].shape[0] if out.arch.embedding else None
    if own.tokens is None:
        if any(theirs.tokens is not None for _, theirs in parents):
            yield Verdict(
                "vocabulary", "bad", f"{out.name} has no tokenizer.json, and its parents have one", "no text can go in"
            )
        return
    if rows is not None and (high := [t for t, at in own.tokens.items() if at >= rows]):
        says = (
            f"{count(len(high), 'token')} of {out.name} have ids beyond its embedding: they crash, or read other memory"
        )
        yield Verdict("vocabulary", "bad", says, f"{rows} rows; {some([f'{t!r}: {own.tokens[t]}' for t in high])}")
    whose, wanted = _wanted(origin, parents)
    if wanted is None:
        return
    moved = [token for token, at in wanted.items() if own.tokens.get(token) != at and (rows is None or at < rows)]
    if moved:
        says = f"the tokenizer of {out.name} is not that of its weights, {whose}: {count(len(moved), 'token')} have other ids"
        shown = some([f"{t!r}: row {wanted[t]}, but id {own.tokens.get(t, 'none')}" for t in moved])
        yield Verdict("vocabulary", "bad", says, shown)
    else:
        yield Verdict(
            "vocabulary", "good", f"each token has the row that it has in {whose}", f"{count(len(wanted), 'token')}"
        )


def _wanted(origin: Origin, parents: Sequence[tuple[Side, Words]]) -> tuple[str, Mapping[str, int] | None]:
    """Whose rows the embedding has, and the token of each."""
    if origin.plan is None:
        return parents[0][0].name, parents[0][1].tokens
    if origin.plan.vocabulary:
        return "the recipe's vocabulary", origin.plan.vocabulary.tokens.ids
    donor = origin.plan.models[tokenizer_donor(origin.plan)].opened
    tokens = read_tokens(donor.folder)
    return str(donor.ref), tokens.ids if tokens else None


def _ends(out: Side, own: Words) -> Iterator[Verdict]:
    """The id that ends a text: the config's, and the tokenizer's."""
    if own.tokens is None or out.folder is None or "eos_token" not in own.special:
        return
    path = out.folder / "generation_config.json"
    known = [_ids(read_json(path)) if path.is_file() else [], _ids(out.checkpoint.config)]
    named = next((ids for ids in known if ids), [])
    eos = own.tokens.get(own.special["eos_token"])
    if named and eos not in named:
        says = f"texts may not end: {own.special['eos_token']} is the tokenizer's end of text, and the config names another id"
        yield Verdict("vocabulary", "note", says, f"id {eos}; eos_token_id: {', '.join(map(str, named))}")


def _ids(config: Mapping[str, Any]) -> list[int]:
    named = config.get("eos_token_id")
    return [i for i in (named if isinstance(named, list) else [named]) if isinstance(i, int)]


def _templates(out: Side, own: Words, parents: Sequence[tuple[Side, Words]]) -> Iterator[Verdict]:
    """The chat template against the parents', and against the tokens that it writes."""
    having = [(side.name, theirs.template) for side, theirs in parents if theirs.template]
    if having and not own.template:
        names = " and ".join(name for name, _ in having)
        yield Verdict(
            "template",
            "note",
            f"{out.name} has no chat template; {names} has one",
            "write chat_template: into the recipe",
        )
    if len({text for _, text in having}) > 1:
        same = [name for name, text in having if text == own.template]
        says = f"the chat templates of {' and '.join(name for name, _ in having)} differ"
        yield Verdict("template", "note", says, f"{out.name} has that of {' and '.join(same) or 'none of them'}")
    if not own.template or own.tokens is None:
        return
    special = {token for _, theirs in parents for token in theirs.tokens or ()}
    lost = [t for t in dict.fromkeys(_MARKED.findall(own.template)) if t in special and t not in own.tokens]
    if lost:
        says = f"the chat template writes {some(lost)}, which {out.name} has no token for"
        yield Verdict("template", "bad", says, "a parent has it; the model would read it letter by letter")
