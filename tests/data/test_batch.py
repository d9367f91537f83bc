"""What a batch says of its stays and radiographs."""

from collections.abc import Sequence
from dataclasses import fields

import pytest
import torch

from drfuse.data import Batch, StoredBatch
from tests.builders import N_FEATURES, make_batch


@pytest.mark.parametrize("cxr_of", [(), (0, 2), (3,), (0, 1, 2, 3)])
def test_has_cxr_is_true_where_a_radiograph_is(cxr_of: Sequence[int]) -> None:
    batch = make_batch(cxr_of)
    assert len(batch) == 4
    assert batch.has_cxr.dtype == torch.bool
    assert batch.has_cxr.tolist() == [row in cxr_of for row in range(4)]


@pytest.mark.parametrize("cxr_of", [(), (0, 2), (3,), (0, 1, 2, 3)])
def test_absent_radiographs_are_all_zeros_among_those_of_all_stays(cxr_of: Sequence[int]) -> None:
    batch = make_batch(cxr_of)
    images = batch.cxr_or_zeros()
    assert images.shape == (4, 1, 16, 16)
    assert images.dtype == torch.float32
    place = {row: image for image, row in enumerate(cxr_of)}
    for row in range(4):
        expected = batch.cxr[place[row]] if row in place else torch.zeros(1, 16, 16)
        assert torch.equal(images[row], expected)


@pytest.mark.parametrize("kept", [[1, 2], [2, 1], [], [0, 1, 2], [2, 0, 1]])
def test_kept_radiographs_stay_with_their_stays_in_order(kept: list[int]) -> None:
    batch = make_batch((0, 1, 3))
    smaller = batch.keep_cxr(torch.tensor(kept, dtype=torch.int64))
    assert smaller.cxr_of.tolist() == [(0, 1, 3)[image] for image in sorted(kept)]
    assert torch.equal(smaller.cxr, batch.cxr[sorted(kept)])
    assert smaller.cxr_row.tolist() == sorted(kept)
    assert smaller.cxr.shape[1:] == batch.cxr.shape[1:]
    assert torch.equal(smaller.ehr, batch.ehr)
    assert torch.equal(smaller.labels, batch.labels)
    assert batch.cxr_of.tolist() == [0, 1, 3]  # the batch itself is as it was


def test_other_pixels_belong_to_the_same_stays() -> None:
    batch = make_batch((0, 3))
    other = batch.with_cxr(torch.zeros(2, 1, 4, 4))
    assert other.cxr.shape == (2, 1, 4, 4)
    assert torch.equal(other.cxr_of, batch.cxr_of)
    assert torch.equal(other.stay_id, batch.stay_id)


def test_a_stored_batch_becomes_one_for_a_model_when_its_radiographs_are_transformed() -> None:
    batch, pixels = make_batch((0, 1, 3)), torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1)
    stays = {field.name: getattr(batch, field.name) for field in fields(Batch) if field.name != "cxr"}
    stored = StoredBatch(**stays, pixels=pixels).keep_cxr(torch.tensor([2, 0]))
    assert stored.pixels.flatten().tolist() == [0, 2]
    assert stored.to("meta").pixels.device.type == "meta"
    made, expected = stored.with_cxr(batch.cxr[[0, 2]]), batch.keep_cxr(torch.tensor([0, 2]))
    assert isinstance(made, Batch)
    for field in fields(Batch):
        assert torch.equal(getattr(made, field.name), getattr(expected, field.name))


def test_without_their_radiographs_the_matched_stays_are_as_they_were() -> None:
    batch = make_batch((1, 3))
    blind = batch.matched_without_cxr()
    assert not blind.has_cxr.any()
    assert (len(blind.cxr), len(blind.cxr_row)) == (0, 0)
    for name in ("stay_id", "ehr", "n_hours", "labels"):
        assert torch.equal(getattr(blind, name), getattr(batch, name)[[1, 3]])


def test_every_field_moves_to_the_device() -> None:
    moved = make_batch().to("meta")
    for field in fields(Batch):
        assert getattr(moved, field.name).device.type == "meta"
    assert moved.has_cxr.device.type == "meta"


def test_without_the_ehr_matched_stays_keep_their_hours_and_images() -> None:
    batch, mean_hour = make_batch(cxr_of=(0, 2), n_hours=(2, 3, 1)), torch.arange(N_FEATURES) + 1.0
    found = batch.matched_without_ehr(mean_hour)
    assert found.stay_id.tolist() == [100, 102]
    assert found.cxr_of.tolist() == [0, 1]
    assert torch.equal(found.cxr, batch.cxr)
    assert torch.equal(found.labels, batch.labels[[0, 2]])
    for row, n_hours in enumerate((2, 1)):
        assert (found.ehr[row, :n_hours] == mean_hour).all()
        assert not found.ehr[row, n_hours:].any()
