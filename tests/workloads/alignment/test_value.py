"""The value model, and the policy that it guides."""

from pathlib import Path

import pytest
import torch
from tiny_language_models import FAMILY_PARAMS, Family, tiny_model

from mgpu_nb.workloads.alignment.batches import Tokens, left_padded
from mgpu_nb.workloads.alignment.generate import Policy
from mgpu_nb.workloads.alignment.laws import BernoulliLaw, CategoricalLaw, Law, PreferenceLaw
from mgpu_nb.workloads.alignment.models import load_model, load_tokenizer
from mgpu_nb.workloads.alignment.value import Guided, ValueModel

pytestmark = pytest.mark.slow

PROMPTS = [[1, 11], [1, 7, 11], [3, 11]]
SEEDS = [[n] for n in range(len(PROMPTS))]


@pytest.fixture(scope="module", params=FAMILY_PARAMS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    family: Family = request.param
    return tiny_model(family, tmp_path_factory.mktemp(family))


def value_model(folder: str, law: Law, spread: float = 1.0) -> ValueModel:
    """One whose head is not zero any more."""
    model = load_model(folder, device="cpu")
    value = ValueModel(model.base_model, model.config.vocab_size, law)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        value.weight.copy_(spread * torch.randn(value.weight.shape, generator=generator))
        value.bias.copy_(spread * torch.randn(value.bias.shape, generator=generator))
    return value


def policy_of(folder: str, guidance: Guided | None = None) -> Policy:
    tokenizer = load_tokenizer(folder)
    return Policy(
        load_model(folder, device="cpu"),
        end_id=tokenizer.end_id,
        pad_id=tokenizer.pad_id,
        guidance=guidance,
    )


def batch() -> Tokens:
    return left_padded(PROMPTS, 14, torch.device("cpu"))


@torch.no_grad()
def test_values_are_zero_at_first(folder: str) -> None:
    model = load_model(folder, device="cpu")
    values = ValueModel(model.base_model, model.config.vocab_size, CategoricalLaw(11))(batch())
    assert values.shape == (3, 3, model.config.vocab_size, 11)
    assert values.dtype == torch.float32
    assert not values.any()


@torch.no_grad()
def test_values_of_some_tokens_are_those_of_all(folder: str) -> None:
    for law in (BernoulliLaw(), CategoricalLaw(4)):
        model = value_model(folder, law)
        features = model.features(batch(), None, 2)
        chosen = torch.tensor([[[3, 1], [0, 9]], [[5, 5], [2, 4]], [[8, 1], [10, 11]]])
        every = model.values(features)
        expected = every.gather(2, chosen[..., None].expand(*chosen.shape, law.atoms))
        torch.testing.assert_close(model.values(features, chosen), expected, rtol=1e-5, atol=1e-4)


def test_what_is_gathered_comes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    features, chosen = torch.randn(7, 16), torch.arange(14).view(7, 2)
    model = ValueModel(_Body(), 20, CategoricalLaw(3))
    torch.nn.init.normal_(model.weight)
    whole = model.values(features, chosen)
    monkeypatch.setattr("mgpu_nb.workloads.alignment.value.GATHERED", 200)
    torch.testing.assert_close(model.values(features, chosen), whole)


class _Body(torch.nn.Module):
    """As much of a backbone as the head needs."""

    device = torch.device("cpu")

    class config:  # noqa: N801
        hidden_size = 16


@torch.no_grad()
def test_a_saved_model_is_the_same(folder: str, tmp_path: Path) -> None:
    model = value_model(folder, CategoricalLaw(5))
    model.save(tmp_path)
    assert not [*tmp_path.glob("*.bin"), *tmp_path.glob("*.pt"), *tmp_path.glob("*.part")]
    again = ValueModel.load(tmp_path, "cpu")
    assert (again.law.name, again.law.atoms, again.vocabulary) == ("categorical", 5, model.vocabulary)
    assert not again.training
    assert torch.equal(again(batch()), model(batch()))


def test_a_folder_without_a_value_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no value model that can be read .*train its round again"):
        ValueModel.load(tmp_path, "cpu")


def test_a_damaged_model_is_refused(tmp_path: Path) -> None:
    base = tiny_model("gpt2", tmp_path / "base")
    (tmp_path / "value").mkdir()
    value_model(base, BernoulliLaw()).save(tmp_path / "value")
    file = tmp_path / "value" / "value.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="train its round again"):
        ValueModel.load(tmp_path / "value", "cpu")


def test_eta_zero_is_the_reference_bit_for_bit(folder: str) -> None:
    plain = policy_of(folder)
    for law in (BernoulliLaw(), CategoricalLaw(11), PreferenceLaw()):
        guided = policy_of(folder, Guided(value_model(folder, law), 0.0, 20))
        logits = torch.randn(3, 17)
        assert guided.guidance is not None
        assert guided.guidance.adjust(logits, torch.zeros(3, 16)) is logits
        written = plain.generate(PROMPTS, SEEDS, max_new_tokens=6, batch_size=2)
        assert guided.generate(PROMPTS, SEEDS, max_new_tokens=6, batch_size=2) == written
        for one, other in zip(
            guided.log_softmax(PROMPTS, written, batch_size=2),
            plain.log_softmax(PROMPTS, written, batch_size=2),
            strict=True,
        ):
            assert torch.equal(one, other)


@torch.no_grad()
def test_the_likeliest_tokens_alone_are_moved(folder: str) -> None:
    model = value_model(folder, BernoulliLaw())
    features = model.features(batch(), None, 1)[:, 0]
    logits = torch.randn(3, model.vocabulary, generator=torch.Generator().manual_seed(3))
    moved = Guided(model, 3.0, 4).adjust(logits, features)
    offset = model.law.offset(model.values(features), 3.0)
    for row in range(3):
        top = set(logits[row].topk(4).indices.tolist())
        for token in range(model.vocabulary):
            expected = logits[row, token] + (offset[row, token] if token in top else 0)
            assert moved[row, token] == pytest.approx(float(expected), abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("more", [0, 1, 1000])
def test_as_many_tokens_as_there_are_is_all(folder: str, more: int) -> None:
    model = value_model(folder, PreferenceLaw())
    features = model.features(batch(), None, 1)[:, 0]
    logits = torch.randn(3, model.vocabulary)
    moved = Guided(model, 2.0, model.vocabulary + more).adjust(logits, features)
    torch.testing.assert_close(moved, logits + 2 * model.values(features)[..., 0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("top_k", [3, 20])
def test_what_is_generated_is_what_is_measured(folder: str, top_k: int) -> None:
    """With a cache, token by token, as without, all at once; greedily, where both must name the same tokens."""
    policy = policy_of(folder, Guided(value_model(folder, BernoulliLaw(), 0.3), 4.0, top_k))
    written = policy.generate(PROMPTS, None, max_new_tokens=8, batch_size=2)
    measured = policy.log_softmax(PROMPTS, written, batch_size=3)
    for completion, rows in zip(written, measured, strict=True):
        assert tuple(rows.argmax(1).tolist()) == completion
        torch.testing.assert_close(rows.exp().sum(1), torch.ones(len(rows)))
    assert written != policy_of(folder).generate(PROMPTS, None, max_new_tokens=8, batch_size=2)


def test_numbers_out_of_range_are_refused(tmp_path: Path) -> None:
    model = value_model(tiny_model("gpt2", tmp_path), BernoulliLaw())
    for eta in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="eta must be a finite number >= 0"):
            Guided(model, eta, 20)
    with pytest.raises(ValueError, match="top_k must be >= 1, got 0"):
        Guided(model, 1.0, 0)
