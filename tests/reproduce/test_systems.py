"""The systems that are compared: each can be made, and a user's own joins them."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from drfuse.errors import InputError
from drfuse.imports import import_class
from drfuse.models import DrFuse, FusionModel, check_contract
from drfuse.reproduce.systems import System, choose_systems, paper_systems
from tests.builders import N_FEATURES, N_LABELS, TINY_BACKBONE, make_batch

TINY = {
    "n_variables": 2,
    "dim": 8,
    "heads": 2,
    "feedforward": 16,
    "fusion_dim": 12,
    "cxr_backbone": TINY_BACKBONE,
}
SMALL = Path(__file__).parents[2] / "benchmarks" / "small.yaml"
OWN = """
title: my model
model:
  class_path: tests.training.own_model.FirstHour
lr: 1e-3
reads: [ehr]
"""


def made(system: System, arguments: dict[str, Any]) -> FusionModel:
    described = system.with_arguments(arguments)
    torch.manual_seed(0)
    model = import_class(described["class_path"], FusionModel)(N_FEATURES, N_LABELS, **described["init_args"])
    assert isinstance(model, FusionModel)
    return model


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.yaml").write_text(OWN)
    return tmp_path / "own.yaml"


@pytest.mark.parametrize("name", paper_systems())
def test_every_shipped_system_can_be_made_and_keeps_the_contract(name: str) -> None:
    system, batch = paper_systems()[name], make_batch()
    model = made(system, TINY)
    check_contract(model, batch, N_LABELS)
    told = batch.has_cxr if system.reads == ["cxr"] else torch.ones(len(batch), dtype=torch.bool)
    assert torch.equal(model.eval()(batch).logits.isfinite().all(dim=1), told)
    model.train().loss(model(batch), batch)["total"].backward()


@pytest.mark.parametrize("name", paper_systems())
def test_every_shipped_system_can_be_made_with_the_small_options(name: str) -> None:
    options = yaml.safe_load(SMALL.read_text(encoding="utf-8"))
    size = options["crop_size"]
    model = made(paper_systems()[name], options["model_args"] | {"n_variables": 2})
    check_contract(model, make_batch(image_size=size), N_LABELS)


def test_the_systems_are_linear_baselines_the_paper_s_and_late_fusion() -> None:
    systems = choose_systems(None)
    assert [one.paper for one in systems if not one.is_variant] == [
        *(
            None,
            None,
            None,
            "Transformer",
            "ResNet50",
            None,
            "MMTM",
            "DAFT",
            "MedFuse",
            "MedFuse-II",
            "DrFuse",
        )
    ]
    assert [one.name for one in systems if one.is_unimodal] == [
        *("logistic-ehr", "logistic-cxr", "transformer", "resnet50")
    ]
    linear = ["logistic-ehr", "logistic-cxr", "logistic-late"]
    assert [one.name for one in systems if one.reference] == linear
    assert [one.name for one in systems if one.is_fitted] == linear
    assert [one.name for one in systems if one.is_variant] == [
        *("drfuse-no-disentangling", "drfuse-mse", "drfuse-no-ranking")
    ]
    assert len({one.title for one in systems}) == len(systems) == 14


def test_published_learning_rates() -> None:
    rates = {name: system.lr for name, system in paper_systems().items() if system.lr is not None}
    medfuse = ("medfuse", "medfuse-ii", "medfuse-stages", "medfuse-ii-stages")
    assert rates == {"lstm": 5.4e-4, "mmtm": 5.3e-5, "daft": 6.5e-5, **dict.fromkeys(medfuse, 7e-5)}


def test_medfuse_starts_from_encoders_like_its_own() -> None:
    first_stages = {name: one.first_stage for name, one in paper_systems().items() if one.first_stage}
    assert first_stages == {
        "medfuse-stages": {"ehr": "lstm", "cxr": "resnet34"},
        "medfuse-ii-stages": {"ehr": "transformer", "cxr": "resnet50"},
    }
    for name in first_stages:  # nothing else is different
        assert paper_systems()[name].model == paper_systems()[name.replace("-stages", "")].model
    for arguments in (TINY, TINY | {"layers": 2, "lstm_layers": 1}):
        for name, first in first_stages.items():
            fusion = made(paper_systems()[name], arguments)
            for modality, unimodal in first.items():
                encoder = made(paper_systems()[unimodal], arguments).encoder
                getattr(fusion, f"{modality}_encoder").load_state_dict(encoder.state_dict())


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("drfuse-no-disentangling", {"disentangle": False}),
        ("drfuse-mse", {"alignment": "mse"}),
        ("drfuse-no-ranking", {"attention_ranking": False}),
    ],
)
def test_a_variant_differs_from_drfuse_in_one_argument(name: str, changed: dict[str, Any]) -> None:
    drfuse, variant = made(paper_systems()["drfuse"], TINY), made(paper_systems()[name], TINY)
    assert type(variant) is type(drfuse) is DrFuse
    assert variant.init_args == drfuse.init_args | changed
    assert changed.items().isdisjoint(drfuse.init_args.items())


def test_a_variant_stays_one_whatever_is_asked_for_all() -> None:
    asked = {"alignment": "jsd", "auxiliary_weight": 0.25}
    of_variant = paper_systems()["drfuse-mse"].with_arguments(asked)
    assert of_variant["init_args"] == {"alignment": "mse", "auxiliary_weight": 0.25}
    of_drfuse = paper_systems()["drfuse"].with_arguments(asked)
    assert of_drfuse["init_args"] == asked


def test_medfuse_ii_has_the_encoders_of_drfuse() -> None:
    described = paper_systems()["medfuse-ii"].with_arguments({})
    assert described["init_args"] == {"ehr_encoder": "transformer", "cxr_backbone": "resnet50"}
    drfuse = inspect.signature(DrFuse).parameters
    assert drfuse["cxr_backbone"].default == "resnet50"


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("transformer", {"dim", "heads"}),
        ("resnet50", {"dim", "cxr_backbone"}),
        ("late-fusion", {"dim", "heads", "cxr_backbone"}),
        ("mmtm", {"dim", "heads", "cxr_backbone", "ratio"}),
        ("medfuse", {"dim", "heads", "cxr_backbone", "fusion_dim"}),
        ("drfuse", {"dim", "heads", "cxr_backbone", "disentangle"}),
    ],
)
def test_each_model_gets_only_what_it_takes(name: str, taken: set[str]) -> None:
    arguments = {
        "dim": 8, "heads": 2, "cxr_backbone": "resnet18", "ratio": 2, "fusion_dim": 4, "disentangle": True
    }  # fmt: skip
    described = paper_systems()[name].with_arguments(arguments)
    assert described["init_args"] == {key: arguments[key] for key in taken}


def test_arguments_go_before_a_system_s_own_and_change_none_of_it() -> None:
    system = paper_systems()["medfuse-ii"]
    described = system.with_arguments({"cxr_backbone": "resnet18"})
    assert described["init_args"] == {"ehr_encoder": "transformer", "cxr_backbone": "resnet18"}
    assert system.model["init_args"]["cxr_backbone"] == "resnet50"


def test_systems_are_chosen_by_name_each_once() -> None:
    asked_for = {*paper_systems()} - {system.name for system in choose_systems(None)}
    assert asked_for == {"additive-evidence", "medfuse-stages", "medfuse-ii-stages", "lstm", "resnet34"}
    assert [system.title for system in choose_systems(["lstm"])] == ["LSTM"]
    chosen = choose_systems(["drfuse", "mmtm", "drfuse"])
    assert [system.title for system in chosen] == ["DrFuse", "MMTM"]


def test_a_users_own_system_joins(own: Path) -> None:
    shipped, mine = choose_systems(["drfuse", str(own)])
    assert shipped is paper_systems()["drfuse"]
    assert (mine.name, mine.title, mine.lr, mine.paper, mine.ablation) == (
        "own",
        "my model",
        1e-3,
        None,
        None,
    )
    assert mine.is_unimodal
    assert not mine.is_variant
    check_contract(made(mine, TINY), make_batch(), N_LABELS)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "--models is empty; expected some of logistic-ehr, "),
        (["drfusion"], "there is no system 'drfusion'; expected some of logistic-ehr, .*, or a YAML file"),
        (["nowhere.yaml"], "there is no system 'nowhere.yaml'"),
        (["tests"], "there is no system 'tests'"),
    ],
)
def test_unknown_systems_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_systems(names)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "mine.yaml is empty"),
        ("- title", "mine.yaml is not a mapping"),
        ("title: a\ntitle: b", "'title' is given twice, in lines 1 and 2"),
        ("title: [", "while parsing"),
        ("title: x", "missing 1 required positional argument: 'model'"),
        ("model: {class_path: drfuse.models.MMTM}", "missing 1 required positional argument: 'title'"),
        (
            "{title: x, model: drfuse.models.MMTM}",
            "model is the text 'drfuse.models.MMTM'; expected a mapping",
        ),
        ("{title: x, model: {}}", "class_path"),
        (
            "{title: x, model: {class_path: drfuse.models.Nothing}}",
            "models.Nothing cannot be imported",
        ),
        ("{title: x, model: {class_path: nothing}}", "nothing cannot be imported"),
        (
            "{title: x, model: {class_path: torch.nn.Linear}}",
            "torch.nn.Linear is not a subclass of FusionModel",
        ),
        (
            "{title: x, model: {class_path: drfuse.models.logit_pool}}",
            "drfuse.models.logit_pool is not a subclass of Fusion",
        ),
        ("{title: x, model: {class_path: drfuse.models.MMTM, init_args: [8]}}", "init_args is not a mapping"),
        ("{title: 3, model: {class_path: drfuse.models.MMTM}}", "title is 3; expected text"),
        (
            "{title: x, model: {class_path: drfuse.models.MMTM}, lr: fast}",
            "lr is the text 'fast'; expected a number",
        ),
        (
            "{title: x, model: {class_path: drfuse.models.MMTM}, reads: cxr}",
            "reads is the text 'cxr'; expected a list",
        ),
        ("{title: x, model: {class_path: drfuse.models.MMTM}, color: red}", "unexpected keyword"),
        ("{title: x, model: {class_path: drfuse.models.MMTM}, first_stage: {ehr: gru}}", "first_stage has"),
        (
            "{title: x, model: {class_path: drfuse.models.MMTM}, first_stage: {ehr: resnet50}}",
            "first_stage has",
        ),
        (
            "{title: x, model: {class_path: drfuse.models.MMTM}, first_stage: ehr}",
            "first_stage is the text 'ehr'",
        ),
    ],
)
def test_a_file_that_describes_no_system_is_named_in_one_sentence(
    text: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(
        InputError, match=rf"mine.yaml does not describe a system: .*{reason}.*; expected title"
    ) as stop:
        choose_systems([str(path)])
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize("name", ["drfuse.yaml", "my model.yaml", "v1.2.yml"])
def test_a_file_whose_name_can_be_no_system_s_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(OWN)
    with pytest.raises(InputError, match=f"{name} cannot be the name of a system; rename it"):
        choose_systems([str(tmp_path / name)])


@pytest.mark.parametrize(
    ("other", "title", "name"),
    [
        ("own.yml", "another", "own"),
        ("other.yaml", "my model", "my model"),
        ("other.yaml", "DrFuse", "DrFuse"),
    ],
)
def test_two_systems_of_one_name_are_refused(other: str, title: str, name: str, own: Path) -> None:
    path = own.with_name(other)
    path.write_text(OWN.replace("my model", title))
    with pytest.raises(InputError, match=f"two systems are called {name}; rename"):
        choose_systems(["drfuse", str(own), str(path)])
