"""DrFuse (Yao et al., AAAI 2024, Eq. 1 to 13); `docs/fidelity.md` lists where the published code differs."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drfuse.data.batch import Batch
from drfuse.models.base import FusionModel, FusionOutput, SharedEncoders
from drfuse.models.cxr_encoders import CxrEncoder
from drfuse.models.ehr_encoders import EhrEncoder
from drfuse.models.losses import at_least_float32, attention_ranking, jensen_shannon, orthogonality
from drfuse.models.precision import Head, in_float32
from drfuse.models.sizes import EncoderSizes, takes_sizes_of


def logit_pool(a: Tensor, b: Tensor) -> Tensor:
    """Return the logits of the mean of two probabilities, given as logits a and b (Eq. 2).

    log(sigmoid(a) + sigmoid(b)) - log(sigmoid(-a) + sigmoid(-b)): equal to the equation's quotient, but
    accurate where that overflows or cancels. Half precision becomes float32.

    >>> logit_pool(torch.tensor([100.0, 3.0]), torch.tensor([100.0, -3.0]))
    tensor([100.,   0.])
    """
    a, b = at_least_float32(a), at_least_float32(b)
    ones = torch.logaddexp(F.logsigmoid(a), F.logsigmoid(b))
    zeros = torch.logaddexp(F.logsigmoid(-a), F.logsigmoid(-b))
    return ones - zeros


class DiseaseWiseAttention(nn.Module):
    """Weigh three representations for each stay and phenotype, and predict from their mix (Eq. 5 to 8).

    Args:
        dim: D, the width of the representations.
        n_labels: C, the phenotypes.
    """

    def __init__(self, dim: int, n_labels: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Parameter(torch.empty(n_labels, dim, dim))  # W_c^K for each phenotype c
        self.value = nn.Linear(dim, dim, bias=False)
        self.head = nn.Parameter(torch.empty(n_labels, dim))  # psi_c for each phenotype c
        self.head_bias = nn.Parameter(torch.empty(n_labels))
        bound = 1 / math.sqrt(dim)  # as nn.Linear starts
        for parameter in (self.key, self.head, self.head_bias):
            nn.init.uniform_(parameter, -bound, bound)

    @in_float32
    def forward(self, stacked: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, C) and weights (B, C, 3).

        Args:
            stacked: The rows of H, (B, 3, D): EHR-distinct, shared, CXR-distinct (zeros where absent).
            present: Boolean (B, 3); where False, the weight is exactly 0.
        """
        mean = (stacked * present[..., None]).sum(1) / present.sum(1, keepdim=True)
        query = self.query(mean)  # (B, D), Eq. 5
        # q K_c^T = q (H W_c^K)^T = (W_c^K q) H^T: (B, C, D) instead of the keys' (B, C, 3, D), Eq. 6
        projected = torch.einsum("bk,cdk->bcd", query, self.key)
        scores = torch.einsum("bcd,brd->bcr", projected, stacked) / math.sqrt(stacked.shape[-1])
        scores = scores.masked_fill(~present[:, None], -math.inf)
        weights = scores.softmax(dim=-1)  # Eq. 7; its mask's constant 1 changes nothing
        mixed = torch.einsum("bcr,brd->bcd", weights, self.value(stacked))  # Eq. 8
        return torch.einsum("bcd,cd->bc", mixed, self.head) + self.head_bias, weights


class DrFuse(FusionModel):
    """Disentangled shared and distinct representations, fused by disease-wise attention.

    Without a radiograph, the shared representation is the EHR's (Eq. 3), the attention weight of CXR-distinct
    is exactly 0 (Eq. 7), and the loss has only the prediction and EHR orthogonality terms (Eq. 13).

    Args:
        alignment_weight: lambda_1, the weight of the alignment loss.
        orthogonality_weight: lambda_2, the weight of the orthogonality losses.
        auxiliary_weight: lambda_3, the weight of the ranking loss and the auxiliary losses.
        ranking_margin: epsilon, the margin of the ranking loss (Eq. 10).
        disentangle: False drops the alignment and orthogonality losses (Table 4, first row).
        alignment: `jsd` with logit pooling, or `mse` with average pooling (Table 4, second row).
        attention_ranking: False drops the ranking loss (Table 4, third row).
        common_projection: Pass both shared representations through one three-layer network, as the published
            code does; the paper does not mention it.
        class_reduction: `sum` over the phenotypes (Eq. 9 and 11), or their `mean` (code).
        auxiliary_stays: Stays whose EHR-distinct and shared auxiliary losses count: `matched` (Eq. 13) or
            `all` (code).
        jsd_outcomes: Outcomes of the Bernoulli variables that the divergence counts: `both`, or `one` (code).
        stay_reduction: Divide every loss by all B stays (`batch`, Eq. 13), or by the stays that have it
            (`own`, code).
        auxiliary_layers: Layers of the auxiliary heads: 2 (paper) or 1 (code).
        ranking_normalization: Divide the ranking loss by 2C (`pairs`, Eq. 10) or by its non-zero terms
            (`nonzero`, code).
    """

    @takes_sizes_of(EhrEncoder, CxrEncoder)
    def __init__(
        self,
        n_features: int,
        n_labels: int,
        sizes: EncoderSizes,
        alignment_weight: float = 1.0,
        orthogonality_weight: float = 1.0,
        auxiliary_weight: float = 0.5,
        ranking_margin: float = 0.0,
        disentangle: bool = True,
        alignment: Literal["jsd", "mse"] = "jsd",
        attention_ranking: bool = True,
        common_projection: bool = True,
        class_reduction: Literal["sum", "mean"] = "sum",
        auxiliary_stays: Literal["matched", "all"] = "matched",
        jsd_outcomes: Literal["both", "one"] = "both",
        stay_reduction: Literal["batch", "own"] = "batch",
        auxiliary_layers: Literal[1, 2] = 2,
        ranking_normalization: Literal["pairs", "nonzero"] = "pairs",
    ) -> None:
        super().__init__()
        self.alignment_weight = alignment_weight
        self.orthogonality_weight = orthogonality_weight
        self.auxiliary_weight = auxiliary_weight
        self.ranking_margin = ranking_margin
        self.disentangle = disentangle
        self.alignment = alignment
        self.attention_ranking = attention_ranking
        self.class_reduction = class_reduction
        self.auxiliary_stays = auxiliary_stays
        self.jsd_outcomes = jsd_outcomes
        self.stay_reduction = stay_reduction
        self.ranking_normalization = ranking_normalization

        self.ehr_encoder = EhrEncoder(n_features, sizes, branches=2)
        self.cxr_shared_encoder = CxrEncoder(sizes)
        self.cxr_distinct_encoder = CxrEncoder(sizes)
        self.common_projection = _three_layers(sizes.dim) if common_projection else nn.Identity()
        self.attention = DiseaseWiseAttention(sizes.dim, n_labels)
        self.auxiliary_heads = nn.ModuleList(
            _auxiliary_head(sizes.dim, n_labels, auxiliary_layers) for _ in range(3)
        )

    def forward(self, batch: Batch) -> FusionOutput:
        """Return logits (B, C), modality weights (B, C, 3) and the representations.

        `ehr_shared`, `ehr_distinct` and `shared` are (B, D), `cxr_shared` and `cxr_distinct` (M, D).
        """
        encoded = self.ehr_encoder(batch.ehr, batch.n_hours)
        ehr_shared, ehr_distinct = self.common_projection(encoded[0]), encoded[1]
        cxr_shared = self.common_projection(self.cxr_shared_encoder(batch))
        cxr_distinct = self.cxr_distinct_encoder(batch)
        ehr_shared, ehr_distinct, cxr_shared, cxr_distinct = map(
            at_least_float32, (ehr_shared, ehr_distinct, cxr_shared, cxr_distinct)
        )

        matched = ehr_shared[batch.cxr_of]  # (M, D)
        pooled = logit_pool(matched, cxr_shared) if self.alignment == "jsd" else (matched + cxr_shared) / 2
        shared = ehr_shared.index_copy(0, batch.cxr_of, pooled)  # (B, D), Eq. 3
        cxr_or_zero = torch.zeros_like(ehr_distinct).index_copy(0, batch.cxr_of, cxr_distinct)
        everywhere = torch.ones_like(batch.has_cxr)
        logits, weights = self.attention(
            torch.stack([ehr_distinct, shared, cxr_or_zero], dim=1),
            torch.stack([everywhere, everywhere, batch.has_cxr], dim=1),
        )
        representations = {
            "ehr_shared": ehr_shared,
            "ehr_distinct": ehr_distinct,
            "shared": shared,
            "cxr_shared": cxr_shared,
            "cxr_distinct": cxr_distinct,
        }
        return FusionOutput(logits, weights, representations)

    def loss(self, output: FusionOutput, batch: Batch) -> dict[str, Tensor]:
        """Return `total` (Eq. 12 and 13) and its parts without their weights.

        The parts are `prediction`, `alignment`, `orthogonality_ehr`, `orthogonality_cxr`, `auxiliary` and
        `ranking`.
        """
        rows, h = batch.cxr_of, output.representations
        parts = {"prediction": self._over_classes(_cross_entropy(output.logits, batch.labels)).mean()}
        if self.disentangle:
            alignment = self._align(h["ehr_shared"][rows], h["cxr_shared"])
            parts["alignment"] = self._over_stays(alignment, batch)
            parts["orthogonality_ehr"] = orthogonality(h["ehr_shared"], h["ehr_distinct"]).mean()
            orthogonality_cxr = orthogonality(h["cxr_shared"], h["cxr_distinct"])
            parts["orthogonality_cxr"] = self._over_stays(orthogonality_cxr, batch)

        ehr, shared, cxr = self._auxiliary_losses(h, batch)  # (B, C), (B, C), (M, C)
        if self.auxiliary_stays == "all":
            everyone, matched = self._over_classes(ehr + shared).mean(), self._over_classes(cxr)
        else:
            everyone, matched = ehr.new_zeros(()), self._over_classes(ehr[rows] + shared[rows] + cxr)
        parts["auxiliary"] = everyone + self._over_stays(matched, batch)  # Eq. 9
        if self.attention_ranking:
            if output.modality_weights is None:
                raise ValueError("the output has no modality weights; pass the output of this model")
            ranking = attention_ranking(
                output.modality_weights[rows],
                torch.stack([ehr[rows], shared[rows], cxr], dim=-1),
                self.ranking_margin,
                self.ranking_normalization,
            )
            parts["ranking"] = self._over_stays(ranking, batch)
        weight = {
            "alignment": self.alignment_weight,
            "orthogonality_ehr": self.orthogonality_weight,
            "orthogonality_cxr": self.orthogonality_weight,
            "auxiliary": self.auxiliary_weight,
            "ranking": self.auxiliary_weight,
        }
        total = torch.stack([weight.get(name, 1.0) * part for name, part in parts.items()]).sum()
        return {"total": total, **parts}

    def shared_encoders(self) -> SharedEncoders:
        """Return the encoders."""
        return SharedEncoders(
            ehr=[self.ehr_encoder], cxr=[self.cxr_shared_encoder, self.cxr_distinct_encoder]
        )

    def _align(self, ehr: Tensor, cxr: Tensor) -> Tensor:
        """Return the alignment loss (M,) of the two shared representations (M, D)."""
        if self.alignment == "jsd":
            return jensen_shannon(ehr, cxr, self.jsd_outcomes)
        return F.mse_loss(ehr, cxr, reduction="none").mean(-1)

    def _auxiliary_losses(self, h: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the auxiliary losses of EHR-distinct (B, C), shared (B, C) and CXR-distinct (M, C)."""
        ehr, shared, cxr = self.auxiliary_heads
        return (
            _cross_entropy(ehr(h["ehr_distinct"]), batch.labels),
            _cross_entropy(shared(h["shared"]), batch.labels),
            _cross_entropy(cxr(h["cxr_distinct"]), batch.labels[batch.cxr_of]),
        )

    def _over_classes(self, losses: Tensor) -> Tensor:
        return losses.sum(-1) if self.class_reduction == "sum" else losses.mean(-1)

    def _over_stays(self, losses: Tensor, batch: Batch) -> Tensor:
        """Return the sum of the matched stays' losses (M,), divided as `stay_reduction` says."""
        n_stays = len(batch) if self.stay_reduction == "batch" else max(1, len(losses))
        return losses.sum() / n_stays


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def _three_layers(dim: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, dim)
    )


def _auxiliary_head(dim: int, n_labels: int, layers: Literal[1, 2]) -> nn.Module:
    if layers == 1:
        return Head(dim, n_labels)
    return nn.Sequential(Head(dim, dim), nn.ReLU(), Head(dim, n_labels))
