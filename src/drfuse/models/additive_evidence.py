"""Additive evidence: what modalities share is pooled by its precision, what only one shows is added.

DrFuse's attention averages what the representations say, so that evidence of two modalities never adds up.
Here, each part adds its own term to the logits, and a modality that is absent adds nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, combinations
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drfuse.data.batch import Batch
from drfuse.errors import InputError
from drfuse.models.base import FusionModel, FusionOutput, SharedEncoders
from drfuse.models.cxr_encoders import CxrEncoder
from drfuse.models.ehr_encoders import EhrEncoder
from drfuse.models.losses import mean_cross_entropy
from drfuse.models.precision import Head, in_float32
from drfuse.models.representation_losses import ClubBound, cross_covariance, info_nce, vicreg
from drfuse.models.sizes import EncoderSizes, takes_sizes_of


class Evidence(NamedTuple):
    """What one modality says of the M stays that have it.

    Attributes:
        mean: mu, its estimate of the shared representation (M, D).
        precision: lambda, how sure it is of each dimension (M, D), above 0.
        distinct: sigma(rho) * h, what it says besides (M, D).
    """

    mean: Tensor
    precision: Tensor
    distinct: Tensor


class EvidenceHead(nn.Module):
    """A modality's representation -> its evidence, each part by a linear layer of its own.

    Args:
        dim: D, the width of the representation and of each part.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.parts = nn.Linear(dim, 4 * dim)

    @in_float32
    def forward(self, representation: Tensor) -> Evidence:
        """Return the evidence of M stays from (M, D)."""
        mean, precision, gate, distinct = self.parts(representation).chunk(4, dim=-1)
        return Evidence(mean, F.softplus(precision), gate.sigmoid() * distinct)


class AdditiveEvidence(FusionModel):
    """Logits that are a sum of what each modality shows alone, and of what they share.

    For a stay with the modalities S, modality m having the mean mu_m, precision lambda_m, gate rho_m and
    distinct representation h_m,

        l_S  = b + sum over m in S of (sigma(rho_m) * h_m) W_m + mu_S W_s
        mu_S = sum over m in S of lambda_m * mu_m / (1 + sum over m in S of lambda_m)

    with products and quotients taken for each dimension: mu_S is the mean of a Gaussian with a standard
    normal prior. A modality that is absent adds neither a term nor precision, so no value stands for it.
    The loss is the cross entropy of l_S with S what each stay has, that of l_S for every smaller subset S of
    the modalities, over the stays that have it, and the alignment and disentanglement losses below.

    `modality_weights` are not attention, and no gradient flows through them. With p the predicted
    probability, and p_k that of the bias and one part alone (distinct or shared), the weights are the softmax
    over the present parts of p log p_k + (1 - p) log(1 - p_k): the better a part alone predicts what all of
    them say, the more weight it has. The ratio of two weights is exp(A), with A their posterior advantage.

    Args:
        subsets: Train the prediction of `every` subset of the modalities, or only that of those `present`.
        shared_pooling: Pool the means by their `precision`, or take their `mean`.
        alignment: The loss between the means of a stay's EHR and radiograph: `vicreg` (Bardes et al., ICLR
            2022) keeps their variance, `infonce` (van den Oord et al., 2018) tells stays apart.
        alignment_weight: Its weight.
        disentanglement: The loss between mean and distinct representation of each modality: the squared
            `cross-covariance` of their standardised dimensions, or `club`, an upper bound of their mutual
            information (Cheng et al., ICML 2020).
        disentanglement_weight: Its weight.
        weights: What `modality_weights` are: the posterior `advantage` of each part, or `leave-one-out`, its
            share of the sum of KL(p, p without the part).
    """

    @takes_sizes_of(EhrEncoder, CxrEncoder)
    def __init__(
        self,
        n_features: int,
        n_labels: int,
        sizes: EncoderSizes,
        subsets: Literal["every", "present"] = "every",
        shared_pooling: Literal["precision", "mean"] = "precision",
        alignment: Literal["none", "vicreg", "infonce"] = "vicreg",
        alignment_weight: float = 0.3,
        disentanglement: Literal["none", "cross-covariance", "club"] = "none",
        disentanglement_weight: float = 1.0,
        weights: Literal["advantage", "leave-one-out"] = "advantage",
    ) -> None:
        super().__init__()
        for name, weight in (
            ("alignment_weight", alignment_weight),
            ("disentanglement_weight", disentanglement_weight),
        ):
            if weight < 0:
                raise InputError(f"{name} is {weight}; expected at least 0")
        self.subsets = subsets
        self.shared_pooling = shared_pooling
        self.alignment = alignment
        self.alignment_weight = alignment_weight
        self.disentanglement = disentanglement
        self.disentanglement_weight = disentanglement_weight
        self.weights = weights

        dim = sizes.dim
        self.ehr_encoder = EhrEncoder(n_features, sizes)
        self.cxr_encoder = CxrEncoder(sizes)
        self.evidence = nn.ModuleDict({name: EvidenceHead(dim) for name in ("ehr", "cxr")})
        self.distinct_heads = nn.ModuleDict({name: _linear(dim, n_labels) for name in self.evidence})
        self.shared_head = _linear(dim, n_labels)
        self.bias = nn.Parameter(torch.zeros(n_labels))
        self.bounds = nn.ModuleDict(
            {name: ClubBound(dim) for name in self.evidence} if disentanglement == "club" else {}
        )

    def forward(self, batch: Batch) -> FusionOutput:
        """Return logits (B, C), modality weights (B, C, 3) and the representations.

        `ehr_shared`, `ehr_precision` and `ehr_distinct` are (B, D), the same of `cxr` (M, D): the parts of
        `Evidence`. `shared` is mu_S of what each stay has (B, D).
        """
        (ehr,) = self.ehr_encoder(batch.ehr, batch.n_hours)
        encoded = {"ehr": ehr, "cxr": self.cxr_encoder(batch)}
        evidence = {name: self.evidence[name](one) for name, one in encoded.items()}
        shared = self._pool(evidence, batch)
        parts = self._parts(evidence, shared, batch)
        representations = {"shared": shared}
        for name, one in evidence.items():
            representations |= {
                f"{name}_shared": one.mean,
                f"{name}_precision": one.precision,
                f"{name}_distinct": one.distinct,
            }
        return FusionOutput(self._sum(parts), self._weigh(parts, batch), representations)

    def loss(self, output: FusionOutput, batch: Batch) -> dict[str, Tensor]:
        """Return `total` and its parts without their weights.

        `prediction` is the mean cross entropy of the logits. That of each smaller subset of the modalities,
        such as `only_ehr`, is over the stays that have it, 0 without any; `alignment`, over the stays with a
        radiograph, and `disentanglement` are 0 with fewer than two.
        """
        evidence = self._evidence_of(output)
        parts = {"prediction": mean_cross_entropy(output.logits, batch.labels)}
        if self.subsets == "every":
            for subset in _proper_subsets(evidence):
                logits = self._logits_of({name: evidence[name] for name in subset}, batch)
                rows = _rows_of(subset, batch)
                parts[f"only_{'_'.join(subset)}"] = mean_cross_entropy(logits[rows], batch.labels[rows])
        if self.alignment != "none":
            align = vicreg if self.alignment == "vicreg" else info_nce
            parts["alignment"] = align(evidence["ehr"].mean[batch.cxr_of], evidence["cxr"].mean)
        weight = {"alignment": self.alignment_weight}
        for name, one in evidence.items():
            if self.disentanglement == "cross-covariance":
                parts[f"disentanglement_{name}"] = cross_covariance(one.mean, one.distinct)
            elif self.disentanglement == "club":
                bound, fit = self.bounds[name](one.mean, one.distinct)
                parts |= {f"disentanglement_{name}": bound, f"bound_{name}": fit}
            weight[f"disentanglement_{name}"] = self.disentanglement_weight
        total = torch.stack([weight.get(name, 1.0) * part for name, part in parts.items()]).sum()
        return {"total": total, **parts}

    def logits_without_ehr(self, batch: Batch, mean_hour: Tensor) -> Tensor:  # noqa: ARG002
        """Return the logits (M, C) of the radiographs alone: l_S of S = {CXR}."""
        cxr = self.evidence["cxr"](self.cxr_encoder(batch))
        return self._logits_of({"cxr": cxr}, batch)[batch.cxr_of]

    def shared_encoders(self) -> SharedEncoders:
        """Return the encoders."""
        return SharedEncoders(ehr=[self.ehr_encoder], cxr=[self.cxr_encoder])

    def _evidence_of(self, output: FusionOutput) -> dict[str, Evidence]:
        h = output.representations
        return {
            name: Evidence(h[f"{name}_shared"], h[f"{name}_precision"], h[f"{name}_distinct"])
            for name in self.evidence
        }

    def _logits_of(self, evidence: Mapping[str, Evidence], batch: Batch) -> Tensor:
        """Return l_S (B, C) of the modalities that are given."""
        return self._sum(self._parts(evidence, self._pool(evidence, batch), batch))

    def _sum(self, parts: Mapping[str, Tensor]) -> Tensor:
        return self.bias + torch.stack([*parts.values()]).sum(dim=0)

    def _parts(self, evidence: Mapping[str, Evidence], shared: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of the logits (B, C): `shared`, and each modality's distinct one by its name."""
        parts = {"shared": self.shared_head(shared)}
        for name, one in evidence.items():
            parts[name] = _at_rows(self.distinct_heads[name](one.distinct), name, batch)
        return parts

    def _pool(self, evidence: Mapping[str, Evidence], batch: Batch) -> Tensor:
        """Return mu_S (B, D); zeros for a stay without any of the modalities."""
        if self.shared_pooling == "precision":
            terms = {name: (one.precision * one.mean, one.precision) for name, one in evidence.items()}
            prior = 1.0
        else:
            terms = {name: (one.mean, torch.ones_like(one.mean)) for name, one in evidence.items()}
            prior = 1e-6  # a mean, and 0 rather than NaN without a modality
        weighted, total = (
            torch.stack([_at_rows(term[i], name, batch) for name, term in terms.items()]).sum(dim=0)
            for i in (0, 1)
        )
        return weighted / (prior + total)

    @torch.no_grad()
    def _weigh(self, parts: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the modality weights (B, C, 3) from the terms of the logits (B, C)."""
        # in float64: a part that changes little has a divergence near 0
        stacked = torch.stack([parts["ehr"], parts["shared"], parts["cxr"]], dim=-1).double()  # (B, C, 3)
        logits = self.bias[:, None] + stacked.sum(dim=-1, keepdim=True)  # (B, C, 1)
        present = torch.ones_like(stacked, dtype=torch.bool)
        present[..., 2] = batch.has_cxr[:, None]
        if self.weights == "advantage":
            scores = _expected_log_likelihood(logits, self.bias[:, None] + stacked)
            return scores.masked_fill(~present, -torch.inf).softmax(dim=-1).float()
        without = _expected_log_likelihood(logits, logits - stacked)
        divergence = (_expected_log_likelihood(logits, logits) - without).clamp(min=1e-12)
        divergence = divergence.masked_fill(~present, 0.0)
        return (divergence / divergence.sum(dim=-1, keepdim=True)).float()


def _linear(dim: int, n_labels: int) -> Head:
    """Return a head without a bias of its own."""
    return Head(dim, n_labels, bias=False)


def _proper_subsets(names: Iterable[str]) -> Sequence[tuple[str, ...]]:
    """Return the subsets that lack something, but are not empty.

    >>> _proper_subsets(["ehr", "cxr"])
    [('ehr',), ('cxr',)]
    """
    names = list(names)
    return list(chain.from_iterable(combinations(names, size) for size in range(1, len(names))))


def _rows_of(subset: Iterable[str], batch: Batch) -> Tensor:
    """Return the rows of the stays that have every modality of a subset."""
    has = {"ehr": torch.ones_like(batch.has_cxr), "cxr": batch.has_cxr}
    return torch.stack([has[name] for name in subset]).all(dim=0).nonzero()[:, 0]


def _at_rows(values: Tensor, modality: str, batch: Batch) -> Tensor:
    """Return values (M, ...) of the stays that have a modality in the rows of the batch (B, ...), else 0."""
    if modality == "ehr":
        return values
    zeros = values.new_zeros(len(batch), *values.shape[1:])
    return zeros.index_copy(0, batch.cxr_of, values)


def _expected_log_likelihood(logits: Tensor, of: Tensor) -> Tensor:
    """Return p log q + (1 - p) log(1 - q), with p and q the probabilities of two logits."""
    p = logits.sigmoid()
    return p * F.logsigmoid(of) + (1 - p) * F.logsigmoid(-of)
