"""Encoder sizes are described once, and are options of every model whose encoders read them."""

import inspect
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drfuse.cli import main
from drfuse.data import Batch
from drfuse.errors import InputError
from drfuse.models import DrFuse, EncoderSizes, FusionModel, FusionOutput, shipped_models, takes_sizes_of
from drfuse.models.cxr_encoders import CxrEncoder, CxrStages
from drfuse.models.ehr_encoders import EhrEncoder, EhrLstmEncoder
from tests.builders import TINY_BACKBONE

ENCODERS = (EhrEncoder, EhrLstmEncoder, CxrEncoder, CxrStages)


class Own(FusionModel):
    """A model of one's own.

    Args:
        n_features: F.
        n_labels: C.
        sizes: Of the encoders.
        gates: How many gates.
    """

    @takes_sizes_of(EhrLstmEncoder, CxrEncoder, dim=12)
    def __init__(self, n_features: int, n_labels: int, sizes: EncoderSizes, gates: int = 4) -> None:
        super().__init__()
        self.sizes, self.gates = sizes, gates
        self.head = nn.Linear(n_features, n_labels)

    def forward(self, batch: Batch) -> FusionOutput:
        return FusionOutput(self.head(batch.ehr[:, 0]))

    def loss(self, output: FusionOutput, batch: Batch) -> dict[str, Tensor]:
        return {"total": (output.logits - batch.labels).square().mean()}


def test_a_constructor_takes_the_sizes_that_the_encoders_read() -> None:
    names = ["n_features", "n_labels", "dim", "lstm_layers", "dropout", "pooling", "cxr_backbone", "gates"]
    assert list(inspect.signature(Own).parameters) == names
    model = Own(5, 3, dropout=0.1, gates=2)
    assert model.sizes == EncoderSizes(dim=12, dropout=0.1)
    assert model.gates == 2
    assert model.init_args == {
        "n_features": 5,
        "n_labels": 3,
        "dim": 12,  # the model's own default
        "lstm_layers": 2,
        "dropout": 0.1,
        "pooling": "published",
        "cxr_backbone": "resnet50",
        "gates": 2,
    }
    assert Own(**model.init_args).init_args == model.init_args


def test_a_size_that_no_encoder_reads_is_no_argument() -> None:
    with pytest.raises(TypeError, match="heads"):
        Own(5, 3, heads=2)


def test_encoders_read_fields_that_exist_and_every_field_is_read() -> None:
    read = {name for encoder in ENCODERS for name in encoder.SIZES}
    assert read == {field.name for field in fields(EncoderSizes)}
    sizes = EncoderSizes(dim=8)
    assert sizes.of(CxrEncoder) == {"dim": 8, "cxr_backbone": "resnet50"}


def test_the_encoders_get_the_sizes_that_a_model_is_given() -> None:
    given = {"dim": 8, "heads": 2, "layers": 3, "dropout": 0.25, "feedforward": 24, "max_hours": 50}
    model = DrFuse(5, 3, **given, pooling="mean-max-last", cxr_backbone=TINY_BACKBONE)
    layer = model.ehr_encoder.first.layers[0]
    assert isinstance(layer, nn.TransformerEncoderLayer)
    assert (layer.self_attn.num_heads, layer.linear1.out_features, layer.dropout.p) == (2, 24, 0.25)
    branches = [one for one in model.ehr_encoder.branches if isinstance(one, nn.TransformerEncoder)]
    assert [len(branch.layers) for branch in branches] == [3, 3]
    assert model.ehr_encoder.positions.shape == (50, 8)
    assert model.cxr_shared_encoder.project.weight.shape == (8, 16)


def test_the_defaults_of_shipped_models_are_the_published_sizes() -> None:
    published = {field.name: field.default for field in fields(EncoderSizes)}
    for name, kind in shipped_models().items():
        defaults = {key: one.default for key, one in inspect.signature(kind).parameters.items()}
        own = {key: defaults[key] for key in defaults.keys() & published if defaults[key] != published[key]}
        assert own == ({"cxr_backbone": "resnet34"} if name == "MedFuse" else {})


@pytest.mark.slow
def test_the_command_line_explains_every_argument_of_every_shipped_model(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, kind in shipped_models().items():
        with pytest.raises(SystemExit):
            main(["train", "--model.help", name])
        shown = " ".join(capsys.readouterr().out.split())
        for argument in list(inspect.signature(kind).parameters)[2:]:
            option = f"--model.{argument.replace('_', '-')}"
            after = shown.rpartition(f"{option} ")[2]
            explained = after.partition("(type:")[0]
            assert len(explained.split()) > 2, (name, option)


def test_equal_seeds_give_equal_weights_whatever_the_order_of_the_arguments() -> None:
    def weights(**sizes: int) -> list[Tensor]:
        torch.manual_seed(0)
        return list(DrFuse(5, 3, **sizes, cxr_backbone=TINY_BACKBONE).parameters())

    first, second = weights(dim=8, heads=2), weights(heads=2, dim=8)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


INTEGERS = ("dim", "heads", "layers", "lstm_layers", "feedforward", "max_hours")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *(
            ({name: value}, f"{name} is {value}; expected at least 1")
            for name in INTEGERS
            for value in (0, -1)
        ),
        ({"dropout": 1.0}, "dropout is 1.0; expected 0 to below 1"),
        ({"dropout": -0.1}, "dropout is -0.1; expected 0 to below 1"),
        ({"dim": 8.5}, "dim is 8.5; expected a whole number"),
    ],
)
def test_a_size_out_of_range_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        EncoderSizes(**options)
