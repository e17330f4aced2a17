"""The newer elementwise methods against a slow numpy version of each, and what they do at the edges."""

from __future__ import annotations

import pytest
import torch

from methods.oracles_elementwise import ORACLES
from methods.settings import values
from methods.test_edges import merge, refusal
from methods.test_oracles import KINDS, NAME, apart, inputs
from plait.compute import merge_tensors
from plait.method import bind
from plait.methods import registry

#: parameters to try; a number stands for all models, a tuple is cut to as many as there are
SETTINGS: dict[str, list[dict]] = {
    "cabs": [
        {},
        {"keep": 1, "block": 4},
        {"keep": (2, 3, 40), "block": (7, 3, 50), "weight": (0.6, -0.4, 2.0), "lambda": 0.7},
    ],
    "consensus_ta": [
        {},
        {"threshold": 0.2, "lambda": 0.3},
        {"threshold": 1.0, "agreement": 1, "weight": (0.7, -0.3, 0.5)},
        {"agreement": 3},
    ],
    "emr": [{}, {"lambda": 0.4}],
    "metagpt": [{}, {"lambda": 1.7}],
    "pcb": [
        {},
        {"density": 1.0, "clip": 0.0},
        {"density": (0.5, 0.2, 0.0), "clip": 0.02, "weight": (1.2, 0.8, -0.5), "lambda": 1.2},
        {"density": 1e-4},
    ],
}
CASES = [pytest.param(name, v, id=f"{name}-{i}") for name, settings in SETTINGS.items() for i, v in enumerate(settings)]
#: units in the last place: a few roundings of inputs, products, sums and quotients
FEW = 8


def runs(name: str, given: dict, tensors: list[torch.Tensor]):
    """(merged, oracle's result) for one, two and three models."""
    base, *arrays = [(x.float() if x.dtype == torch.bfloat16 else x).numpy() for x in tensors]
    for count in (1, 2, 3):
        v = values(name, given, count)
        merged = merge_tensors(
            registry()[name], bind(registry()[name], v), tensors[1 : count + 1], tensors[0], name=NAME
        )
        yield merged, ORACLES[name](arrays[:count], base, v)


def test_every_elementwise_method_is_tried():
    """Each oracle of this kind has settings here."""
    assert set(SETTINGS) == set(ORACLES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("name", "given"), CASES)
def test_method_agrees_with_its_oracle(name, given, dtype):
    """A method gives what the slow version gives, to a few units in the last place, whatever the tensors look like."""
    for kind in KINDS:
        tensors = [x.to(dtype) for x in inputs(kind)]
        for count, (merged, wanted) in enumerate(runs(name, given, tensors), 1):
            assert merged.dtype == dtype
            assert apart(merged, wanted, tensors) <= FEW, f"{kind}, {count} models"


@pytest.mark.parametrize(("name", "given"), CASES)
def test_bfloat16_is_rounded_once(name, given):
    """From bfloat16 models comes the slow version's result, rounded once at the end (half a unit, and float32's own rounding)."""
    tensors = [x.bfloat16() for x in inputs("bf16")]
    for merged, wanted in runs(name, given, tensors):
        assert merged.dtype == torch.bfloat16
        assert apart(merged, wanted, [x.float() for x in tensors]) <= 0.5 + 1e-3


@pytest.mark.parametrize(("name", "given"), CASES)
def test_the_oracle_is_not_the_identity(name, given):
    """Each setting moves a random tensor away from the base, and with several models away from each of them."""
    tensors = inputs("random")
    for count, (merged, _) in enumerate(runs(name, given, tensors), 1):
        assert (merged - tensors[0]).abs().max() > 1e-3
        assert count == 1 or all((merged - x).abs().max() > 1e-3 for x in tensors[1:])


@pytest.mark.parametrize(
    ("name", "given"), [("consensus_ta", {}), ("emr", {}), ("metagpt", {}), ("cabs", {"keep": 32})]
)
def test_one_model_alone_is_that_model(name, given):
    """With nothing to drop, one model's difference comes back whole, up to the rounding of a difference and a sum."""
    base, model, *_ = inputs("random")
    assert apart(merge(name, [model], base, **given), model.double().numpy(), [base]) <= 2


def test_cabs_gives_each_model_entries_of_its_own():
    """In every block each model has its n entries, the first its largest, and no entry has two."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(6, 64, generator=g) for _ in range(2))
    base = torch.zeros(6, 64)
    blocks = merge("cabs", [x, y], base, keep=2, block=8).reshape(-1, 8)
    of_x, of_y = blocks == x.reshape(-1, 8), blocks == y.reshape(-1, 8)
    assert (of_x.sum(1) == 2).all()
    assert (of_y.sum(1) == 2).all()
    assert ((blocks != 0).sum(1) == 4).all()
    largest = x.reshape(-1, 8).abs().topk(2).indices
    assert of_x.gather(1, largest).all()


def test_cabs_takes_turns_in_the_order_of_the_recipe():
    """Where all want the same entry, the first has it, the second its next best."""
    merged = merge("cabs", [[3.0, 2.0, 1.0, 0.5], [9.0, 8.0, 1.0, 7.0]], [0.0] * 4, keep=1, block=4)
    assert merged.tolist() == [3.0, 8.0, 0.0, 0.0]


def test_cabs_does_not_take_zeros():
    """An entry that a model did not change stays free for the models after it."""
    merged = merge("cabs", [[0.0, 0.0, 1.0], [5.0, 0.0, 0.0]], [0.0] * 3, keep=3, block=3)
    assert merged.tolist() == [5.0, 0.0, 1.0]


def test_cabs_refuses_more_than_a_block():
    """keep above block is refused before the work, and the sentence says what to change."""
    assert "lower keep" in refusal("cabs", keep=5, block=4)


def test_consensus_ta_drops_what_only_one_model_wants():
    """A change of one model among three is dropped, one that two share is added up whole; agreement 1 keeps both."""
    models, base = [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]], [0.0, 0.0]
    assert merge("consensus_ta", models, base).tolist() == [0.0, 2.0]
    assert merge("consensus_ta", models, base, agreement=1).tolist() == [1.0, 2.0]


def test_emr_takes_the_largest_of_the_majority():
    """The sum elects the sign, the size is the largest that has it; a tie of opposites counts as +."""
    models = [[1.0, -1.0, 2.0], [2.0, -2.0, -2.0], [-2.5, 2.5, 0.0]]
    assert merge("emr", models, [0.0] * 3).tolist() == [2.0, -2.0, 2.0]


def test_metagpt_weighs_by_squared_norms():
    """Differences of norms 1 and 3 count 1 to 9."""
    merged = merge("metagpt", [[1.0, 0.0], [0.0, 3.0]], [0.0, 0.0])
    torch.testing.assert_close(merged, torch.tensor([0.1, 2.7]), rtol=1e-6, atol=0)


def test_pcb_lets_no_model_pull_against_the_sum():
    """Where two models outvote a third, its change has no part in the result, however large its share of the entries kept."""
    merged = merge("pcb", [[1.0, 0.1], [1.0, 0.1], [-1.5, 0.1]], [0.0, 0.0], density=1.0, clip=0.0)
    torch.testing.assert_close(merged, torch.tensor([1.0, 0.1]), rtol=1e-6, atol=0)
