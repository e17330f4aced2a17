"""Whether a recipe and its methods fit together: everything that can be said without opening a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from plait.bricks import bricks
from plait.errors import PlaitError, RecipeError, Where, nearest
from plait.method import Method, Parameter
from plait.methods import registry
from plait.recipe import Recipe, Settings, Slice, Source
from plait.recipe.grammar import warning
from plait.recipe.setting import Setting, coerce


def problems(
    recipe: Recipe,
    *,
    lenient: bool = False,
    methods: Mapping[str, Method] | None = None,
) -> tuple[list[PlaitError], list[str]]:
    """(errors, warnings) of a recipe against its methods, which are looked up in `methods`, by default the registry.

    A parameter that no method has, or that stands where it is not looked at, is an error, or a warning when lenient. One
    that only other methods have is no slip of the pen but a leftover of another `merge_method`: a warning.
    """
    methods = registry() if methods is None else methods
    unknown = [_unknown(name, methods, where) for name, where in recipe.methods().items() if name not in methods]
    if unknown:
        return [*unknown, *_bricks(recipe)], []
    used = [methods[name] for name in recipe.methods()]
    ignored = list(_never_read(recipe, used, methods))
    found: list[PlaitError] = [*_values(recipe, used), *_bricks(recipe)]
    warnings = [warning(error, "") for error in _leftover(recipe, used, methods)]
    told = set()
    for _, piece, scopes in recipe.resolved():
        method = methods[piece.method or recipe.method]
        if (method.name, piece.base) not in told:
            told.add((method.name, piece.base))
            found += _base(recipe, piece, method)
        found += _inputs(piece, method)
        found += _missing(piece, scopes, method)
        warnings += [warning(error, "") for error in _likely_meant(piece, scopes, used)]
    warnings += [warning(error, "") for error in _averaged(recipe, methods)]
    if lenient:
        return found, [*(warning(error) for error in ignored), *warnings]
    return [*found, *ignored], warnings


def _unknown(name: str, methods: Mapping[str, Method], where: Where | None) -> RecipeError:
    near = nearest(name, methods)
    do = f"did you mean {near}?" if near else "write one of them; 'plait methods' tells what each does."
    do += " One of your own is known with --load FILE"
    return RecipeError(f"the merge method {name!r} is unknown", wanted=", ".join(methods), do=do, where=where)


def _bricks(recipe: Recipe) -> Iterator[RecipeError]:
    """What is wrong with the bricks before and after the methods."""
    known = bricks()
    for at, use in recipe.bricks():
        brick = known.get(use.name)
        if brick is None or brick.at != at:
            fitting = [b.name for b in known.values() if b.at == at]
            near = nearest(use.name, fitting)
            do = f"move it to '{brick.at}:'" if brick else f"did you mean {near}?" if near else "write one of them"
            what = f"{use.name} does not stand {'before' if at == 'pre' else 'after'} a method" if brick else ""
            what = what or f"the brick {use.name!r} is unknown"
            yield RecipeError(what, wanted=", ".join(fitting), do=do, where=use.where)
            continue
        own = {p.name: p for p in brick.parameters}
        for name, setting in use.parameters.items():
            if name not in own:
                near = nearest(name, own)
                do = f"did you mean {near!r}?" if near else "delete it"
                what = f"{brick.name} has no parameter {name!r}"
                yield RecipeError(what, wanted=", ".join(own) or "none", do=do, where=setting.where)
            else:
                yield from _range(own[name], setting)
        wanted = (p for p in brick.parameters if p.required and not p.per_model)  # models may have theirs
        for name in (p.name for p in wanted if p.name not in use.parameters):
            yield _needs(f"{brick.name} needs {name!r}", own[name], f"write {use.name}: {{{name}: …}}", use.where)


def parameter_schemas(methods: Mapping[str, Method]) -> dict[str, dict[str, Any]]:
    """Method -> parameter -> JSON Schema of one value: what `plait.recipe.schema` takes."""
    return {name: {p.name: _schema(p) for p in method.parameters} for name, method in methods.items()}


def _schema(parameter: Parameter) -> dict[str, Any]:
    kinds = {float: "number", int: "integer", bool: "boolean", str: "string"}
    schema: dict[str, Any] = {"type": kinds[parameter.kind], "description": parameter.doc}
    if not parameter.required and parameter.default is not None:
        schema["default"] = parameter.default
    bounds = {"minimum": parameter.low, "maximum": parameter.high, "enum": list(parameter.choices) or None}
    return schema | {key: value for key, value in bounds.items() if value is not None}


def _scopes(recipe: Recipe) -> Iterator[tuple[str, Settings]]:
    """(kind of scope, settings) for every `parameters:` of the recipe, in order."""
    for _, part in recipe.parts():
        for source in part.models or ():
            yield "model", source.parameters
        for piece in part.slices or ():
            for source in piece.sources:
                yield "model", source.parameters
            yield "slice", piece.parameters
        yield "module", part.parameters
    for rule in recipe.rules:
        yield "rule", rule.parameters
    yield "recipe", recipe.parameters


def _never_read(recipe: Recipe, used: Sequence[Method], methods: Mapping[str, Method]) -> Iterator[RecipeError]:
    known, of_bricks = _known(used), _of_bricks(recipe)
    idle = [name for method in used for name in method.idle]
    names = " and ".join(method.name for method in used)
    for scope, settings in _scopes(recipe):
        for name, setting in settings.items():
            if name in known and scope == "model" and not any(p.per_model for p in known[name]):
                what = f"{name!r} has one value for all models: under a single model it is not looked at"
                do = "move it to 'parameters:' at the top level"
                yield RecipeError(what, found="it under a model", do=do, where=setting.where)
            elif name in of_bricks:
                if scope != "model":
                    brick, _, own = name.partition(".")
                    what = f"{name!r} stands under a model, for that model alone"
                    do = f"for all models, write {brick}: {{{own}: …}} under 'pre:' or 'post:'"
                    yield RecipeError(what, found=f"it at the level of the {scope}", do=do, where=setting.where)
            elif name not in known and name not in idle and name not in (anywhere := _anywhere(methods)):
                near = nearest(name, [*known, *idle, *of_bricks]) or nearest(name, anywhere)
                yield RecipeError(
                    f"{names} {'has' if len(used) == 1 else 'have'} no parameter {name!r}",
                    wanted=", ".join(known) or "no parameters at all",
                    do=f"did you mean {near!r}?" if near else "delete it",
                    where=setting.where,
                )


def _anywhere(methods: Mapping[str, Method]) -> set[str]:
    """The parameters that any method has: for these all of them are loaded."""
    return {p.name for m in methods.values() for p in m.parameters}


def _known(used: Sequence[Method]) -> dict[str, list[Parameter]]:
    """Name -> the parameters of that name that the recipe's methods have."""
    known: dict[str, list[Parameter]] = {}
    for method in used:
        for parameter in method.parameters:
            known.setdefault(parameter.name, []).append(parameter)
    return known


def _of_bricks(recipe: Recipe) -> dict[str, list[Parameter]]:
    """What may stand under a model for the recipe's bricks: `BRICK.PARAMETER`, of parameters with a value for each model."""
    used = {use.name: bricks()[use.name] for _, use in recipe.bricks() if use.name in bricks()}
    return {f"{name}.{p.name}": [p] for name, brick in used.items() for p in brick.parameters if p.per_model}


def _leftover(recipe: Recipe, used: Sequence[Method], methods: Mapping[str, Method]) -> Iterator[RecipeError]:
    """One finding for each parameter that these methods do not have and another one has."""
    told = {*_known(used), *(name for method in used for name in method.idle)}
    names = " and ".join(method.name for method in used)
    for _, settings in _scopes(recipe):
        for name, setting in settings.items():
            if name in told:
                continue
            if having := [m.name for m in methods.values() if any(p.name == name for p in m.parameters)]:
                told.add(name)
                what = f"{names} {'has' if len(used) == 1 else 'have'} no parameter {name!r}, so it changes nothing"
                wanted = ", ".join(_known(used)) or "no parameters at all"
                do = f"delete it; {', '.join(having)} have it"
                yield RecipeError(what, wanted=wanted, do=do, where=setting.where)


def _values(recipe: Recipe, used: Sequence[Method]) -> Iterator[RecipeError]:
    known = {**_known(used), **_of_bricks(recipe)}
    for scope, settings in _scopes(recipe):
        for name, setting in settings.items():
            looked_at = [p for p in known.get(name, ()) if p.per_model or scope != "model"]
            wrong = [list(_range(parameter, setting)) for parameter in looked_at]
            if wrong and all(wrong):  # a value that one of the methods takes may be meant for it
                yield from wrong[0]


def _range(parameter: Parameter, setting: Setting) -> Iterator[RecipeError]:
    for value, where in setting.points():
        if not _fits(value, parameter):
            do = "write 1 or less, not a percentage" if parameter.high == 1 else f"write {parameter.range}"
            what = f"{parameter.name} cannot be {value!r}"
            yield RecipeError(what, wanted=parameter.range, found=repr(value), do=do, where=where)
            return


def _fits(value: object, parameter: Parameter) -> bool:
    try:
        value = coerce(value, parameter.kind)
    except ValueError:
        return False
    if isinstance(value, str):
        return not parameter.choices or value in parameter.choices
    return (parameter.low is None or value >= parameter.low) and (parameter.high is None or value <= parameter.high)


def _base(recipe: Recipe, piece: Slice, method: Method) -> Iterator[RecipeError]:
    if method.base == "required" and piece.base is None:
        do = "add 'base_model:' and the model that the others come from"
        where = recipe.methods().get(method.name)
        yield RecipeError(f"{method.name} needs a base_model", found="none", do=do, where=where)


def _models(piece: Slice, method: Method) -> list[Source]:
    """The sources that count as the method's inputs: all but a base that the method treats as one."""
    return [source for source in piece.sources if method.base == "ignored" or source.model != piece.base]


def _inputs(piece: Slice, method: Method) -> Iterator[RecipeError]:
    if method.base == "required" and piece.base and all(source.model != piece.base for source in piece.sources):
        do = f"list {piece.base} among the sources of the slice, with its layer_range"
        what = "the base_model is not among the sources of a slice"
        found = ", ".join(str(source.model) for source in piece.sources)
        yield RecipeError(what, wanted=str(piece.base), found=found, do=do, where=piece.where)
    fewest, most = method.inputs
    models = _models(piece, method)
    baseless = method.base == "required" and piece.base is None  # said already, and then the count means nothing
    if baseless or (fewest <= len(models) and (most is None or len(models) <= most)):
        return
    wanted = f"at least {fewest}" if most is None else str(fewest) if fewest == most else f"{fewest} to {most}"
    besides = "" if method.base == "ignored" or piece.base is None else " besides the base"
    do = "add models" if len(models) < fewest else "remove models, or choose a method that takes more"
    if len(models) == len(piece.sources) == fewest + 1 and piece.sources[-1].model == piece.base:
        do = "remove 'base_model:', or list only that model: here the base counts as one more model"
    found = f"{len(models)}: {', '.join(str(source.model) for source in models)}" if models else "none"
    what = f"{method.name} takes {wanted} model{'' if wanted == '1' else 's'}{besides}"
    yield RecipeError(what, wanted=wanted, found=found, do=do, where=piece.where)


def _missing(piece: Slice, scopes: tuple[Settings, ...], method: Method) -> Iterator[RecipeError]:
    shared = {name for settings in scopes for name in settings}
    for parameter in method.parameters:
        if not parameter.required or parameter.name in shared:
            continue
        name = parameter.name
        if not parameter.per_model:
            misplaced = next((s.parameters[name] for s in piece.sources if name in s.parameters), None)
            do = f"move '{name}:' from the model to" if misplaced else f"add '{name}:' under"
            where = misplaced.where if misplaced else piece.where
            yield _needs(f"{method.name} needs {name!r}", parameter, f"{do} 'parameters:' at the top level", where)
            continue
        for source in _models(piece, method):
            if name not in source.parameters:
                do = f"add '{name}:' under 'parameters:' of the model, or at the top level for all models"
                yield _needs(f"{method.name} needs {name!r} for {source.model}", parameter, do, source.where)


def _needs(what: str, parameter: Parameter, do: str, where: Where | None) -> RecipeError:
    return RecipeError(what, wanted=f"{parameter.range}: {parameter.doc}", do=do, where=where)


def _likely_meant(piece: Slice, scopes: tuple[Settings, ...], used: Sequence[Method]) -> Iterator[RecipeError]:
    """What is allowed and does not do what many expect."""
    per_model = {p.name for method in used for p in method.parameters if p.per_model}
    for name, setting in ((n, s) for settings in scopes for n, s in settings.items() if n in per_model):
        points = setting.entries[0].points
        if len(setting.entries) == 1 and len(points) == len(piece.sources) > 1:
            what = f"{name}: a list is a gradient over the layers, the same for each model, not one value a model"
            do = f"put '{name}:' under each model to give each its own"
            found = f"{len(points)} values, and {len(points)} models"
            yield RecipeError(what, found=found, do=do, where=setting.where)


def _averaged(recipe: Recipe, methods: Mapping[str, Method]) -> Iterator[RecipeError]:
    for _, part in recipe.parts():
        method = methods[part.method or recipe.method]
        listed = [source.model for source in part.models or ()]
        if method.base == "ignored" and listed and recipe.base and recipe.base not in listed:
            what = f"{method.name} has no base: the base_model is merged in as one more model"
            found, do = str(recipe.base), "remove it, or list it with the models"
            yield RecipeError(what, found=found, do=do, where=recipe.at("base_model"))
