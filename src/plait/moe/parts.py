"""What a model gives to a mixture: the mlp of each of its layers, and whether it fits a base."""

from __future__ import annotations

from dataclasses import dataclass

from plait.arch import Stack
from plait.errors import PlanError, Where
from plait.moe.families import DENSE
from plait.strands import Model

PREFIX = "model.layers."  # of every class in the table


@dataclass(frozen=True)
class Mlp:
    """The mlp of a model's layers: the suffixes of (gate, up, down), and its sizes."""

    stack: Stack
    suffixes: tuple[str, str, str]
    wide: int
    hidden: int
    act: str

    @property
    def others(self) -> tuple[str, ...]:
        """What else stands beside the three in some layer: biases."""
        parent = self.suffixes[0].split(".")[0] + "."
        found = (s for layer in self.stack.layers for s in layer if s.startswith(parent) and s not in self.suffixes)
        return tuple(dict.fromkeys(found))


def mlp_of(model: Model, where: Where | None) -> Mlp:
    """A model's mlp; raises `PlanError` unless each layer has one of the kind that becomes an expert."""
    stacks = [module.stack for module in model.arch.modules if module.stack]
    specs = model.opened.checkpoint.specs
    for stack in stacks if len(stacks) == 1 and stacks[0].prefix == PREFIX else ():
        for gate, up, down in dict.fromkeys(dense.mlp for dense in DENSE.values()):
            suffixes = (f"{gate}.weight", f"{up}.weight", f"{down}.weight")
            layers = [[specs.get(stack.name(i, suffix)) for suffix in suffixes] for i in range(stack.count)]
            shapes = {tuple(spec.shape if spec else () for spec in layer) for layer in layers}
            first, second, third = next(iter(shapes))
            if len(shapes) == 1 and len(first) == 2 and first == second and third == first[::-1]:
                act = str(model.opened.config.get("hidden_act", "silu"))
                return Mlp(stack, suffixes, *first, act)
    raise PlanError(
        f"{model.ref} has no mlp that can be an expert",
        wanted=f"gate, up and down projections of one size in each of {PREFIX}*",
        found=", ".join(stack.prefix + "*" for stack in stacks) or "no numbered layers",
        do="take a dense model of the type " + ", ".join(DENSE),
        where=where,
    )


def unlike(mlp: Mlp, base: Mlp, wide: int | None) -> tuple[str, str] | None:
    """(wanted, found) of an mlp that cannot be an expert in the base's layers; `wide`: the other experts' width, if it counts."""
    pairs = [
        (f"{base.stack.count} layers", f"{mlp.stack.count} layers"),
        (f"hidden size {base.hidden}", f"hidden size {mlp.hidden}"),
        (f"activation {base.act}", f"activation {mlp.act}"),
        ("an mlp without biases", "an mlp with " + (", ".join(mlp.others)) if mlp.others else "an mlp without biases"),
    ]
    if wide is not None:
        pairs.append((f"an mlp {wide} wide", f"an mlp {mlp.wide} wide"))
    wrong = [(wanted, found) for wanted, found in pairs if wanted != found]
    return (", ".join(w for w, _ in wrong), ", ".join(f for _, f in wrong)) if wrong else None
