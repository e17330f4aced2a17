"""Which tensor of the base an adapter's name means.

Most often its own. Prefixes differ between a model and its text part, and between versions of transformers; then the longest
end of the name decides, if it fits one tensor alone.
"""

from __future__ import annotations

from collections.abc import Iterable

#: how checkpoints call the folder of the experts that transformers holds packed in `experts`
_EXPERTS = (".mlp.experts", ".block_sparse_moe.experts", ".feed_forward.experts", ".mixer.experts")
#: packed parameter -> the matrices of one expert that lie in it one after the other, in the spellings of checkpoints
SPLIT = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
    "up_proj": (("up_proj",),),
}


#: spellings of adapters -> those that a base may have instead
_SPELLINGS = (
    *((".mlp.gate.", ".block_sparse_moe.gate."), (".mlp.router.", ".block_sparse_moe.gate.")),
    *((".block_sparse_moe.gate.", ".mlp.gate."), (".block_sparse_moe.experts.", ".mlp.experts.")),
)
#: packed parameter -> what some checkpoints call it, beside the folder of the experts (Granite)
_PACKED = {"gate_up_proj": "input_linear.weight", "down_proj": "output_linear.weight"}


class Names:
    """The names of a base's tensors, findable by their ends."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = dict.fromkeys(names)
        self._ends: dict[str, list[str]] | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def find(self, name: str) -> str | None:
        """The tensor that `name` means, also where the base has an older spelling; None when there is none, or more than one."""
        spelt = [name, *(name.replace(*pair) for pair in _SPELLINGS if pair[0] in name)]
        return next((found for each in spelt if (found := self._spelt(each))), None)

    def _spelt(self, name: str) -> str | None:
        if name in self._names:
            return name
        if self._ends is None:
            self._ends = {}
            for known in self._names:
                for end in _ends(known):
                    self._ends.setdefault(end, []).append(known)
        for end in _ends(name):
            if found := self._ends.get(end):
                parts = set(name.split("."))
                alike = [len(parts & set(known.split("."))) for known in found]
                best = max(alike)
                return found[alike.index(best)] if alike.count(best) == 1 else None
        return None

    def packed(self, module: str, parameter: str) -> str | None:
        """The tensor of a packed parameter of a module; None when its experts have a tensor each."""
        other = f"{module.removesuffix('.experts')}.{_PACKED.get(parameter, parameter)}"
        return self.find(f"{module}.{parameter}") or (self.find(other) if module.endswith(".experts") else None)

    def experts(self, module: str, parameter: str) -> tuple[tuple[str, ...], ...]:
        """For each expert the tensors that make its part of a packed parameter; () when they are not there."""
        for spelling in SPLIT.get(parameter, ()):
            for folder in _EXPERTS:
                first = self.find(f"{module.replace(_EXPERTS[0], folder)}{(end := f'.0.{spelling[0]}.weight')}")
                at = (first or "").removesuffix(end)
                made: list[tuple[str, ...]] = []
                while all(f"{at}.{len(made)}.{part}.weight" in self for part in spelling):
                    made.append(tuple(f"{at}.{len(made)}.{part}.weight" for part in spelling))
                if made:
                    return tuple(made)
        return ()


def _ends(name: str) -> list[str]:
    """The ends of a name that can stand for it, longest first: two parts at least, the layer's number among them."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    last = min(numbers[0] - 1 if numbers else len(parts), len(parts) - 2)
    return [".".join(parts[i:]) for i in range(last + 1)]
