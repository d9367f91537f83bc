"""From a cohort on disk to the batches of a training run."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from drfuse.data import Batch, Cohort, CohortDataModule, EhrFeatures, Modality, StayDataset, StoredBatch
from drfuse.data.augmentation import CxrTransform
from drfuse.data.batch import Stays
from drfuse.data.datamodule import drop_cxr
from drfuse.errors import InputError
from drfuse.subsets import Subset
from tests.builders import write_cohort


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return Cohort.open(write_cohort(tmp_path / "cohort"))


@pytest.fixture
def larger(tmp_path: Path) -> Cohort:
    splits = ("train",) * 40 + ("validation",) * 20
    return Cohort.open(write_cohort(tmp_path / "larger", splits, with_cxr=range(0, 60, 2)))


class Recorder(L.LightningModule):
    """Keeps the batches that training and validation see."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.trained: list[tuple[int, Batch]] = []
        self.validated: list[Batch] = []

    def training_step(self, batch: Batch) -> Tensor:
        self.trained.append((self.current_epoch, batch))
        return self.weight * 1.0

    def validation_step(self, batch: Batch) -> None:
        self.validated.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(epochs: int = 1) -> L.Trainer:
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    return L.Trainer(max_epochs=epochs, accelerator="cpu", num_sanity_val_steps=1, **quiet)


def fit(epochs: int = 1, seed: int = 0, **options: Any) -> Recorder:
    torch.manual_seed(seed)
    recorder = Recorder()
    trainer(epochs).fit(recorder, datamodule=CohortDataModule(seed=seed, **options))
    return recorder


def grey_levels(batch: Batch) -> list[int]:
    """Return the stored grey value of each radiograph, which is its row in the cohort."""
    mean, std = (0.485 + 0.456 + 0.406) / 3, (0.229 + 0.224 + 0.225) / 3
    side = batch.cxr.shape[-1] // 2
    return [round(value) for value in ((batch.cxr[:, 0, side, side] * std + mean) * 255).tolist()]


# --- the dataset --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [10, 1, 6], [4], [0], [11, 9, 7]])
def test_indexing_with_rows_makes_the_batch_of_those_stays(cohort: Cohort, rows: list[int]) -> None:
    batch = StayDataset(cohort)[rows]
    assert batch.stay_id.tolist() == [1000 + 10 * row for row in rows]
    assert batch.n_hours.tolist() == cohort.n_hours[rows].tolist()
    assert torch.equal(batch.labels, torch.tensor(cohort.labels[rows]))
    assert batch.ehr.shape == (len(rows), max(cohort.n_hours[rows]), 59)
    with_cxr = [(i, row) for i, row in enumerate(rows) if cohort.has_cxr[row]]
    assert batch.cxr_of.tolist() == [i for i, _ in with_cxr]
    assert batch.cxr_row.tolist() == [cohort.cxr_row[row] for _, row in with_cxr]
    assert batch.pixels.dtype == torch.uint8
    assert batch.pixels.shape == (len(with_cxr), 1, 12, 12)
    for image, (_, row) in zip(batch.pixels, with_cxr, strict=True):
        assert (image == row).all()
    integers, floats = ("stay_id", "n_hours", "cxr_of", "cxr_row"), ("ehr", "labels")
    dtypes = {name: getattr(batch, name).dtype for name in (*integers, *floats)}
    for field in fields(batch):  # as bytes, in which processes exchange them
        getattr(batch, field.name).flatten().view(torch.uint8)
    assert dtypes == dict.fromkeys(integers, torch.int64) | dict.fromkeys(floats, torch.float32)


def test_a_stay_s_features_do_not_depend_on_its_batch(cohort: Cohort) -> None:
    dataset = StayDataset(cohort)
    together = dataset[list(range(12))]
    features = EhrFeatures(cohort.manifest.variables, cohort.normalization)
    for row in range(12):
        hours = int(cohort.n_hours[row])
        alone = dataset[[row]]
        assert alone.ehr.shape[1] == hours
        assert torch.equal(alone.ehr[0], together.ehr[row, :hours])
        assert (together.ehr[row, hours:] == 0).all()
        values = torch.tensor(np.array(cohort.ehr[[row], :hours]))
        assert torch.equal(alone.ehr, features(values, torch.tensor([hours])))


def test_the_dataset_has_as_many_stays_as_the_cohort(cohort: Cohort) -> None:
    assert len(StayDataset(cohort)) == 12


# --- loaders ------------------------------------------------------------------------------------------------


def stay_ids(batches: Sequence[Stays]) -> list[int]:
    return [stay_id for batch in batches for stay_id in batch.stay_id.tolist()]


@pytest.mark.parametrize(
    ("train_on", "train", "validation"),
    [("full", [0, 1, 2, 3, 4, 5], [6, 7, 8]), ("matched", [0, 2, 3], [6, 8])],
)
def test_training_and_validation_read_their_own_split(
    cohort: Cohort, train_on: Any, train: list[int], validation: list[int]
) -> None:
    module = CohortDataModule(cohort, train_on, batch_size=2, crop_size=8)
    assert sorted(stay_ids(list(module.train_dataloader()))) == [1000 + 10 * row for row in train]
    assert stay_ids(list(module.val_dataloader())) == [1000 + 10 * row for row in validation]


@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
def test_prediction_reads_every_stay_in_order(cohort: Cohort, batch_size: int) -> None:
    module = CohortDataModule(cohort, batch_size=batch_size, crop_size=8)
    batches = list(module.batches(module.rows))
    assert stay_ids(batches) == [1000 + 10 * row for row in range(12)]
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    assert len(batches[-1]) <= batch_size


def test_worker_processes_make_the_same_batches(cohort: Cohort) -> None:
    here = list(CohortDataModule(cohort, batch_size=4, crop_size=8).train_dataloader())
    there = list(CohortDataModule(cohort, batch_size=4, crop_size=8, num_workers=1).train_dataloader())
    assert stay_ids(here) == stay_ids(there)
    assert all(torch.equal(a.ehr, b.ehr) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize(("task", "n_labels"), [("phenotyping", 3), ("mortality", 1), ("los", 7)])
def test_no_batch_holds_a_stay_that_does_not_take_part(tmp_path: Path, task: Any, n_labels: int) -> None:
    stays = (0.2, 2.0, 5.0) * 4  # days; the window has two
    cohort = Cohort.open(write_cohort(tmp_path / "cohort", window_hours=48, los=stays))
    module = CohortDataModule(cohort, batch_size=2, crop_size=8, task=task)
    rows = range(12) if task == "phenotyping" else range(2, 12, 3)
    expected = {
        "train": [row for row in rows if row < 6],
        "validation": [row for row in rows if 6 <= row < 9],
        "all": list(rows),
    }
    loaders: list[Iterable[Any]] = [
        module.train_dataloader(),
        module.val_dataloader(),
        module.batches(module.rows),
    ]
    for some, loader in zip(expected.values(), loaders, strict=True):
        batches = list(loader)
        assert sorted(stay_ids(batches)) == [1000 + 10 * row for row in some]
        assert all(batch.labels.shape == (len(batch), n_labels) for batch in batches)
    assert set(module.example().stay_id.tolist()) <= {1000 + 10 * row for row in rows}


def test_the_example_holds_the_longest_stay(tmp_path: Path) -> None:
    cohort = Cohort.open(write_cohort(tmp_path / "cohort"))
    longest = CohortDataModule(cohort, crop_size=8).example()
    assert longest.n_hours.max() == cohort.n_hours.max()
    assert longest.ehr.shape[1] == cohort.n_hours.max()


def test_a_split_whose_stays_take_no_part_is_empty(tmp_path: Path) -> None:
    stays = (5.0,) * 6 + (1.0,) * 3 + (5.0,) * 3
    cohort = Cohort.open(write_cohort(tmp_path / "cohort", window_hours=48, los=stays))
    CohortDataModule(cohort, crop_size=8)
    with pytest.raises(InputError, match=r"the validation split of .* has no stay"):
        CohortDataModule(cohort, crop_size=8, task="mortality")


# --- in a run -----------------------------------------------------------------------------------------------


def test_each_epoch_has_its_own_order_and_the_seed_decides_it(larger: Cohort) -> None:
    def orders(seed: int) -> list[list[int]]:
        trained = fit(2, seed, cohort=larger, batch_size=8, crop_size=8).trained
        return [stay_ids([batch for at, batch in trained if at == epoch]) for epoch in (0, 1)]

    first, second = orders(0)
    assert first != second
    assert sorted(first) == sorted(second) == [1000 + 10 * row for row in range(40)]
    assert orders(0) == [first, second]
    assert orders(1)[0] != first


def test_equal_seeds_repeat_augmentation_and_dropping(larger: Cohort) -> None:
    options: dict[str, Any] = {"cohort": larger, "train_on": "matched", "batch_size": 8, "crop_size": 8}
    first, again, other = (fit(1, seed, **options).trained for seed in (3, 3, 4))
    for (_, one), (_, same) in zip(first, again, strict=True):
        assert torch.equal(one.cxr_of, same.cxr_of)
        assert torch.equal(one.cxr, same.cxr)
    assert not all(torch.equal(a.cxr, b.cxr) for (_, a), (_, b) in zip(first, other, strict=True))


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_matched_training_drops_radiographs_and_validation_keeps_them(larger: Cohort, share: float) -> None:
    recorder = fit(
        2, cohort=larger, train_on="matched", batch_size=10, crop_size=8, matched_cxr_dropout=share
    )
    assert len(recorder.trained) == 2 * 2
    for _, batch in recorder.trained:
        assert len(batch) == 10
        assert len(batch.cxr) == round(10 * (1 - share))
        assert batch.has_cxr.sum() == len(batch.cxr)
    assert recorder.validated
    assert all(len(batch.cxr) == len(batch) for batch in recorder.validated)


def test_training_on_all_stays_drops_no_radiograph(larger: Cohort) -> None:
    recorder = fit(cohort=larger, batch_size=8, crop_size=8)
    assert sum(len(batch.cxr) for _, batch in recorder.trained) == 20
    assert {len(batch.cxr) for _, batch in recorder.trained} == {4}


@pytest.mark.parametrize("train_on", ["full", "matched"])
@pytest.mark.parametrize("validate_on", ["full", "matched", None])
def test_validation_stays_are_chosen_apart_from_training_stays(
    larger: Cohort, train_on: Subset, validate_on: Subset | None
) -> None:
    module = CohortDataModule(larger, train_on, crop_size=8, validate_on=validate_on)
    np.testing.assert_array_equal(module.train_rows, larger.rows("train", train_on))
    np.testing.assert_array_equal(module.validation_rows, larger.rows("validation", validate_on or train_on))
    validated = [stay for batch in module.val_dataloader() for stay in batch.stay_id.tolist()]
    assert validated == larger.stays["stay_id"][module.validation_rows].to_list()


@pytest.mark.parametrize("n_ranks", [2, 3, 4])
def test_processes_know_which_training_batches_are_whole(larger: Cohort, n_ranks: int) -> None:
    rows = larger.rows("train")[:5]  # in batches of 3 and 2 stays
    modules = [
        CohortDataModule(larger, batch_size=4, crop_size=8, rank=rank, n_ranks=n_ranks)
        for rank in range(n_ranks)
    ]
    for module in modules:
        module.train_rows = rows
        module.trainer = SimpleNamespace(training=True, predicting=False, current_epoch=0)  # type: ignore[assignment]
    loaders = [[batch.stay_id.tolist() for batch in module.train_dataloader()] for module in modules]
    for number, parts in enumerate(zip(*loaders, strict=True)):
        is_whole = [module.is_whole(number) for module in modules]
        assert is_whole == [(3, 2)[number] < n_ranks] * n_ranks
        trained = parts[0] if is_whole[0] else [stay for part in parts for stay in part]
        assert len(set(trained)) == len(trained) == (3, 2)[number]


def test_which_radiographs_are_dropped_changes_from_epoch_to_epoch(larger: Cohort) -> None:
    recorder = fit(6, cohort=larger, train_on="matched", batch_size=20, crop_size=8)
    times_seen = Counter(int(batch.stay_id[row]) for _, batch in recorder.trained for row in batch.cxr_of)
    assert len(times_seen) == 20
    assert sum(times_seen.values()) == 6 * 14
    assert len(set(times_seen.values())) > 1


def test_only_training_augments(larger: Cohort) -> None:
    recorder = fit(cohort=larger, batch_size=8, crop_size=8)
    for batch in recorder.validated:
        rows = [(int(batch.stay_id[at]) - 1000) // 10 for at in batch.cxr_of]
        assert grey_levels(batch) == rows
        assert all(image.max() == image.min() for image in batch.cxr)
        assert batch.cxr.shape[1:] == (1, 8, 8)
    augmented = [image for _, batch in recorder.trained for image in batch.cxr]
    assert any(image.max() > image.min() for image in augmented)


def test_augmentation_can_be_left_out(larger: Cohort) -> None:
    recorder = fit(cohort=larger, batch_size=8, crop_size=8, augment=False)
    for _, batch in recorder.trained:
        assert grey_levels(batch) == [(int(batch.stay_id[at]) - 1000) // 10 for at in batch.cxr_of]
        assert all(image.max() == image.min() for image in batch.cxr)


def test_training_radiographs_are_shifted_alone_if_asked_for(larger: Cohort) -> None:
    data = CohortDataModule(larger, crop_size=8, augment="shifts")
    assert data.augment
    assert type(data.transform_cxr.augment) is type(CxrTransform(8, shifts=True).augment)
    with pytest.raises(InputError, match="augment is 'flips'; expected one of True, False, 'shifts'"):
        CohortDataModule(larger, crop_size=8, augment="flips")  # type: ignore[arg-type]


def test_prediction_neither_drops_nor_augments(larger: Cohort) -> None:
    module = CohortDataModule(larger, train_on="matched", batch_size=8, crop_size=8)
    predicted = list(module.batches(module.rows))
    assert stay_ids(predicted) == [1000 + 10 * row for row in range(60)]
    assert sum(len(batch.cxr) for batch in predicted) == 30
    for batch in predicted:
        assert grey_levels(batch) == [(int(batch.stay_id[at]) - 1000) // 10 for at in batch.cxr_of]


def test_batches_without_any_radiograph_reach_the_model(tmp_path: Path) -> None:
    cohort = Cohort.open(write_cohort(tmp_path / "none", with_cxr=()))
    recorder = fit(cohort=cohort, batch_size=4, crop_size=8)
    assert all(batch.cxr.shape == (0, 1, 8, 8) for _, batch in recorder.trained)
    assert all(batch.cxr.dtype == torch.float32 for _, batch in recorder.trained)


def test_without_a_trainer_a_batch_is_transformed_as_for_evaluation(cohort: Cohort) -> None:
    module = CohortDataModule(cohort, train_on="matched", batch_size=4, crop_size=8)
    batch = module.on_after_batch_transfer(next(iter(module.val_dataloader())), 0)
    assert grey_levels(batch) == [6, 8]


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_batches_of_some_rows_are_whole_as_evaluation_sees_them_and_come_again(
    larger: Cohort, n_ranks: int
) -> None:
    module = CohortDataModule(larger, "matched", 4, crop_size=8, n_ranks=n_ranks)
    batches = module.batches(module.train_rows)
    first, again = list(batches), list(batches)
    expected = larger.stays["stay_id"].to_numpy()[module.train_rows]
    assert torch.cat([batch.stay_id for batch in first]).tolist() == expected.tolist()
    assert {len(batch) for batch in first[:-1]} == {4}
    assert all(len(batch.cxr) == len(batch) for batch in first)  # none is dropped
    assert all(torch.equal(a.cxr, b.cxr) for a, b in zip(first, again, strict=True))  # none is augmented


def test_a_share_of_the_radiographs_is_used_in_training_alone(larger: Cohort) -> None:
    recorder = fit(cohort=larger, batch_size=8, crop_size=8, cxr_share=0.5)
    assert [len(batch.cxr) for _, batch in recorder.trained] == [2] * 5  # of four
    assert sum(len(batch.cxr) for batch in recorder.validated) == 10 + 4  # one batch more to try it out
    matched = CohortDataModule(larger, "matched", crop_size=8, cxr_share=0.5)
    assert matched.cxr_dropout == pytest.approx(1 - 0.7 * 0.5)


def test_radiographs_that_no_one_reads_are_not_read(larger: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    module = CohortDataModule(larger, batch_size=8, crop_size=8)
    read: list[int] = []
    pixels = StayDataset.pixels
    monkeypatch.setattr(StayDataset, "pixels", lambda data, rows: read.extend(rows) or pixels(data, rows))
    module.read_only(["ehr"])
    batches = list(module.train_dataloader())
    assert len(stay_ids(batches)) == 40
    assert all(batch.pixels.shape == (0, 1, 12, 12) and not batch.has_cxr.any() for batch in batches)
    module.read_only(["ehr", "cxr"], cxr_pixels=False)
    assert sum(len(batch.cxr_row) for batch in module.train_dataloader()) == 20
    assert not read
    module.read_only(["ehr", "cxr"])
    assert len(list(module.train_dataloader())) == 5
    assert len(read) == 20


@pytest.mark.parametrize(("reads", "dropout"), [(["cxr"], 0.0), (["ehr", "cxr"], 0.3), (["ehr"], 0.3)])
def test_matched_training_takes_no_radiograph_from_a_model_that_reads_nothing_else(
    larger: Cohort, reads: list[Modality], dropout: float
) -> None:
    module = CohortDataModule(larger, "matched", crop_size=8)
    module.read_only(reads)
    assert module.cxr_dropout == dropout


def test_a_task_is_kept_when_batches_hold_less(larger: Cohort) -> None:
    module = CohortDataModule(larger, crop_size=8, task="mortality")
    module.read_only(["ehr"])
    assert module.dataset.task.name == "mortality"


def test_the_rows_of_radiographs_stand_for_their_pixels(larger: Cohort) -> None:
    module = CohortDataModule(larger, batch_size=7, crop_size=8)
    every = torch.cat(list(module.every_cxr()))
    assert every.shape == (30, 1, 8, 8)
    for rows in ([0, 1, 2, 3], [5], [9, 4, 8]):
        module.read_only(["ehr", "cxr"])
        pixels = module.on_after_batch_transfer(module.dataset[rows], 0)
        module.read_only(["ehr", "cxr"], cxr_pixels=False)
        named = module.on_after_batch_transfer(module.dataset[rows], 0)
        assert named.cxr.shape == (len(pixels.cxr), 1, 0, 0)
        assert torch.equal(named.cxr_of, pixels.cxr_of)
        assert torch.equal(named.cxr_row, pixels.cxr_row)
        assert torch.equal(every[named.cxr_row], pixels.cxr)


def test_only_to_a_gpu_is_a_batch_copied_without_waiting(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, bool] = {}
    monkeypatch.setattr(
        StoredBatch, "to", lambda _, device, non_blocking: seen.update({device.type: non_blocking})
    )
    module = CohortDataModule(cohort, crop_size=8)
    for device in ("cpu", "cuda"):
        module.transfer_batch_to_device(module.dataset[[0]], torch.device(device), 0)
    assert seen == {"cpu": False, "cuda": True}


# --- dropping -----------------------------------------------------------------------------------------------


def images(n: int) -> StoredBatch:
    everything = torch.arange(n)
    return StoredBatch(
        stay_id=everything,
        ehr=torch.zeros(n, 1, 1),
        n_hours=torch.ones(n),
        pixels=everything[:, None, None, None],
        cxr_of=everything,
        cxr_row=everything,
        labels=torch.zeros(n, 1),
    )


@pytest.mark.parametrize(
    ("n", "share", "kept"), [(16, 0.3, 11), (10, 0.3, 7), (1, 0.3, 1), (0, 0.3, 0), (8, 1.0, 0)]
)
def test_a_share_of_the_radiographs_is_dropped(n: int, share: float, kept: int) -> None:
    batch = drop_cxr(images(n), share)
    assert len(batch) == n
    assert len(batch.pixels) == kept
    assert (
        batch.pixels.flatten().tolist()
        == batch.cxr_row.tolist()
        == batch.cxr_of.tolist()
        == sorted(set(batch.cxr_of.tolist()))
    )


def test_every_radiograph_is_dropped_equally_often() -> None:
    torch.manual_seed(0)
    kept = Counter(row for _ in range(2000) for row in drop_cxr(images(10), 0.3).cxr_of.tolist())
    assert all(abs(kept[row] / 2000 - 0.7) < 0.05 for row in range(10))


# --- wrong settings -----------------------------------------------------------------------------------------


def test_a_crop_larger_than_the_radiographs_says_what_to_do(cohort: Cohort) -> None:
    with pytest.raises(InputError, match=r"crop_size is 13.*12 pixels.*smaller crop.*--image-size 13"):
        CohortDataModule(cohort, crop_size=13)
    with pytest.raises(InputError, match="crop_size is 224"):
        CohortDataModule(cohort)
    CohortDataModule(cohort, crop_size=12)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_empty_split_says_what_to_do(tmp_path: Path, split: str) -> None:
    others = tuple(name for name in ("train", "validation", "test") if name != split)
    cohort = Cohort.open(write_cohort(tmp_path / "cohort", others * 4, with_cxr=(0, 1)))
    with pytest.raises(
        InputError, match=f"the {split} split of .* no stay in the full set; prepare .*--split-file"
    ):
        CohortDataModule(cohort, crop_size=8)


def test_matched_training_needs_radiographs_in_both_splits(tmp_path: Path) -> None:
    cohort = Cohort.open(write_cohort(tmp_path / "cohort", with_cxr=(0, 2)))
    CohortDataModule(cohort, "full", crop_size=8)
    with pytest.raises(InputError, match=r"the validation split of .* no stay in the matched set"):
        CohortDataModule(cohort, "matched", crop_size=8)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"matched_cxr_dropout": 1.1},
        {"matched_cxr_dropout": -0.1},
        {"crop_size": 0},
        {"cxr_share": 1.5},
    ],
)
def test_settings_without_a_meaning_are_refused(cohort: Cohort, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        CohortDataModule(cohort, **({"crop_size": 8} | options))


def test_the_published_settings_are_the_defaults(tmp_path: Path) -> None:
    cohort = Cohort.open(write_cohort(tmp_path / "cohort", image_size=224))
    module = CohortDataModule(cohort)
    assert module.batch_size == 16
    assert module.transform_cxr.crop_size == 224
    assert module.cxr_dropout == 0.0
    assert CohortDataModule(cohort, "matched").cxr_dropout == 0.3


@pytest.mark.parametrize("n_ranks", [1, 2, 4, 8, 16])
def test_parts_lose_the_share_of_the_whole_batch(n_ranks: int) -> None:
    left = [len(drop_cxr(images(16 // n_ranks), 0.3, rank).pixels) for rank in range(n_ranks)]
    assert sum(left) == 16 - 5  # 0.3 of 16, rounded


@pytest.mark.parametrize("n_ranks", [2, 3, 4])
def test_processes_validate_every_stay_once_in_order(larger: Cohort, n_ranks: int) -> None:
    parts = [
        CohortDataModule(larger, batch_size=7, crop_size=12, rank=rank, n_ranks=n_ranks)
        for rank in range(n_ranks)
    ]
    loaders = [[batch.stay_id.tolist() for batch in part.val_dataloader()] for part in parts]
    told: list[int] = []
    for number, of_ranks in enumerate(zip(*loaders, strict=True)):
        whole = of_ranks[:1] if parts[0].is_whole(number) else of_ranks
        told += [stay for part in whole for stay in part]
    assert told == larger.stays["stay_id"].to_numpy()[larger.rows("validation")].tolist()
