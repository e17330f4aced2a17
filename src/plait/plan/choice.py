"""Which method makes a tensor: the recipe's own, its module's, or that of the first rule that fits; and the bricks around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from plait.arch.names import kind_of
from plait.brick import Brick, around
from plait.errors import PlanError
from plait.method import Method
from plait.methods.passthrough import passthrough
from plait.recipe import BrickUse, Recipe, Rule, Settings
from plait.strands import Band
from plait.types import ModelRef

Used = tuple[tuple[Brick, BrickUse], ...]


@dataclass(frozen=True)
class Choice:
    """How a tensor is made, before any number is known. `copy`: from which model it is taken as it is."""

    method: Method
    pre: Used = ()
    post: Used = ()
    rule: Rule | None = None
    copy: ModelRef | None = None

    @property
    def settings(self) -> tuple[tuple[str, Settings], ...]:
        """The rule's own settings, which go before all others."""
        return (("the rule", self.rule.parameters),) if self.rule else ()

    @property
    def bricks(self) -> Used:
        return (*self.pre, *self.post)

    @cached_property
    def woven(self) -> Method:
        """The method with its bricks around it."""
        if not self.bricks:
            return self.method
        return around(self.method, [brick for brick, _ in self.pre], [brick for brick, _ in self.post])


@dataclass
class Choices:
    """The choices of one recipe; `fitted` are the rules that fitted a tensor so far, `unruled` the tensors that none did."""

    recipe: Recipe
    methods: Mapping[str, Method]
    bricks: Mapping[str, Brick]
    fitted: set[int] = field(default_factory=set)
    unruled: list[str] = field(default_factory=list)
    _made: dict[tuple[int, str], Choice] = field(default_factory=dict)

    def of(self, name: str, layer: int | None, band: Band) -> Choice | None:
        """The choice for an output tensor of a band; None where the recipe wants every tensor to have a rule, and it has none."""
        recipe = self.recipe
        kind = kind_of(name) if recipe.rules else ""
        fits = (i for i, rule in enumerate(recipe.rules) if rule.when.fits(name, layer, kind, band.module))
        number = next(fits, len(recipe.rules))
        if number == len(recipe.rules) and recipe.otherwise.do == "error":
            self.unruled.append(name)
            return None
        self.fitted.add(number)
        if (number, band.method) not in self._made:
            self._made[number, band.method] = self._choice(number, band.method)
        return self._made[number, band.method]

    def problems(self) -> list[PlanError]:
        """The rules that fit no tensor, and the tensors that no rule fits although each must have one."""
        found = []
        for number, rule in enumerate(self.recipe.rules):
            if number not in self.fitted:
                what = "the rule fits no tensor that an earlier rule leaves"
                do = "mend its 'when', move it up, or delete it; 'plait plan' lists names, 'plait inspect' modules"
                found.append(PlanError(what, found=str(rule.when), do=do, where=rule.where))
        if self.unruled:
            more = f" and {len(self.unruled) - 3} more" if len(self.unruled) > 3 else ""
            found.append(
                PlanError(
                    f"no rule fits {len(self.unruled)} tensors",
                    wanted="a rule for each, since the recipe says 'otherwise: error'",
                    found=", ".join(self.unruled[:3]) + more,
                    do="add a rule, or write 'otherwise: default' or 'otherwise: copy base'",
                    where=self.recipe.at("otherwise"),
                )
            )
        return found

    def _choice(self, number: int, method: str) -> Choice:
        recipe = self.recipe
        rule = recipe.rules[number] if number < len(recipe.rules) else None
        source = rule.copy if rule else recipe.otherwise.model if recipe.rules else None
        if source is not None:
            base = recipe.base if source == "base" else source
            if not isinstance(base, ModelRef):
                where = rule.where if rule else recipe.at("otherwise")
                raise PlanError("'copy base' needs a base_model", found="none", do="add 'base_model:'", where=where)
            return Choice(passthrough, rule=rule, copy=base)
        pre = recipe.pre if rule is None or rule.pre is None else rule.pre
        post = recipe.post if rule is None or rule.post is None else rule.post
        return Choice(self.methods[(rule.method if rule else None) or method], self._used(pre), self._used(post), rule)

    def _used(self, uses: Sequence[BrickUse]) -> Used:
        return tuple((self.bricks[use.name], use) for use in uses)
