"""What every fusion model has to keep."""

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from drfuse.data import Batch
from drfuse.errors import InputError
from drfuse.models import (
    MODALITIES,
    DrFuse,
    FusionModel,
    FusionOutput,
    SharedEncoders,
    check_contract,
)
from tests.builders import N_FEATURES, N_LABELS, make_batch, tiny_drfuse


class MeanHour(FusionModel):
    """The smallest model that keeps the contract."""

    def __init__(self, n_features: int, n_labels: int) -> None:
        super().__init__()
        self.head = nn.Linear(n_features, n_labels)

    def forward(self, batch: Batch) -> FusionOutput:
        return FusionOutput(self.head(batch.ehr.sum(1) / batch.n_hours[:, None]))

    def loss(self, output: FusionOutput, batch: Batch) -> dict[str, Tensor]:
        return {"total": (output.logits - batch.labels).square().mean()}


def test_a_model_of_two_methods_keeps_the_contract() -> None:
    model, batch = MeanHour(N_FEATURES, N_LABELS), make_batch()
    output = model(batch)
    model.loss(output, batch)["total"].backward()
    assert output.logits.shape == (len(batch), N_LABELS)
    assert output.modality_weights is None
    assert output.representations == {}


@pytest.mark.parametrize("missing", ["forward", "loss"])
def test_a_model_without_one_of_the_methods_cannot_be_made(missing: str) -> None:
    methods = {name: getattr(MeanHour, name) for name in ("forward", "loss") if name != missing}
    incomplete = type("Incomplete", (FusionModel,), methods)
    with pytest.raises(TypeError, match=missing):
        incomplete()


def test_a_model_reads_both_modalities_unless_its_own_class_says_otherwise() -> None:
    class Blind(MeanHour):
        reads = ("ehr",)

    class Seeing(Blind):
        pass

    assert (MeanHour.reads, Blind.reads, Seeing.reads) == (("ehr", "cxr"), ("ehr",), ("ehr", "cxr"))
    assert MeanHour(N_FEATURES, N_LABELS).shared_encoders() == SharedEncoders()
    check_contract(Blind(N_FEATURES, N_LABELS), make_batch(), N_LABELS)


@pytest.mark.parametrize("reads", [(), ("images",), ("ehr", "text")])
def test_a_model_that_reads_what_there_is_not_breaks_the_contract(reads: tuple[str, ...]) -> None:
    kind = type("Odd", (MeanHour,), {"reads": reads})
    with pytest.raises(InputError, match=r"Odd.reads is .*; expected some of 'ehr', 'cxr'"):
        check_contract(kind(N_FEATURES, N_LABELS), make_batch(), N_LABELS)


@pytest.mark.parametrize(
    "shared",
    [
        lambda _: {},
        lambda _: SharedEncoders(ehr=[nn.Linear(1, 1)]),  # not of the model
        lambda model: SharedEncoders(cxr=[model.head]),
    ],
)
def test_a_model_that_shares_something_else_breaks_the_contract(shared: Callable[[MeanHour], Any]) -> None:
    kind = type("Odd", (MeanHour,), {"shared_encoders": shared})
    with pytest.raises(InputError, match=r"Odd.shared_encoders must return .* the model's own modules"):
        check_contract(kind(N_FEATURES, N_LABELS), make_batch(), N_LABELS)


def test_a_value_that_is_none_of_the_choices_is_refused() -> None:
    class Choosing(MeanHour):
        def __init__(self, n_features: int, n_labels: int, kind: Literal["a", "b"] = "a") -> None:
            super().__init__(n_features, n_labels)
            self.kind = kind

    assert Choosing(N_FEATURES, N_LABELS, "b").kind == "b"
    with pytest.raises(InputError, match="kind is 'c'; expected one of 'a', 'b'"):
        Choosing(N_FEATURES, N_LABELS, kind="c")  # type: ignore[arg-type]


def test_outputs_share_no_representations_and_cannot_be_changed() -> None:
    one, other = FusionOutput(torch.zeros(1, 2)), FusionOutput(torch.zeros(1, 2))
    assert one.representations is not other.representations
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.logits = torch.ones(1, 2)  # type: ignore[misc]


def test_a_model_knows_the_arguments_from_which_it_can_be_made_again() -> None:
    model = tiny_drfuse(alignment_weight=0.7, disentangle=False)
    assert model.init_args["n_features"] == N_FEATURES
    assert model.init_args["alignment_weight"] == 0.7
    assert model.init_args["auxiliary_weight"] == 0.5  # a default
    again = DrFuse(**model.init_args)
    assert again.init_args == model.init_args
    again.load_state_dict(model.state_dict())
    assert not again.disentangle


def test_copied_and_pickled_models_keep_their_arguments_and_weights() -> None:
    model, batch = MeanHour(N_FEATURES, n_labels=N_LABELS), make_batch()
    assert model.init_args == {"n_features": N_FEATURES, "n_labels": N_LABELS}
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.init_args == model.init_args
        assert torch.equal(twin(batch).logits, model(batch).logits)


def test_an_unknown_argument_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="depth"):
        MeanHour(N_FEATURES, N_LABELS, depth=3)  # type: ignore[call-arg]


def test_drfuse_is_a_fusion_model_and_its_weights_stand_in_the_named_order() -> None:
    assert issubclass(DrFuse, FusionModel)
    assert MODALITIES == ("ehr_distinct", "shared", "cxr_distinct")
