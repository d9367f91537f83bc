"""The options of a training: their ranges, what each is for, and how they are written."""

from pathlib import Path
from typing import Any

import pytest
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
    ({"seed": None}, "seed is None; expected at least 0"),
    ({"epochs": "3"}, "epochs is 3; expected at least 1"),
    ({"lr": None}, "lr is None; expected a number above 0"),
    ({"optimizer_args": 3}, "optimizer_args is 3; expected a mapping"),
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
]


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
