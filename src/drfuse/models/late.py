"""Late fusion: separate models of each modality, fused in what they predict (DrFuse, section 2)."""

from torch import Tensor

from drfuse.data.batch import Batch
from drfuse.models.base import FusionModel, FusionOutput
from drfuse.models.drfuse import logit_pool
from drfuse.models.encoders import BackboneSpec, HourPooling
from drfuse.models.unimodal import CxrResNet, EhrTransformer


class LateFusion(FusionModel):
    """The mean of the probabilities of `EhrTransformer` and `CxrResNet`, (p_ehr + p_cxr) / 2.

    They share no weights, and each has its own loss; one epoch is kept for both. Without a radiograph the
    EHR's probability stands alone.

    Args:
        n_features: F, the features of an hour.
        n_labels: C, the phenotypes.
        dim: D, the width of each modality's representation.
        heads: Attention heads of the Transformer.
        layers: Its layers after the first one.
        dropout: Its dropout.
        feedforward: Width of its feed-forward layers.
        cxr_backbone: The architecture of the ResNet (see `build_backbone`).
        max_hours: The longest time series.
        pooling: What becomes of the hours (see `encoders.HourPooling`).
    """

    def __init__(
        self,
        n_features: int,
        n_labels: int,
        dim: int = 256,
        heads: int = 4,
        layers: int = 1,
        dropout: float = 0.3,
        feedforward: int = 2048,
        cxr_backbone: BackboneSpec = "resnet50",
        max_hours: int = 48,
        pooling: HourPooling = "published",
    ) -> None:
        super().__init__()
        self.ehr = EhrTransformer(
            n_features, n_labels, dim, heads, layers, dropout, feedforward, max_hours, pooling
        )
        self.cxr = CxrResNet(n_features, n_labels, dim, cxr_backbone)

    def forward(self, batch: Batch) -> FusionOutput:
        """Return logits (B, C) and the representations `ehr` (B, D) and `cxr` (M, D)."""
        ehr, cxr, rows = self.ehr(batch), self.cxr(batch), batch.cxr_of
        logits = ehr.logits.index_copy(0, rows, logit_pool(ehr.logits[rows], cxr.logits[rows]))
        return FusionOutput(logits, representations=ehr.representations | cxr.representations)

    def loss(self, output: FusionOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the models' own losses, `ehr` and `cxr` (0 without radiographs), and their sum `total`."""
        h = output.representations
        ehr = self.ehr.loss(self.ehr.classify(h["ehr"]), batch)["total"]
        cxr = self.cxr.loss(self.cxr.classify(h["cxr"], batch), batch)["total"]
        return {"total": ehr + cxr, "ehr": ehr, "cxr": cxr}
