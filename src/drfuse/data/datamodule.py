"""Makes the batches of training and validation from a cohort."""

from collections.abc import Collection, Iterator
from functools import cached_property

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drfuse.choices import Augmentation, TaskName
from drfuse.data.augmentation import CxrTransform
from drfuse.data.batch import Batch, Modality, StoredBatch
from drfuse.data.cohort import Cohort
from drfuse.data.dataset import CxrContent, StayDataset
from drfuse.data.loader import BatchLoader, EvaluationBatches, batch_loader, outlive_signals, split_rows
from drfuse.data.sampler import EvenBatches
from drfuse.errors import InputError, check_choice
from drfuse.subsets import Split, Subset


class CohortDataModule(L.LightningDataModule):
    """Batches of a cohort: shuffled and augmented for training, in order otherwise.

    Args:
        cohort: The cohort.
        train_on: Train on all stays (`full`), or on those with a radiograph (`matched`).
        batch_size: The most stays per batch.
        matched_cxr_dropout: With `matched`, the share of radiographs dropped from each training batch.
        crop_size: Side of the centre crop of the radiographs, in pixels.
        augment: How training radiographs are augmented.
        num_workers: Processes that make batches; 0 makes them in this one.
        seed: Seed of the order of the training batches.
        task: What is predicted; only stays with known labels are used.
        cxr_share: Share of each training batch's radiographs to use.
        rank: This process's number among those that share the batches.
        n_ranks: How many processes share the batches; each makes its part of every batch.
        validate_on: Validate on all stays or those with a radiograph; by default the same as `train_on`.
        accumulate: Training batches per optimizer step.

    Raises:
        InputError: If an argument is out of range, the radiographs are smaller than the crop, or a split has
            no stay to use.
    """

    def __init__(
        self,
        cohort: Cohort,
        train_on: Subset = "full",
        batch_size: int = 16,
        matched_cxr_dropout: float = 0.3,
        crop_size: int = 224,
        augment: Augmentation = True,
        num_workers: int = 0,
        seed: int = 0,
        task: TaskName = "phenotyping",
        cxr_share: float = 1.0,
        rank: int = 0,
        n_ranks: int = 1,
        validate_on: Subset | None = None,
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        in_range = 0 <= matched_cxr_dropout <= 1 and 0 <= cxr_share <= 1
        if batch_size < 1 or num_workers < 0 or not in_range:
            raise InputError(
                "expected batch_size of at least 1, num_workers of at least 0, "
                "and matched_cxr_dropout and cxr_share from 0 to 1"
            )
        check_choice("augment", augment, (True, False, "shifts"))
        if batch_size < n_ranks:
            raise InputError(
                f"batch_size is {batch_size}, the stays of all {n_ranks} devices together; choose at least "
                f"{n_ranks}"
            )
        if not 1 <= crop_size <= cohort.image_size:
            raise InputError(
                f"crop_size is {crop_size}, but the cohort's radiographs are only {cohort.image_size} pixels "
                f"wide; choose a smaller crop, or prepare the cohort with --image-size {crop_size}"
            )
        self.dataset = StayDataset(cohort, task)
        self.rows = self.dataset.task.rows()  # of all splits
        self.train_rows = self._rows_to_use("train", train_on)
        self.validation_rows = self._rows_to_use("validation", validate_on or train_on)
        self.transform_cxr = CxrTransform(crop_size, shifts=augment == "shifts")
        self._matched_cxr_dropout = matched_cxr_dropout if train_on == "matched" else 0.0
        self.cxr_share = cxr_share
        self.batch_size = batch_size
        self.augment = bool(augment)
        self.num_workers = num_workers
        self.seed = seed
        self.rank, self.n_ranks = rank, n_ranks
        self.accumulate = accumulate

    def read_only(self, modalities: Collection[Modality], cxr_pixels: bool = True) -> None:
        """Leave what a model does not read out of all batches.

        For a model that reads only the EHR, it is as if no stay had a radiograph. A model that reads only
        radiographs keeps them all in matched training.

        Args:
            modalities: What the model reads.
            cxr_pixels: Whether it reads the radiographs' pixels, or only their rows in the cohort.
        """
        cxr: CxrContent = "nothing" if "cxr" not in modalities else "pixels" if cxr_pixels else "rows"
        self.dataset = StayDataset(self.dataset.cohort, self.dataset.task.name, cxr)
        if "ehr" not in modalities:
            self._matched_cxr_dropout = 0.0

    @property
    def cxr_dropout(self) -> float:
        """The share of radiographs dropped from each training batch."""
        dropout = self._matched_cxr_dropout
        return 1 - (1 - dropout) * self.cxr_share if self.cxr_share < 1 else dropout

    def train_dataloader(self) -> BatchLoader:
        """Return batches with even shares of radiographs, in a new order each epoch."""
        return batch_loader(self.dataset, self._training_batches(), self.num_workers, outlive_signals)

    def val_dataloader(self) -> BatchLoader:
        """Return the validation split in order, or this process's part of each batch."""
        batches = [
            batch
            if len(batch) < self.n_ranks
            else np.array_split(np.asarray(batch, np.int64), self.n_ranks)[self.rank].tolist()
            for batch in split_rows(self.validation_rows, self.batch_size)
        ]
        return batch_loader(self.dataset, batches, self.num_workers, outlive_signals)

    def transfer_batch_to_device(
        self,
        batch: StoredBatch,
        device: torch.device,
        dataloader_idx: int,  # noqa: ARG002
    ) -> StoredBatch:
        """Return the batch on the device; a copy to a GPU is asynchronous."""
        return batch.to(device, non_blocking=device.type == "cuda")

    def on_after_batch_transfer(self, batch: StoredBatch, dataloader_idx: int) -> Batch:  # noqa: ARG002
        """Return the batch with its radiographs transformed; training drops some first, if asked to."""
        training = self.trainer is not None and self.trainer.training
        if training and self.cxr_dropout:
            batch = drop_cxr(batch, self.cxr_dropout, self.rank)
        return self._transform(batch, augment=training and self.augment)

    def as_evaluated(self, batch: StoredBatch) -> Batch:
        """Return a batch of the dataset for evaluation: nothing is dropped or augmented."""
        return self._transform(batch, augment=False)

    def _transform(self, batch: StoredBatch, augment: bool) -> Batch:
        self.transform_cxr.train(augment)
        return batch.with_cxr(self.transform_cxr(batch.pixels))

    def every_cxr(self) -> Iterator[Tensor]:
        """Yield all radiographs of the cohort in order, unaugmented, a batch at a time, in every process."""
        self.transform_cxr.eval()
        n_images = len(self.dataset.cohort.cxr)
        for start in range(0, n_images, self.batch_size):
            rows = np.arange(start, min(start + self.batch_size, n_images))
            yield self.transform_cxr(self.dataset.pixels(rows))

    def batches(self, rows: NDArray[np.int64]) -> EvaluationBatches:
        """Return the evaluation batches of some rows, in order, whole in every process."""
        split = split_rows(rows, self.batch_size)
        return EvaluationBatches(self.dataset, self.transform_cxr, split, self.num_workers)

    def example(self) -> Batch:
        """Return an evaluation batch of the longest stay with a radiograph and the longest without."""
        cohort = self.dataset.cohort
        has_cxr = cohort.has_cxr[self.rows]
        parts = (self.rows[has_cxr], self.rows[~has_cxr])
        rows = [int(part[np.argmax(cohort.n_hours[part])]) for part in parts if len(part)]
        return self.as_evaluated(self.dataset[rows])

    def is_whole(self, number: int) -> bool:
        """Return whether every process gets all of batch `number` of the current stage, not a part of it."""
        trainer = self.trainer
        if trainer is not None and trainer.training:
            return self._training_sizes[number] < self.n_ranks
        return min(self.batch_size, len(self.validation_rows) - number * self.batch_size) < self.n_ranks

    @cached_property
    def _training_sizes(self) -> list[int]:
        return self._training_batches().sizes

    def _rows_to_use(self, split: Split, subset: Subset) -> NDArray[np.int64]:
        rows = self.dataset.task.rows(split, subset)
        if len(rows) == 0:
            raise InputError(
                f"the {split} split of {self.dataset.cohort.folder} has no stay in the {subset} set; prepare "
                "a larger cohort, or one with a different --seed or --split-file"
            )
        return rows

    def _training_batches(self) -> EvenBatches:
        has_cxr = self.dataset.cohort.has_cxr[self.train_rows]
        return EvenBatches(
            self.train_rows, has_cxr, self.batch_size, self.seed, self.rank, self.n_ranks, self.accumulate
        )


def drop_cxr(batch: StoredBatch, share: float, rank: int = 0) -> StoredBatch:
    """Return the batch without a random `share` (0 to 1) of its radiographs, rounded to whole ones.

    Several processes with parts of one size round by their `rank` so that together they drop that share.
    """
    n = len(batch.cxr_of)
    n_kept = n - (round(share * n * (rank + 1)) - round(share * n * rank))
    return batch.keep_cxr(torch.randperm(n, device=batch.cxr_of.device)[:n_kept])
