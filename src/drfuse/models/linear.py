"""Linear baselines: logistic regression on summaries of the EHR and on principal components of radiographs.

Only if networks beat them does comparing networks mean much. scikit-learn fits them; they predict with
tensors like any model, always in float32.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from drfuse.data.batch import Batch
from drfuse.errors import InputError
from drfuse.models.base import FittedModel, FittingData, FusionOutput
from drfuse.models.drfuse import logit_pool
from drfuse.models.losses import mean_cross_entropy

logger = logging.getLogger(__name__)

SUMMARIES = ("mean", "standard deviation", "first", "last", "share of hours observed")
"""Summaries of each variable over the window; the first four count only the hours with an observation."""

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""The values of scikit-learn's C, the inverse of the L2 penalty, to choose from."""

_MIN_SPREAD = 1e-5  # a column with a smaller standard deviation is not scaled
_MIN_SINGULAR_VALUE = 1e-4  # as a share of the first one; smaller components are rounding errors
_IMAGES_PER_BLOCK = 512

Floats = NDArray[np.float64]


class LogisticHead(nn.Module):
    """Logistic regression of C labels on S inputs, standardised over the training stays.

    All labels share one penalty: the one in `STRENGTHS` with the lowest cross entropy on the validation
    stays, the strongest of equals. PRAUC would not do: it hardly depends on the penalty if inputs are
    uncorrelated, while too strong a penalty shrinks the probabilities that `LogisticLate` averages. A label
    that all or none of the training stays have gets a constant probability, (k + 1/2) / (n + 1) for k of n
    stays.
    """

    mean: Tensor
    scale: Tensor
    strength: Tensor

    def __init__(self, n_inputs: int, n_labels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_inputs))
        self.register_buffer("scale", torch.ones(n_inputs))
        self.register_buffer("strength", torch.tensor(math.nan))  # the chosen C
        self.linear = nn.Linear(n_inputs, n_labels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (B, C) of inputs (B, S)."""
        logits: Tensor = self.linear((inputs - self.mean) / self.scale)
        return logits

    @torch.no_grad()
    def fit(self, inputs: Floats, labels: Floats, val_inputs: Floats, val_labels: Floats) -> None:
        """Fit to inputs (N, S) and labels (N, C), and choose the penalty on the validation stays."""
        spread = inputs.std(axis=0)
        mean, scale = inputs.mean(axis=0), np.where(spread > _MIN_SPREAD, spread, 1.0)
        standard, val_standard = (inputs - mean) / scale, (val_inputs - mean) / scale
        fits = {strength: _regress(standard, labels, strength) for strength in STRENGTHS}
        losses = {c: _log_loss(val_labels, val_standard @ w.T + b) for c, (w, b) in fits.items()}
        strength = min(losses, key=lambda c: losses[c])
        tensors = (self.mean, self.scale, self.linear.weight, self.linear.bias)
        for tensor, value in zip(tensors, (mean, scale, *fits[strength]), strict=True):
            tensor.copy_(torch.from_numpy(value))
        self.strength.fill_(strength)
        message = "logistic regression with C = %g: cross entropy %.4f on the validation stays"
        logger.info(message, strength, losses[strength])


class _Logistic(FittedModel):
    """A linear model; its loss only measures it, because a solver fits it."""

    def loss(self, output: FusionOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the binary cross entropy over the stays with a prediction as `total`; 0 without any."""
        rows = output.logits.isfinite().all(dim=1)
        return {"total": mean_cross_entropy(output.logits[rows], batch.labels[rows])}


class LogisticEhr(_Logistic):
    """Logistic regression on five summaries of each variable (see `SUMMARIES`); it ignores radiographs.

    A category counts as its number. A variable without an observation has its normal value, which batches
    fill in, and a share of 0. Options of gradient steps have no effect (see `FittedModel`).

    Args:
        n_variables: V, the number of variables behind the features.
    """

    reads = ("ehr",)
    values_of: Tensor

    def __init__(self, n_features: int, n_labels: int, n_variables: int = 17) -> None:
        super().__init__()
        if not 0 < n_variables < n_features:
            raise InputError(f"n_variables is {n_variables}; expected 1 to {n_features - 1}")
        self.register_buffer("values_of", torch.zeros(n_features, n_variables))
        self.head = LogisticHead(len(SUMMARIES) * n_variables, n_labels)

    def forward(self, batch: Batch) -> FusionOutput:
        """Return logits (B, C)."""
        with _in_float32(batch.ehr):
            return FusionOutput(self.head(self.summaries(batch)))

    def summaries(self, batch: Batch) -> Tensor:
        """Return the five summaries of the V variables, (B, 5 V)."""
        n_hours = batch.ehr.shape[1]
        hour = torch.arange(n_hours, device=batch.ehr.device)[:, None]  # (T, 1)
        values = batch.ehr @ self.values_of  # (B, T, V)
        in_window = hour < batch.n_hours[:, None, None]  # (B, T, 1)
        observed = (batch.ehr[..., -self.values_of.shape[1] :] > 0) & in_window
        counted = torch.where(observed.any(dim=1, keepdim=True), observed, in_window)
        n = counted.sum(dim=1)
        mean = (values * counted).sum(dim=1) / n
        deviation = (((values - mean[:, None]) ** 2 * counted).sum(dim=1) / n).sqrt()
        first = torch.where(counted, hour, n_hours).amin(dim=1, keepdim=True)
        last = torch.where(counted, hour, -1).amax(dim=1, keepdim=True)
        ends = (values.gather(1, at).squeeze(1) for at in (first, last))
        return torch.cat([mean, deviation, *ends, observed.sum(dim=1) / batch.n_hours[:, None]], dim=1)

    @torch.no_grad()
    def fit(self, data: FittingData) -> None:
        """Fit the regression, with the summaries of all stays in memory.

        Raises:
            InputError: If the cohort does not have `n_variables` variables.
        """
        if data.values_of.shape != self.values_of.shape:
            raise InputError(
                f"LogisticEhr was made for {self.values_of.shape[1]} variables, but the cohort has "
                f"{data.values_of.shape[1]}; set --model.n_variables {data.values_of.shape[1]}"
            )
        self.values_of.copy_(data.values_of)
        _fit_head(self.head, data, lambda batch: (self.summaries(batch), batch.labels))


class LogisticCxr(_Logistic):
    """Logistic regression on principal components of the radiograph; a stay without one gets no prediction.

    Radiographs are averaged down to `side` x `side` pixels (smaller ones are enlarged), so that the weights
    do not depend on the crop. Each component is standardised. Options of gradient steps have no effect (see
    `FittedModel`).

    Args:
        n_components: Principal components; fewer if the training stays have fewer radiographs.
        side: Side of the averaged radiographs, in pixels.
    """

    reads = ("cxr",)
    pixel_mean: Tensor
    components: Tensor

    def __init__(
        self,
        n_features: int,  # noqa: ARG002
        n_labels: int,
        n_components: int = 120,
        side: int = 64,
    ) -> None:
        super().__init__()
        if n_components < 1 or side < 1:
            raise InputError(f"n_components is {n_components} and side {side}; expected at least 1 of each")
        self.side = side
        self.register_buffer("pixel_mean", torch.zeros(side * side))
        self.register_buffer("components", torch.zeros(n_components, side * side))  # unused ones are 0
        self.head = LogisticHead(n_components, n_labels)

    def forward(self, batch: Batch) -> FusionOutput:
        """Return logits (B, C), NaN for stays without a radiograph."""
        with _in_float32(batch.cxr):
            return FusionOutput(batch.nan_without_cxr(self.head(self.scores(batch))))

    def scores(self, batch: Batch) -> Tensor:
        """Return the principal components (M, K) of the batch's radiographs."""
        return (self.pixels(batch) - self.pixel_mean) @ self.components.T

    def pixels(self, batch: Batch) -> Tensor:
        """Return the averaged radiographs (M, side * side)."""
        return F.interpolate(batch.cxr, size=(self.side, self.side), mode="area").flatten(1)

    @torch.no_grad()
    def fit(self, data: FittingData) -> None:
        """Find the components in one pass over the radiographs, and fit the regression in a second pass.

        With fewer than two training radiographs, the model predicts NaN for every stay.
        """
        pixels = (self.pixels(batch).double().numpy() for batch in data.training)
        blocks = _in_blocks(pixels, max(_IMAGES_PER_BLOCK, len(self.components)))
        first = next(blocks)
        if len(first) < 2:
            self.head.linear.bias.fill_(math.nan)
            return
        from sklearn.decomposition import IncrementalPCA  # not sooner, because it takes a second

        pca = IncrementalPCA(min(*self.components.shape, len(first))).partial_fit(first)
        for block in blocks:
            pca.partial_fit(block)
        varies = pca.singular_values_ > _MIN_SINGULAR_VALUE * pca.singular_values_[0]
        self.pixel_mean.copy_(torch.from_numpy(pca.mean_))
        self.components[: varies.sum()].copy_(torch.from_numpy(pca.components_[varies]))
        _fit_head(self.head, data, lambda batch: (self.scores(batch), batch.labels[batch.cxr_of]))


class LogisticLate(_Logistic):
    """The mean of the probabilities of `LogisticEhr` and `LogisticCxr`, each fitted and chosen alone.

    Without a radiograph, the prediction is the EHR's. Options of gradient steps have no effect (see
    `FittedModel`).

    Args:
        n_variables: V, the number of variables behind the features.
        n_components: Principal components of the radiograph.
        side: Side of the averaged radiographs, in pixels.
    """

    def __init__(
        self, n_features: int, n_labels: int, n_variables: int = 17, n_components: int = 120, side: int = 64
    ) -> None:
        super().__init__()
        self.ehr = LogisticEhr(n_features, n_labels, n_variables)
        self.cxr = LogisticCxr(n_features, n_labels, n_components, side)

    def forward(self, batch: Batch) -> FusionOutput:
        """Return logits (B, C)."""
        ehr, cxr = self.ehr(batch).logits, self.cxr(batch).logits
        both = cxr.isfinite()
        pooled = logit_pool(ehr, torch.where(both, cxr, ehr))  # a NaN here would reach gradients
        return FusionOutput(torch.where(both, pooled, ehr))

    def logits_without_ehr(self, batch: Batch, mean_hour: Tensor) -> Tensor:
        """Return the logits (M, C) of the radiographs' model."""
        return self.cxr.logits_without_ehr(batch, mean_hour)

    def fit(self, data: FittingData) -> None:
        """Fit both models."""
        self.ehr.fit(data)
        self.cxr.fit(data)


def _in_float32(inputs: Tensor) -> Any:
    return torch.autocast(inputs.device.type, enabled=False)


def _fit_head(
    head: LogisticHead, data: FittingData, inputs_and_labels: Callable[[Batch], tuple[Tensor, Tensor]]
) -> None:
    """Fit a head to the inputs (n, S) and labels (n, C) of each batch."""
    stacked: list[Floats] = []
    for batches in (data.training, data.validation):
        parts = zip(*map(inputs_and_labels, batches), strict=True)
        stacked += [torch.cat(part).double().numpy() for part in parts]
    head.fit(*stacked)


def _regress(inputs: Floats, labels: Floats, strength: float) -> tuple[Floats, Floats]:
    """Return weights (C, S) and biases (C,) of a logistic regression of each label."""
    n, n_labels = labels.shape
    weight, bias = np.zeros((n_labels, inputs.shape[1])), np.empty(n_labels)
    for c, n_positive in enumerate(labels.sum(axis=0)):
        if n_positive in (0, n):
            bias[c] = math.log((n_positive + 0.5) / (n - n_positive + 0.5))
            continue
        from sklearn.linear_model import LogisticRegression

        solver = LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-6, max_iter=1000)
        solver.fit(inputs, labels[:, c])
        weight[c], bias[c] = solver.coef_[0], solver.intercept_[0]
    return weight, bias


def _log_loss(labels: Floats, logits: Floats) -> float:
    """Return the binary cross entropy, averaged over stays and labels; 0 without stays."""
    losses = np.logaddexp(0.0, logits) - labels * logits
    return float(losses.mean()) if losses.size else 0.0


def _in_blocks(parts: Iterable[Floats], size: int) -> Iterator[Floats]:
    """Yield the rows of arrays in blocks of `size`; the last has up to twice as many.

    >>> [len(block) for block in _in_blocks([np.zeros((3, 1))] * 5, 6)]
    [6, 9]
    """
    held: list[Floats] = []
    for part in parts:
        held.append(part)
        while sum(map(len, held)) >= 2 * size:
            rows = np.concatenate(held)
            yield rows[:size]
            held = [rows[size:]]
    yield np.concatenate(held)
