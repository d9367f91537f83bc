"""The options of a training: their ranges, what each is for, and how they are written."""

from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from drfuse.errors import InputError
from drfuse.training import TrainOptions
from drfuse.training.options import refuse_decided

OUT_OF_RANGE = [
    ({"epochs": 0}, "epochs is 0; expected at least 1"),
    ({"patience": 0}, "patience is 0; expected at least 1"),
    ({"accumulate": 0}, "accumulate is 0; expected at least 1"),
    ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
    ({"num_workers": -1}, "num_workers is -1; expected at least 0"),
    ({"seed": 2**32}, "seed is 4294967296; expected at least 0 and at most 4294967295"),
    ({"cxr_share": 1.5}, "cxr_share is 1.5; expected at least 0 and at most 1"),
    ({"matched_cxr_dropout": float("nan")}, "matched_cxr_dropout is nan; expected at least 0"),
    ({"lr": 0.0}, "lr is 0.0; expected a number above 0"),
    ({"lr": float("inf")}, "lr is inf; expected a number above 0"),
    ({"weight_decay": -0.1}, "weight_decay is -0.1; expected a number of at least 0"),
    ({"schedule": "linear"}, "schedule is 'linear'; expected one of 'constant', 'cosine'"),
    ({"train_on": "all"}, "train_on is 'all'; expected one of"),
    ({"validate_on": "all"}, "validate_on is 'all'; expected one of"),
    ({"compile": True, "checkpoint_activations": True}, "--compile does not work with"),
    ({"devices": 0}, "devices is 0; expected at least 1"),
    ({"devices": 4, "batch_size": 3}, "batch_size is 3, the stays of all 4 devices together"),
    ({"devices": 4, "nodes": 5}, "batch_size is 16, the stays of all 20 devices together"),
]

OTHER_TYPES = [
    ({"epochs": 1.5}, "epochs is 1.5; expected a whole number"),
    ({"epochs": "3"}, "epochs is the text '3'; expected a whole number"),
    ({"epochs": True}, "epochs is True; expected a whole number"),
    ({"seed": None}, "seed is None; expected a whole number"),
    ({"batch_size": 16.0}, "batch_size is 16.0; expected a whole number"),
    ({"devices": "2"}, "devices is the text '2'; expected a whole number"),
    ({"lr": None}, "lr is None; expected a number"),
    ({"lr": torch.tensor(0.1)}, "lr is of type Tensor; expected a number"),
    ({"compile": "no"}, "compile is the text 'no'; expected true or false"),
    ({"freeze_cxr": None}, "freeze_cxr is None; expected true or false"),
    ({"augment": 1}, "augment is 1; expected true or false or 'shifts'"),
    ({"task": ["los"]}, "task is ['los']; expected one of 'phenotyping'"),
    ({"accelerator": 5}, "accelerator is 5; expected text"),
    ({"init_ehr": 5}, "init_ehr is 5; expected a path"),
    ({"optimizer": torch.optim.SGD}, "optimizer is the class SGD; expected text"),
    ({"optimizer_args": [1]}, "optimizer_args is [1]; expected a mapping"),
    ({"optimizer_args": {5: 1}}, "a key of optimizer_args is 5; expected text"),
    ({"optimizer_args": {"eps": [torch.ones(1)]}}, "optimizer_args['eps'][0] is of type Tensor; expected a"),
]


@pytest.mark.parametrize(("options", "complaint"), OTHER_TYPES)
def test_options_of_another_type_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError) as refused:
        TrainOptions(**options)
    assert str(refused.value).startswith(complaint)


def test_numbers_of_numpy_text_and_other_mappings_become_what_is_annotated() -> None:
    given: dict[str, Any] = {
        "epochs": np.int64(3),
        "lr": np.float32(0.5),
        "freeze_cxr": np.True_,
        "task": np.str_("los"),
        "init_ehr": "runs/ehr",
        "optimizer_args": MappingProxyType({"eps": np.float64(1e-7), "betas": (0.8, 0.9)}),
    }
    options = TrainOptions(**given)
    expected = {
        "epochs": 3,
        "lr": 0.5,
        "freeze_cxr": True,
        "task": "los",
        "init_ehr": Path("runs/ehr"),
        "optimizer_args": {"eps": 1e-7, "betas": (0.8, 0.9)},
    }
    assert {name: getattr(options, name) for name in given} == expected
    assert yaml.safe_load(yaml.safe_dump(options.written()))["lr"] == 0.5


@pytest.mark.parametrize(("options", "complaint"), OUT_OF_RANGE)
def test_options_out_of_range_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError) as refused:
        TrainOptions(**options)
    assert str(refused.value).startswith(complaint)


def test_a_change_of_what_is_no_option_is_refused() -> None:
    with pytest.raises(InputError, match="'speed' is not an option of a training; expected one of train_on"):
        TrainOptions().changed(speed=1)


def test_every_option_has_one_role() -> None:
    by_role = [TrainOptions.names(role) for role in ("decides", "starts", "computes")]
    assert sorted(name for names in by_role for name in names) == sorted(TrainOptions.names())
    assert by_role[1:] == [
        ["init_ehr", "init_cxr"],
        ["accelerator", "num_workers", "checkpoint_activations", "devices", "nodes"],
    ]


def test_what_is_written_makes_the_same_options(tmp_path: Path) -> None:
    options = TrainOptions(
        train_on="matched", init_ehr=tmp_path / "ehr", optimizer_args={"betas": [0.8, 0.9]}, augment="shifts"
    )
    read = yaml.safe_load(yaml.safe_dump(options.written()))
    assert read["validate_on"] == "matched"
    again = TrainOptions(**read | {"init_ehr": Path(read["init_ehr"])})
    assert again.written() == options.written()


def test_only_what_is_not_a_default_decides() -> None:
    assert TrainOptions().deciding() == {}
    assert TrainOptions(validate_on="full", num_workers=3).deciding() == {}
    assert TrainOptions(train_on="matched", validate_on="matched").deciding() == {"train_on": "matched"}
    assert TrainOptions(validate_on="matched", lr=1e-3).deciding() == {"validate_on": "matched", "lr": 1e-3}


def test_options_that_a_command_decides_are_refused() -> None:
    refuse_decided(TrainOptions(lr=1.0), ("seed",), "reproduce")
    with pytest.raises(InputError, match="reproduce sets seed for each run; leave it out"):
        refuse_decided(TrainOptions(seed=1), ("seed",), "reproduce")
