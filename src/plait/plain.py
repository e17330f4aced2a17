"""Plans over named tensors that are no model of transformers': state dicts, changes of adapters.

There is no config, and nothing is brought into line: a tensor has the same name in each input. The first number in a name is its
layer, for gradients.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from plait import fit
from plait.arch import Architecture, Module, Stack
from plait.arch.names import numbered
from plait.checkpoint.source import Opened
from plait.errors import PlaitError, Problems, RecipeError, raise_all
from plait.plan import Options, Plan, make_plan
from plait.recipe import Recipe
from plait.strands import Model
from plait.types import ModelRef, TensorSpec


def anatomy(names: Iterable[str], specs: Mapping[str, TensorSpec]) -> Architecture:
    """Every text before a first number is a stack of layers; what has no number is loose. `specs` may lack some of the names."""
    stacks: defaultdict[str, defaultdict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    loose = []
    for name in names:
        if parts := numbered(name):
            stacks[parts[0]][parts[1]].append(parts[2])
        else:
            loose.append(name)
    modules = [
        Module(prefix.rstrip(".") or "layers", Stack(prefix, tuple(tuple(found[i]) for i in sorted(found))), (), ())
        if sorted(found) == list(range(len(found)))
        else Module(
            prefix.rstrip(".") or "layers", None, tuple(f"{prefix}{i}.{s}" for i in found for s in found[i]), ()
        )
        for prefix, found in stacks.items()
    ]
    if loose:
        modules.insert(0, Module("default", None, tuple(loose), ()))
    return Architecture(tuple(modules), specs, frozenset(), frozenset(), None, None, {}, frozenset())


def plan(
    recipe: Recipe,
    open: Callable[[ModelRef], Opened],
    models: Callable[[Sequence[Opened]], Sequence[Model]],
    options: Options,
) -> Plan:
    """Check a recipe, open what it names, and plan; `models` gives the opened inputs their anatomy. Raises every problem."""
    for key, given in (("slices", recipe.slices), ("modules", recipe.modules), ("tokenizer", recipe.tokenizer)):
        if given is not None:
            what, do = f"{key!r} is for models", "list the inputs under 'models:'"
            raise RecipeError(what, wanted="models", found=key, do=do, where=recipe.at(key))
    problems, warnings = fit.problems(recipe, lenient=options.lenient)
    raise_all(problems)
    opened = []
    for ref in recipe.references():
        try:
            opened.append(open(ref))
        except PlaitError as error:
            problems += error.problems if isinstance(error, Problems) else [error]
    raise_all(problems)
    return make_plan(recipe, models(opened), options).with_notes([*recipe.warnings, *warnings])
