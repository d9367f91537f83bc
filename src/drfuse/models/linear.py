"""Linear baselines: logistic regression on summaries of the record and on principal components of the image.

A network should beat them before a comparison of networks means something. scikit-learn fits them; their
weights are tensors like those of any model, and they predict in float32 whatever the precision.
"""

import logging
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import IncrementalPCA
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from drfuse.data.batch import Batch
from drfuse.errors import InputError
from drfuse.models.base import FittedModel, FittingData, FusionOutput
from drfuse.models.drfuse import logit_pool

logger = logging.getLogger(__name__)

SUMMARIES = ("mean", "standard deviation", "first", "last", "share of hours observed")
"""Of each variable over the window; the first four are taken over the hours in which it was observed."""

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""The values of scikit-learn's C, the inverse of the L2 penalty, that are tried; a small C penalises more."""

_CONSTANT = 1e-5  # a column that varies less than this is not scaled
_NO_VARIANCE = 1e-4  # a component is rounding error below this share of the first one's singular value
_IMAGES_AT_A_TIME = 512
_MOST_ITERATIONS = 1000

Floats = NDArray[np.float64]


class LogisticHead(nn.Module):
    """Standardise S inputs over the training stays, and predict C labels by logistic regression.

    All labels share one penalty: the one of `STRENGTHS` with the lowest cross entropy on the validation
    stays; of equals, the strongest. Cross entropy decides rather than PRAUC: PRAUC hardly depends on the
    penalty if inputs are uncorrelated, while `LogisticLate` averages probabilities, which too strong a
    penalty shrinks. A label that all or none of the training stays have gets a constant probability,
    (k + 1/2) / (n + 1) for k of n stays.

    Args:
        n_inputs: S.
        n_labels: C.
    """

    mean: Tensor
    scale: Tensor
    strength: Tensor

    def __init__(self, n_inputs: int, n_labels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_inputs))
        self.register_buffer("scale", torch.ones(n_inputs))
        self.register_buffer("strength", torch.tensor(math.nan))  # the one that was chosen
        self.linear = nn.Linear(n_inputs, n_labels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (B, C) of inputs (B, S)."""
        logits: Tensor = self.linear((inputs - self.mean) / self.scale)
        return logits

    @torch.no_grad()
    def fit(self, inputs: Floats, labels: Floats, val_inputs: Floats, val_labels: Floats) -> None:
        """Fit to inputs (N, S) and labels (N, C), and choose C on those of the validation stays."""
        spread = inputs.std(axis=0)
        mean, scale = inputs.mean(axis=0), np.where(spread > _CONSTANT, spread, 1.0)
        standard, val_standard = (inputs - mean) / scale, (val_inputs - mean) / scale
        fits = {strength: _regress(standard, labels, strength) for strength in STRENGTHS}
        losses = {c: _log_loss(val_labels, val_standard @ w.T + b) for c, (w, b) in fits.items()}
        strength = min(losses, key=lambda c: losses[c])
        for tensor, value in zip(
            (self.mean, self.scale, self.linear.weight, self.linear.bias),
            (mean, scale, *fits[strength]),
            strict=True,
        ):
            tensor.copy_(torch.from_numpy(value))
        self.strength.fill_(strength)
        logger.info(
            "logistic regression with C = %g: cross entropy %.4f on the validation stays",
            strength,
            losses[strength],
        )


class _Logistic(FittedModel):
    """The loss of the linear models; it only measures them, since a solver fits them."""

    def loss(self, output: FusionOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the binary cross entropy over the stays with a prediction as `total`; 0 if there is none."""
        rows = output.logits.isfinite().all(dim=1)
        losses = F.binary_cross_entropy_with_logits(output.logits[rows], batch.labels[rows], reduction="none")
        return {"total": losses.sum() / max(1, losses.numel())}


class LogisticEhr(_Logistic):
    """Logistic regression on five summaries of each variable (see `SUMMARIES`); radiographs change nothing.

    A category counts as its number. A variable that was never observed has its normal value, with which
    batches fill it, and a share of 0. Options of gradient steps have no effect (see `FittedModel`).

    Args:
        n_variables: V, the variables that the features are made of.
    """

    reads = ("ehr",)
    values_of: Tensor

    def __init__(self, n_features: int, n_labels: int, n_variables: int = 17) -> None:
        super().__init__()
        if not 0 < n_variables < n_features:
            raise InputError(f"n_variables is {n_variables}; expected 1 or more, and fewer than the features")
        self.register_buffer("values_of", torch.zeros(n_features, n_variables))
        self.head = LogisticHead(len(SUMMARIES) * n_variables, n_labels)

    def forward(self, batch: Batch) -> FusionOutput:
        """Return logits (B, C)."""
        with _in_float32(batch.ehr):
            return FusionOutput(self.head(self.summaries(batch)))

    def summaries(self, batch: Batch) -> Tensor:
        """Return the five summaries of the V variables (B, 5 V)."""
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
        """Fit the regression; the summaries of all stays are held in memory, 5 V numbers each.

        Raises:
            InputError: If the cohort does not have `n_variables` variables.
        """
        if data.values_of.shape != self.values_of.shape:
            raise InputError(
                f"LogisticEhr was made for {self.values_of.shape[1]} variables, but the cohort has "
                f"{data.values_of.shape[1]}; set --model.n_variables {data.values_of.shape[1]}"
            )
        self.values_of.copy_(data.values_of)
        training, validation = [
            _stacked((self.summaries(batch), batch.labels) for batch in batches)
            for batches in (data.training, data.validation)
        ]
        self.head.fit(*training, *validation)


class LogisticCxr(_Logistic):
    """Logistic regression on principal components of the radiograph; a stay without one gets no prediction.

    Radiographs are reduced to `side` x `side` pixels by averaging (smaller ones are enlarged), so that the
    weights do not depend on the crop. Each component is standardised. Options of gradient steps have no
    effect (see `FittedModel`).

    Args:
        n_components: Principal components, fewer if the training stays have fewer radiographs.
        side: Side of the reduced radiographs, in pixels.
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
            raise InputError("expected n_components and side of at least 1")
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
        """Return the reduced radiographs (M, side * side)."""
        return F.interpolate(batch.cxr, size=(self.side, self.side), mode="area").flatten(1)

    @torch.no_grad()
    def fit(self, data: FittingData) -> None:
        """Find the components in one pass over the radiographs, and fit the regression in a second pass.

        With fewer than two radiographs to learn from, the model predicts NaN for every stay.
        """
        pixels = (self.pixels(batch).double().numpy() for batch in data.training)
        blocks = _in_blocks(pixels, max(_IMAGES_AT_A_TIME, len(self.components)))
        first = next(blocks)
        if len(first) < 2:
            self.head.linear.bias.fill_(math.nan)
            return
        pca = IncrementalPCA(min(*self.components.shape, len(first))).partial_fit(first)
        for block in blocks:
            pca.partial_fit(block)
        varies = pca.singular_values_ > _NO_VARIANCE * pca.singular_values_[0]
        self.pixel_mean.copy_(torch.from_numpy(pca.mean_))
        self.components[: varies.sum()].copy_(torch.from_numpy(pca.components_[varies]))
        training, validation = [
            _stacked((self.scores(batch), batch.labels[batch.cxr_of]) for batch in batches)
            for batches in (data.training, data.validation)
        ]
        self.head.fit(*training, *validation)


class LogisticLate(_Logistic):
    """The mean of the probabilities of `LogisticEhr` and `LogisticCxr`, each fitted and chosen alone.

    Without a radiograph, the EHR's probability counts alone. Options of gradient steps have no effect (see
    `FittedModel`).

    Args:
        n_variables: V, the variables that the features are made of.
        n_components: Principal components of the radiograph.
        side: Side of the reduced radiographs, in pixels.
    """

    def __init__(
        self,
        n_features: int,
        n_labels: int,
        n_variables: int = 17,
        n_components: int = 120,
        side: int = 64,
    ) -> None:
        super().__init__()
        self.ehr = LogisticEhr(n_features, n_labels, n_variables)
        self.cxr = LogisticCxr(n_features, n_labels, n_components, side)

    def forward(self, batch: Batch) -> FusionOutput:
        """Return logits (B, C)."""
        ehr, cxr = self.ehr(batch).logits, self.cxr(batch).logits
        both = cxr.isfinite()
        pooled = logit_pool(ehr, torch.where(both, cxr, ehr))  # no NaN, which would reach gradients
        return FusionOutput(torch.where(both, pooled, ehr))

    def fit(self, data: FittingData) -> None:
        """Fit both."""
        self.ehr.fit(data)
        self.cxr.fit(data)


def _in_float32(inputs: Tensor) -> Any:
    return torch.autocast(inputs.device.type, enabled=False)


def _regress(inputs: Floats, labels: Floats, strength: float) -> tuple[Floats, Floats]:
    """Return weights (C, S) and biases (C,) of a logistic regression of each label."""
    n, n_labels = labels.shape
    weight, bias = np.zeros((n_labels, inputs.shape[1])), np.empty(n_labels)
    for c, n_positive in enumerate(labels.sum(axis=0)):
        if n_positive in (0, n):
            bias[c] = math.log((n_positive + 0.5) / (n - n_positive + 0.5))
            continue
        solver = LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-6, max_iter=_MOST_ITERATIONS)
        solver.fit(inputs, labels[:, c])
        weight[c], bias[c] = solver.coef_[0], solver.intercept_[0]
    return weight, bias


def _log_loss(labels: Floats, logits: Floats) -> float:
    """Return the binary cross entropy, the mean over stays and labels; 0 if there are no stays."""
    losses = np.logaddexp(0.0, logits) - labels * logits
    return float(losses.mean()) if losses.size else 0.0


def _stacked(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Floats, Floats]:
    """Return the inputs (N, S) and labels (N, C) of all batches."""
    inputs, labels = zip(*batches, strict=True)
    return torch.cat(inputs).double().numpy(), torch.cat(labels).double().numpy()


def _in_blocks(parts: Iterable[Floats], size: int) -> Iterator[Floats]:
    """Yield the rows of arrays in blocks of `size` up to twice as many; all at once, if they are fewer.

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
