"""The same search for every system, from a hospital to settings that `drfuse reproduce` takes."""

import inspect
from pathlib import Path

import pytest
import yaml

from benchmarks.claims import claims
from benchmarks.development import development_cohorts
from benchmarks.search import choose, search, table
from drfuse.errors import InputError
from drfuse.reproduce.plan import OWN_OPTIONS


def test_the_best_mean_over_hospitals_is_chosen() -> None:
    praucs = {("a", (1e-3, 0.0)): [0.3, 0.4], ("a", (1e-4, 0.1)): [0.2, 0.6], ("b", (1e-3, 0.0)): [0.1, 0.1]}
    assert choose(praucs) == {"a": {"lr": 1e-4, "weight_decay": 0.1}, "b": {"lr": 1e-3, "weight_decay": 0.0}}
    assert "| a | 0.0001 | 0.1 | 0.400 | 0.200; 0.600 |" in table(praucs)


@pytest.mark.parametrize("seed", inspect.signature(claims).parameters["seeds"].default)
def test_a_measured_hospital_is_not_searched_on(tmp_path: Path, seed: int) -> None:
    config = tmp_path / "small.yaml"
    config.write_text("epochs: 1\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"seed {seed} is a hospital that is measured later"):
        search(tmp_path, config, hospitals=(101, seed))
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


@pytest.mark.parametrize("seeds", [(), (101, 101)])
def test_hospitals_are_of_different_seeds(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="expected development hospitals of different seeds"):
        development_cohorts(tmp_path, seeds)


@pytest.mark.slow
def test_a_hospital_of_other_options_is_not_taken_for_the_one_that_is_asked_for(tmp_path: Path) -> None:
    (cohort,) = development_cohorts(tmp_path, (101,), stays=60, cxr_rate=0.6, image_size=32)
    (again,) = development_cohorts(tmp_path, (101,), stays=60, cxr_rate=0.6, image_size=32)
    assert len(cohort) == 60
    assert again.fingerprint == cohort.fingerprint
    with pytest.raises(InputError, match=r"was made with stays 60, not 80; choose a different --out"):
        development_cohorts(tmp_path, (101,), stays=80, cxr_rate=0.6, image_size=32)


@pytest.mark.slow
def test_every_system_is_searched_and_gets_settings(tmp_path: Path) -> None:
    shared = {
        "model_args": {
            "dim": 8,
            "heads": 2,
            "feedforward": 16,
            "cxr_backbone": {"layer_type": "basic", "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]},
        },
        "epochs": 1,
        "crop_size": 32,
        "augment": False,
        "lr": 5e-4,
        "seeds": [0, 1],
    }
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(shared), encoding="utf-8")
    settings = search(
        tmp_path,
        config,
        hospitals=(101,),
        lr=(1e-3,),
        weight_decay=(0.3,),
        stays=120,
        cxr_rate=0.6,
        image_size=32,
    )
    systems = {"transformer", "resnet50", "late-fusion", "mmtm", "daft", "medfuse", "medfuse-ii", "drfuse"}
    assert settings == {name: {"lr": 1e-3, "weight_decay": 0.3} for name in systems}
    assert yaml.safe_load((tmp_path / "settings.yaml").read_text()) == {"settings": settings}
    assert set(next(iter(settings.values()))) == OWN_OPTIONS
