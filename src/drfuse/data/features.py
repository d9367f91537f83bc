"""Turns hourly values in physical units into features: imputed, scaled, one-hot, with masks."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from drfuse.cohort.manifest import Variable
from drfuse.errors import InputError

_MAX_DEVIATIONS = 10.0  # from the mean; published code replaces values farther out by the mean


class EhrFeatures:
    """The features of an hour: scaled continuous variables, one-hot categories, observation masks.

    A missing value is the variable's last one or, before its first observation, its normal value. Categories
    are the whole numbers of a variable's valid range. The 17 variables give 12 + 30 + 17 = 59 features.

    Args:
        variables: The V variables, in the order of the values' last axis.
        normalization: `mean` and `std` of each continuous variable.

    Raises:
        InputError: If the normalization of a variable is missing, or cannot be used.
    """

    def __init__(
        self, variables: Sequence[Variable], normalization: Mapping[str, Mapping[str, float]]
    ) -> None:
        numbers = {name: i for i, name in enumerate(variable.name for variable in variables)}
        continuous = [variable for variable in variables if variable.kind == "continuous"]
        categorical = [variable for variable in variables if variable.kind == "categorical"]
        self._normal = torch.tensor([variable.normal for variable in variables])
        self._continuous = torch.tensor([numbers[variable.name] for variable in continuous])
        statistics = [normalization.get(variable.name, {}) for variable in continuous]
        self._mean, self._std = (
            torch.tensor([one.get(name, math.nan) for one in statistics]) for name in ("mean", "std")
        )
        usable = self._mean.isfinite() & self._std.isfinite() & (self._std > 0)
        if not usable.all():
            first = int(usable.int().argmin())
            raise InputError(
                f"the normalization of {continuous[first].name} is {statistics[first]}; expected a finite "
                "mean, and a finite std above 0"
            )
        self._categorical = torch.tensor([numbers[variable.name] for variable in categorical])
        self._lowest = torch.tensor([variable.valid_low for variable in categorical])
        self._highest = torch.tensor([variable.valid_high for variable in categorical])
        sizes = (self._highest - self._lowest).long() + 1
        self._first_column = sizes.cumsum(0) - sizes
        self._n_categories = int(sizes.sum())
        self.names = [
            *(variable.name for variable in continuous),
            *(
                f"{variable.name}={category}"
                for variable in categorical
                for category in range(int(variable.valid_low), int(variable.valid_high) + 1)
            ),
            *(f"{variable.name} observed" for variable in variables),
        ]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def values_of(self) -> Tensor:
        """Float32 (F, V): features times this matrix give the variables' values, in order.

        A continuous variable stays scaled, a categorical one becomes the number of its category. The
        observation masks, the last V features, have weight 0.
        """
        n_continuous = len(self._continuous)
        matrix = torch.zeros(len(self), len(self._normal))
        matrix[torch.arange(n_continuous), self._continuous] = 1.0
        for variable, low, high, first in zip(
            self._categorical, self._lowest, self._highest, self._first_column, strict=True
        ):
            numbers = torch.arange(low, high + 1)
            matrix[n_continuous + int(first) : n_continuous + int(first) + len(numbers), variable] = numbers
        return matrix

    @property
    def variable_of(self) -> Tensor:
        """Int64 (F,): the number of the variable that each feature is of, a value, a category or a mask."""
        n_categories = (self._highest - self._lowest).long() + 1
        of_categories = self._categorical.long().repeat_interleave(n_categories)
        return torch.cat([self._continuous.long(), of_categories, torch.arange(len(self._normal))])

    def mean_record(self, n_hours: int) -> Tensor:
        """Return the features (T, F) of T hours of a record that says nothing about its patient.

        Continuous variables are at their mean over the training split, which is 0 once scaled, categories at
        their normal value, and nothing is observed.
        """
        unobserved = torch.full((1, n_hours, len(self._normal)), math.nan)
        features = self(unobserved, torch.tensor([n_hours]))[0]
        features[:, : len(self._continuous)] = 0.0
        return features

    def __call__(self, values: Tensor, n_hours: Tensor) -> Tensor:
        """Return the features (B, T, F) of values (B, T, V), zero from hour `n_hours` (B,) on."""
        observed = values.isfinite()
        filled = _carry_forward(values, observed, self._normal)
        scaled = (filled[..., self._continuous] - self._mean) / self._std
        scaled = scaled.masked_fill(scaled.abs() > _MAX_DEVIATIONS, 0.0)
        category = filled[..., self._categorical].round().clamp(self._lowest, self._highest) - self._lowest
        one_hot = scaled.new_zeros(*scaled.shape[:2], self._n_categories)
        one_hot.scatter_(-1, category.long() + self._first_column, 1.0)
        features = torch.cat([scaled, one_hot, observed.to(scaled.dtype)], dim=-1)
        past_the_end = torch.arange(values.shape[1]) >= n_hours[:, None]  # (B, T)
        return features.masked_fill(past_the_end[..., None], 0.0)


def _carry_forward(values: Tensor, observed: Tensor, normal: Tensor) -> Tensor:
    """Return values (B, T, V) with gaps filled by the last observation, or `normal` (V,) before the first."""
    hours = torch.arange(values.shape[1])[:, None]
    last_observed = torch.where(observed, hours, -1).cummax(dim=1).values
    carried = values.gather(1, last_observed.clamp(min=0))
    return torch.where(last_observed >= 0, carried, normal)
