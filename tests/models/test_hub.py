"""A model goes into a folder or a repository of the hub, and comes back as it was."""

import json
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ResNetBackbone, ResNetConfig

from drfuse.errors import InputError, MissingInputError
from drfuse.inference import Predictor
from drfuse.models import DrFuse, EhrLstm, FusionModel, MedFuse, shipped_models
from drfuse.models.hub import HUB_FILES
from drfuse.run import Run
from drfuse.training import train
from tests.builders import TINY_BACKBONE, left_in, make_batch, tiny_drfuse, tiny_model

PLAIN = {"config.json", "model.safetensors", "README.md", "sums.json"}


def logits_of(model: FusionModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(make_batch()).logits


def assert_equal(one: FusionModel, other: FusionModel) -> None:
    torch.testing.assert_close(logits_of(one), logits_of(other), rtol=0, atol=0, equal_nan=True)


def read(folder: Path, **options: Any) -> FusionModel:
    return FusionModel.from_pretrained(folder, **options)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (folder / "sums.json").unlink()


@pytest.fixture(scope="module")
def run(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hub") / "run"
    model = partial(EhrLstm, dim=8)
    return train(small_cohort, out, model, epochs=1, crop_size=32, accelerator="cpu").folder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny_drfuse().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("name", shipped_models())
def test_every_shipped_model_comes_back_to_the_bit(name: str, tmp_path: Path) -> None:
    kind = shipped_models()[name]
    model = tiny_model(kind)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor))  # running variances stay above 0
    model.save_pretrained(tmp_path / "a")
    assert left_in(tmp_path / "a") == PLAIN
    for opened in (kind.from_pretrained(tmp_path / "a"), read(str(tmp_path / "a"))):  # type: ignore[arg-type]
        assert type(opened) is kind
        assert not opened.training
        assert opened.init_args == model.init_args
        assert opened.facts is None
        assert opened.state_dict().keys() == model.state_dict().keys()
        assert_equal(opened, model)
        opened.save_pretrained(tmp_path / "b")
    for file in PLAIN:
        assert (tmp_path / "b" / file).read_bytes() == (tmp_path / "a" / file).read_bytes()


def test_a_run_is_opened_with_its_facts_and_saved_with_them(
    run: Path, small_cohort: Path, tmp_path: Path
) -> None:
    model = EhrLstm.from_pretrained(run)
    assert model.facts == Run(run).read_facts()
    deepcopy(model).save_pretrained(tmp_path / "saved")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "saved" / file).read_bytes() == (run / file).read_bytes()
    expected, found = (Predictor.open(folder).predict(small_cohort) for folder in (run, tmp_path / "saved"))
    np.testing.assert_array_equal(found.logits, expected.logits)


def test_a_model_without_facts_cannot_predict_a_cohort(saved: Path) -> None:
    with pytest.raises(
        MissingInputError, match=r"saved holds a model alone, without the variables, .* needs"
    ):
        Predictor.open(saved)


def test_nothing_is_saved_into_a_run(run: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(InputError, match="is a run of `drfuse train`; choose a different folder"):
        tiny_drfuse().save_pretrained(run)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_the_card_stays_with_its_weights_and_the_licence_with_the_model(saved: Path, tmp_path: Path) -> None:
    for name in ("README.md", "LICENSE.md", "recalibration.json"):
        (saved / name).write_text(f"the {name}")
    model = read(saved)
    model.save_pretrained(tmp_path / "same")
    assert left_in(tmp_path / "same") == set(HUB_FILES)
    assert (tmp_path / "same" / "README.md").read_text() == "the README.md"
    next(model.parameters()).data += 1
    model.save_pretrained(tmp_path / "changed")
    assert left_in(tmp_path / "changed") == PLAIN | {"LICENSE.md"}
    assert "with the weights alone" in (tmp_path / "changed" / "README.md").read_text()
    model.save_pretrained(tmp_path / "same")
    assert left_in(tmp_path / "same") == PLAIN | {"LICENSE.md"}, "a recalibration of other weights is left"


def test_a_link_that_leads_out_of_the_folder_is_not_saved_again(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "secret").write_text("a password")
    for name in ("README.md", "LICENSE.md", "recalibration.json"):
        (saved / name).unlink(missing_ok=True)
        (saved / name).symlink_to(tmp_path / "secret")
    read(saved).save_pretrained(tmp_path / "again")
    assert left_in(tmp_path / "again") == PLAIN
    assert "a password" not in (tmp_path / "again" / "README.md").read_text()
    assert caplog.text.count("is a link that leads out of the folder") == 3


def test_arguments_may_be_changed(saved: Path, tmp_path: Path) -> None:
    model = read(saved, dropout=0.5)
    assert model.init_args["dropout"] == 0.5
    assert_equal(model, tiny_drfuse())
    model.save_pretrained(tmp_path / "again")
    assert read(tmp_path / "again").init_args["dropout"] == 0.5


# --- what is refused ----------------------------------------------------------------------------------------


def other_class(folder: Path) -> None:
    change_config(folder, model={"class_path": "os.system", "init_args": {}})


def other_arguments(folder: Path) -> None:
    change_config(folder, model={"class_path": "drfuse.models.drfuse.DrFuse", "init_args": {"size": 3}})


def download(folder: Path) -> None:
    init_args = {"cxr_backbone": "owner/name"}
    change_config(folder, model={"class_path": "drfuse.models.drfuse.DrFuse", "init_args": init_args})


def pickled(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (other_class, "the model of .*saved is os.system, which is not one of drfuse's; import it before"),
        (other_arguments, "saved cannot be loaded: .*unexpected keyword argument 'size'"),
        (download, "saved cannot be loaded: .*owner/name is not read"),
        (pickled, r"saved has no model\.safetensors, so it is not a model"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"0" * 99),
            r"model\.safetensors is damaged: it is not what drfuse wrote; copy it again",
        ),
        (lambda folder: (folder / "config.json").unlink(), r"saved has no config\.json"),
        (lambda folder: (folder / "config.json").write_text("[" * 99_999), r"config\.json is damaged"),
        (
            lambda folder: change_config(folder, n_labels="3"),
            r"config\.json is damaged: n_labels is the text",
        ),
        (
            lambda folder: change_config(folder, model={}),
            r"config\.json is damaged: model\.class_path is None",
        ),
        (lambda folder: change_config(folder, n_features=6), "saved cannot be loaded: .*size mismatch"),
    ],
)
def test_a_folder_that_holds_no_model_of_ours_is_refused(
    saved: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(saved)
    with pytest.raises(InputError, match=message) as caught:
        read(saved)
    assert "\n" not in str(caught.value)


def test_a_model_of_another_class_is_refused(saved: Path) -> None:
    with pytest.raises(InputError, match=r"saved is a DrFuse, not a MedFuse; open it with DrFuse\.from_pret"):
        MedFuse.from_pretrained(saved)


def test_a_pretrained_backbone_is_saved_with_the_model(tmp_path: Path) -> None:
    sizes: dict[str, Any] = TINY_BACKBONE
    ResNetBackbone(ResNetConfig(**sizes)).save_pretrained(tmp_path / "backbone")
    model = tiny_drfuse(cxr_backbone=str(tmp_path / "backbone"))
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "backbone").rename(tmp_path / "gone")
    assert_equal(read(tmp_path / "saved"), model)


# --- the hub ------------------------------------------------------------------------------------------------

COMMIT = "a" * 40


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Return a cache of the hub that holds the revision v1 of a repository, and a file that nobody needs."""
    repository = tmp_path / "cache" / "models--someone--tiny"
    tiny_drfuse().save_pretrained(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(COMMIT)
    return repository.parent


def test_a_downloaded_revision_is_opened_without_a_network(cache: Path) -> None:
    opened = DrFuse.from_pretrained("someone/tiny", revision="v1", cache_dir=cache)
    assert_equal(opened, tiny_drfuse())
    with pytest.raises(MissingInputError, match="someone/tiny is neither a folder here nor a repository"):
        DrFuse.from_pretrained("someone/tiny", revision="v2", cache_dir=cache)


def test_only_the_files_of_a_model_are_downloaded(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(repo_id: str, **options: Any) -> str:
        asked.update(options, repo_id=repo_id)
        return str(saved)

    monkeypatch.setattr("drfuse.models.hub.snapshot_download", download)
    options: dict[str, Any] = {
        "revision": "v1",
        "token": "x",
        "force_download": True,
        "local_files_only": False,
    }
    assert_equal(DrFuse.from_pretrained("someone/tiny", **options), tiny_drfuse())
    expected = {"repo_id": "someone/tiny", "cache_dir": None, "allow_patterns": list(HUB_FILES)}
    assert asked == expected | options


@pytest.mark.parametrize("through", ["push_to_hub", "save_pretrained"])
def test_a_pushed_repository_holds_the_weights_their_facts_and_a_card(
    through: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: dict[str, Any] = {}

    class FakeApi:
        def __init__(self, token: str | None) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> SimpleNamespace:
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, folder_path: Path, **options: Any) -> str:
            pushed.update(options, files={path.name: path.read_bytes() for path in folder_path.iterdir()})
            return "url"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", FakeApi)
    model = EhrLstm.from_pretrained(run)
    if through == "push_to_hub":
        assert model.push_to_hub("me/mine", branch="v2") == "url"
    else:
        assert (
            model.save_pretrained(tmp_path / "a", repo_id="me/mine", push_to_hub=True, branch="v2") == "url"
        )
    recalibration = {"recalibration.json"} & left_in(run)
    assert pushed["files"].keys() == PLAIN | recalibration
    for file in {"config.json", "model.safetensors", *recalibration}:
        assert pushed["files"][file] == (run / file).read_bytes()
    assert (pushed["repo_id"], pushed["revision"]) == ("me/mine", "v2")
