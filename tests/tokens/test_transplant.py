"""`plait tokens transplant`: rows of tokens that a model does not have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import make
import vocabularies
from plait.checkpoint.directory import read_json
from plait.cli import main
from plait.errors import PlaitError
from plait.merged import Merge
from plait.testing.checkpoints import check
from plait.tokens.approximate import names
from plait.tokens.match import matched
from plait.tokens.pursuit import pursue
from plait.tokens.space import Options
from plait.tokens.transplant import transplant
from plait.vocabulary.read import read_tokens
from tokens import oracles

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def model(folder: Path, kind: str, texts: list[str], seed: int, hidden: int = 32, **more: Any) -> Path:
    """A model with a tokenizer of a kind, trained on the texts; `<s>` and `</s>` have their roles."""
    tokenizer = vocabularies.tokenizer(kind, texts)
    rows = tokenizer.get_vocab_size() + more.pop("spare", 0)
    made = make.tensors(seed, vocab=rows, hidden=hidden, layers=1, **more)
    make.write(folder, made, settings=make.config(made))
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    make.write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **named})
    (folder / "chat_template.jinja").write_text(f"{{{{ messages }}}} {seed}")
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and a donor with other tokens and another width."""
    folder = tmp_path_factory.mktemp("pair")
    return (
        model(folder / "model", "byte-level", vocabularies.PLAIN, 1, hidden=24),
        model(folder / "donor", "byte-level", vocabularies.FOREIGN, 2, hidden=32),
    )


def made(pair: tuple[Path, Path], out: Path, options: Options, **more: Any) -> dict[str, torch.Tensor]:
    Merge(transplant(*pair, options, **more)).save(out)
    return load_file(out / "model.safetensors")


def known(pair: tuple[Path, Path]) -> tuple[dict[str, int], dict[str, int], list[str], list[str]]:
    """Ids of the model and of the donor, the tokens that both have, and those that only the donor has."""
    mine, theirs = (read_tokens(folder) for folder in pair)
    assert mine
    assert theirs
    shared = [text for text in theirs.ids if text in mine.ids]
    return dict(mine.ids), dict(theirs.ids), shared, [text for text in theirs.ids if text not in mine.ids]


WAYS = [
    *((Options("omp", k=k), lambda x, m, t, o: oracles.omp(x, m, t, o.k)) for k in (1, 8, 20)),
    *(
        (
            Options("common_interpolation", k=5, weight_scheme=scheme, cosine_similarity=cosine),
            lambda x, m, t, o: oracles.common_interpolation(x, m, t, o.k, o.weight_scheme, o.cosine_similarity),
        )
        for scheme in ("distance_proportional", "barycentric", "least_squares")
        for cosine in (False, True)
    ),
    *((Options("landmark_pca", k=k), lambda x, m, t, o: oracles.landmark_pca(x, m, t, o.k)) for k in (4, 64)),
]


@pytest.mark.parametrize(("options", "oracle"), WAYS, ids=[f"{o.method}-{i}" for i, (o, _) in enumerate(WAYS)])
def test_oracles(pair: tuple[Path, Path], options: Options, oracle: Any, tmp_path: Path) -> None:
    """New rows are those of a plain oracle, with the donor's own rows for embedding and head; shared rows stay as they are."""
    found = made(pair, tmp_path / "out", options)
    mine, theirs, shared, new = known(pair)
    weights = [load_file(folder / "model.safetensors") for folder in pair]
    for name in (EMBED, HEAD):
        own, donor = (w[name].double().numpy() for w in weights)
        a, b = own[[mine[t] for t in shared]], donor[[theirs[t] for t in shared]]
        got = found[name].double().numpy()
        assert np.array_equal(got[[theirs[t] for t in shared]], a)
        rows = [oracle(donor[theirs[t]], a, b, options) for t in new]
        np.testing.assert_allclose(got[[theirs[t] for t in new]], rows, atol=2e-4)
    others = [name for name in found if name not in (EMBED, HEAD)]
    assert all(torch.equal(found[name], weights[0][name]) for name in others)


@pytest.mark.parametrize("gram", [True, False])
def test_pursuit(gram: bool) -> None:
    """Blocks of targets choose the atoms that one target at a time does; atoms that others span do no harm."""
    numbers = torch.Generator().manual_seed(0)
    atoms, targets = torch.randn(90, 20, generator=numbers), torch.randn(40, 20, generator=numbers)
    chosen, weights = pursue(targets, atoms, 12, gram)
    for x, at, w in zip(targets.double().numpy(), chosen.tolist(), weights.numpy(), strict=True):
        expected, exact = oracles.pursuit(x, atoms.double().numpy(), 12)
        assert at == expected
        np.testing.assert_allclose(w, exact, atol=1e-4)
    double = torch.cat([atoms[:3], atoms[:3], torch.zeros(2, 20)])
    chosen, weights = pursue(targets, double, 8, gram)
    best = torch.linalg.lstsq(atoms[:3].T.double(), targets.T.double()).solution
    near = torch.bmm(weights[:, None], double[chosen].double())[:, 0]
    torch.testing.assert_close(near, (atoms[:3].T.double() @ best).T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["mean", "sum", "weighted_mean", "first_last"])
def test_row_25_tokensurgeon_bugs(pair: tuple[Path, Path], method: str, tmp_path: Path) -> None:
    """Of a token's parts the last counts most in the embedding, the first in the head."""
    found = made(pair, tmp_path / "out", Options("subword", subword_method=method))
    _, theirs, _, new = known(pair)
    own, donor = (AutoTokenizer.from_pretrained(folder) for folder in pair)
    weights = load_file(pair[0] / "model.safetensors")
    for name in (EMBED, HEAD):
        table = weights[name].double().numpy()
        for text in new:
            ids = own.encode(donor.backend_tokenizer.decode([theirs[text]]), add_special_tokens=False)
            got = found[name][theirs[text]].double().numpy()
            np.testing.assert_allclose(got, oracles.subword(table[ids], method, name == HEAD), atol=1e-5)


@pytest.mark.parametrize("side", ["embed", "lm_head", "yes", "no"])
def test_row_25_matches_act_on_what_they_say(tmp_path: Path, side: str) -> None:
    """-pm and -bm change the rows that they name: of the embedding, of the head, of both, of none."""
    mine = model(tmp_path / "model", "byte-level", vocabularies.PLAIN, 1)
    donor = model(tmp_path / "donor", "sentencepiece with bytes", vocabularies.FOREIGN, 2)
    plain = made((mine, donor), tmp_path / "plain", Options("zero"))
    for option in ("prefix_match", "byte_match"):
        found = made((mine, donor), tmp_path / option, Options("zero"), **{option: side})
        changed = {name for name in (EMBED, HEAD) if not torch.equal(found[name], plain[name])}
        assert changed == {"embed": {EMBED}, "lm_head": {HEAD}, "yes": {EMBED, HEAD}, "no": set()}[side]


def test_what_stands_in(tmp_path: Path) -> None:
    """A byte token takes the row of its letter and back; a prefix is the longest that is known; roles find each other."""
    mine = model(tmp_path / "model", "byte-level", vocabularies.PLAIN, 1)
    donor = model(tmp_path / "donor", "sentencepiece with bytes", vocabularies.FOREIGN, 2)
    settings = read_json(donor / "tokenizer_config.json")
    a, b = read_tokens(mine), read_tokens(donor)
    assert a
    assert b
    found = matched(b, a, a.size, b.size, byte=True, prefix=True)
    assert found.exact[b.ids["<0x41>"]] == a.ids["A"]
    back = matched(a, b, b.size, a.size, byte=True)
    assert back.exact[a.ids["\u0100"]] == b.ids["<0x00>"]
    make.write_json(donor / "tokenizer_config.json", {**settings, "eos_token": "<s>", "bos_token": "</s>"})
    swapped = read_tokens(donor)
    assert swapped
    turned = matched(swapped, a, a.size, b.size)
    assert turned.exact[swapped.ids["<s>"]] == a.ids["</s>"]
    text = next(t for t in b.ids if len(t) > 2 and t.isascii() and found.lent[b.ids[t]] >= 0)
    row = {n: t for t, n in a.ids.items()}[int(found.lent[b.ids[text]])]
    assert text.startswith(row)
    assert not any(text[:end] in a.ids for end in range(len(row) + 1, len(text)))


@pytest.mark.parametrize("method", names())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_row_35_every_way_runs(method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Every way runs on half-precision models, with noise and scale, where the hidden size is larger than the vocabulary;
    transformers loads and runs the result."""
    mine = model(tmp_path / "model", "byte-level", vocabularies.PLAIN, 1, hidden=512, dtype=dtype)
    donor = model(tmp_path / "donor", "byte-level", vocabularies.FOREIGN, 2, hidden=64, dtype=dtype, spare=5)
    options = Options(method, k=8, noise=0.01, scale=0.5, seed=3)
    found = made((mine, donor), tmp_path / "out", options, magikarp=True)
    assert all(x.isfinite().all() and x.dtype == dtype for x in found.values())
    network, tokenizer = (c.from_pretrained(tmp_path / "out") for c in (AutoModelForCausalLM, AutoTokenizer))
    assert len(tokenizer) == found[EMBED].shape[0] == network.config.vocab_size
    assert network(**tokenizer("el niño", return_tensors="pt")).logits.isfinite().all()


@pytest.mark.parametrize("method", ["randn", "john_hewitt"])
def test_drawn(pair: tuple[Path, Path], method: str, tmp_path: Path) -> None:
    """Drawn rows are the same on every run of a seed, and others for another; john_hewitt's have the model's mean and spread."""
    rows = []
    for i, seed in enumerate((1, 1, 2)):
        rows.append(made(pair, tmp_path / str(i), Options(method, seed=seed)))
    assert make.hashes(tmp_path / "0") == make.hashes(tmp_path / "1")
    _, theirs, _, new = known(pair)
    at = [theirs[text] for text in new]
    assert not torch.equal(rows[0][EMBED][at], rows[2][EMBED][at])
    spread = load_file(pair[0] / "model.safetensors")[EMBED].std() if method == "john_hewitt" else 1.0
    assert float(rows[0][EMBED][at].std() / spread) == pytest.approx(1, abs=0.1)


def test_what_follows(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Tokenizer and template are the donor's; vocab_size and special ids follow; rows can be padded; the card says how."""
    made(pair, tmp_path / "out", Options(), pad_to_multiple_of=64)
    config, donor = (read_json(folder / "config.json") for folder in (tmp_path / "out", pair[1]))
    tokens = read_tokens(pair[1])
    assert tokens
    assert config["vocab_size"] == -(-tokens.size // 64) * 64
    assert config["hidden_size"] == 24
    assert (config["bos_token_id"], config["eos_token_id"]) == (donor["bos_token_id"], donor["eos_token_id"])
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (pair[1] / name).read_bytes()
    provenance = read_json(tmp_path / "out" / "plait_provenance.json")
    assert [model["roles"] for model in provenance["models"]] == [["merged", "base", "config"], ["tokenizer"]]
    assert "plait tokens transplant" in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_magikarp(tmp_path: Path) -> None:
    """With --magikarp a token without training in the donor is no measure for others, and one without in both has zeros."""
    pair = tuple(
        model(tmp_path / n, "byte-level", texts, seed)
        for n, texts, seed in (("model", vocabularies.PLAIN, 1), ("donor", vocabularies.FOREIGN, 2))
    )
    mine, theirs, shared, _ = known(pair)  # type: ignore[arg-type]
    dead = shared[40]
    for folder, ids in zip(pair, (mine, theirs), strict=True):
        weights = load_file(folder / "model.safetensors")
        weights[EMBED][ids[dead]] *= 1e-6
        make.write(folder, weights, settings=read_json(folder / "config.json"))
        vocabularies.tokenizer(
            "byte-level", vocabularies.PLAIN if folder.name == "model" else vocabularies.FOREIGN
        ).save(str(folder / "tokenizer.json"))
    found = made(pair, tmp_path / "out", Options(), magikarp=True)  # type: ignore[arg-type]
    assert not found[EMBED][theirs[dead]].any()
    assert found[HEAD][theirs[dead]].any()


def test_tied(tmp_path: Path) -> None:
    """A tied model stays tied, whatever the donor is."""
    mine = model(tmp_path / "model", "byte-level", vocabularies.PLAIN, 1, tied=True)
    donor = model(tmp_path / "donor", "byte-level", vocabularies.FOREIGN, 2)
    assert HEAD not in made((mine, donor), tmp_path / "out", Options())
    assert read_json(tmp_path / "out" / "config.json")["tie_word_embeddings"] is True


def test_checkpoint(pair: tuple[Path, Path]) -> None:
    """A transplant that is not written keeps the contract of a checkpoint."""
    assert check(Merge(transplant(*pair, Options(k=4)))) == []


def test_command(pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command takes mergekit-tokensurgeon's options; what cannot be done is said, with exit code 2."""
    options = ["-a", "subword", "-s", "sum", "-pm", "embed", "-nvs", "0.5", "--batch-size", "512", "--json"]
    with pytest.raises(SystemExit) as code:
        main(["tokens", "transplant", *map(str, pair), str(tmp_path / "out"), *options])
    assert code.value.code == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["vocabulary"] == len(known(pair)[1])
    assert "--batch-size has nothing to do here" in said.err
    with pytest.raises(SystemExit) as code:
        main(["tokens", "transplant", *map(str, pair), str(tmp_path / "no"), "-a", "opm"])
    assert code.value.code == 2
    assert "did you mean omp?" in capsys.readouterr().err
    (tmp_path / "bare").mkdir()
    with pytest.raises(PlaitError):
        transplant(pair[0], tmp_path / "bare")
