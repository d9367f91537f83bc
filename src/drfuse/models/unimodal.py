"""One modality alone: the Transformer and the ResNet that DrFuse is compared with (Yao et al., section 4.2).

They are made of the encoders that all models share, each with a linear head. The LSTM is what MedFuse trains
in its first stage.
"""

import math

from torch import Tensor
from torch.nn import functional as F

from drfuse.data.batch import Batch
from drfuse.models.base import FusionModel, FusionOutput
from drfuse.models.encoders import BackboneSpec, CxrEncoder, EhrEncoder, EhrLstmEncoder, HourPooling
from drfuse.models.precision import Head


class _EhrAlone(FusionModel):
    """An encoder of the EHR that gives one representation (B, D), and a linear head."""

    def __init__(self, encoder: EhrEncoder | EhrLstmEncoder, dim: int, n_labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = Head(dim, n_labels)

    def forward(self, batch: Batch) -> FusionOutput:
        """Return logits (B, C) and the representation `ehr` (B, D)."""
        (ehr,) = self.encoder(batch.ehr, batch.n_hours)
        return self.classify(ehr)

    def classify(self, ehr: Tensor) -> FusionOutput:
        """Return the output of representations (B, D)."""
        return FusionOutput(self.head(ehr), representations={"ehr": ehr})

    def loss(self, output: FusionOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the binary cross entropy, averaged over stays and phenotypes, as `total`."""
        return {"total": F.binary_cross_entropy_with_logits(output.logits, batch.labels)}


class EhrTransformer(_EhrAlone):
    """A Transformer of the EHR; radiographs change nothing.

    Args:
        n_features: F, the features of an hour.
        n_labels: C, the phenotypes.
        dim: D, the width of the representation.
        heads: Attention heads.
        layers: Layers after the first one.
        dropout: Dropout of the Transformer layers.
        feedforward: Width of their feed-forward layers.
        max_hours: The longest time series.
        pooling: What becomes of the hours (see `encoders.HourPooling`).
    """

    reads_cxr = False

    def __init__(
        self,
        n_features: int,
        n_labels: int,
        dim: int = 256,
        heads: int = 4,
        layers: int = 1,
        dropout: float = 0.3,
        feedforward: int = 2048,
        max_hours: int = 48,
        pooling: HourPooling = "published",
    ) -> None:
        super().__init__(
            EhrEncoder(n_features, dim, heads, layers, dropout, 1, max_hours, feedforward, pooling),
            dim,
            n_labels,
        )


class EhrLstm(_EhrAlone):
    """An LSTM of the EHR, the first stage of MedFuse (Hayat et al., MLHC 2022); radiographs change nothing.

    Args:
        n_features: F, the features of an hour.
        n_labels: C, the phenotypes.
        dim: D, the width of the representation.
        lstm_layers: LSTM layers.
        dropout: Dropout of the representation.
        pooling: What becomes of the hours (see `encoders.HourPooling`).
    """

    reads_cxr = False

    def __init__(
        self,
        n_features: int,
        n_labels: int,
        dim: int = 256,
        lstm_layers: int = 2,
        dropout: float = 0.3,
        pooling: HourPooling = "published",
    ) -> None:
        super().__init__(EhrLstmEncoder(n_features, dim, lstm_layers, dropout, pooling), dim, n_labels)


class CxrResNet(FusionModel):
    """A ResNet of the radiograph; it says nothing of a stay without one.

    Args:
        n_features: Of an hour of the EHR, which is not read.
        n_labels: C, the phenotypes.
        dim: D, the width of the representation.
        cxr_backbone: The architecture (see `build_backbone`).
    """

    reads_ehr = False

    def __init__(
        self,
        n_features: int,  # noqa: ARG002
        n_labels: int,
        dim: int = 256,
        cxr_backbone: BackboneSpec = "resnet50",
    ) -> None:
        super().__init__()
        self.encoder = CxrEncoder(dim, cxr_backbone)
        self.head = Head(dim, n_labels)

    def forward(self, batch: Batch) -> FusionOutput:
        """Return logits (B, C), NaN for stays without a radiograph, and the representation `cxr` (M, D)."""
        return self.classify(self.encoder(batch.cxr), batch)

    def classify(self, cxr: Tensor, batch: Batch) -> FusionOutput:
        """Return the output of representations (M, D) of the batch's radiographs."""
        told = self.head(cxr)
        unknown = told.new_full((len(batch), told.shape[-1]), math.nan)
        logits = unknown.index_copy(0, batch.cxr_of, told)
        return FusionOutput(logits, representations={"cxr": cxr})

    def loss(self, output: FusionOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the binary cross entropy over the stays with a radiograph as `total`; 0 if there is none."""
        rows = batch.cxr_of
        losses = F.binary_cross_entropy_with_logits(output.logits[rows], batch.labels[rows], reduction="none")
        return {"total": losses.sum() / max(1, losses.numel())}
