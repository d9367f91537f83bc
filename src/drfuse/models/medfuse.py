"""MedFuse (Hayat et al., MLHC 2022, arXiv:2207.07027): an LSTM reads one representation of each modality."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drfuse.data.batch import Batch
from drfuse.errors import check_choice
from drfuse.models.base import FusionModel, FusionOutput
from drfuse.models.encoders import BackboneSpec, CxrEncoder, EhrEncoder, EhrLstmEncoder, HourPooling
from drfuse.models.losses import at_least_float32
from drfuse.models.precision import Head, Lstm


class MedFuse(FusionModel):
    """An LSTM over the sequence of EHR and projected CXR, with a linear head on its last hidden state.

    MedFuse trains in two stages: first `EhrLstm` and `CxrResNet` alone, whose encoders are built like
    `ehr_encoder` and `cxr_encoder` here, then everything, starting from their weights. MedFuse-II (DrFuse,
    section 4.2) is `MedFuse(ehr_encoder="transformer", cxr_backbone="resnet50")`, and its first stage
    `EhrTransformer` and `CxrResNet`.

    Args:
        n_features: F, the features of an hour.
        n_labels: C, the phenotypes.
        dim: D, the width of each modality's representation.
        ehr_encoder: `lstm` as in `EhrLstm`, or `transformer` as in `EhrTransformer`.
        cxr_backbone: The radiograph encoder's architecture (see `build_backbone`).
        fusion_dim: Width of the LSTM that fuses.
        absent_cxr: What the LSTM reads in place of an absent radiograph: one `learned` representation for all
            (DrFuse's account of MedFuse), or nothing: `skip` ends the sequence after the EHR (code).
        lstm_layers: Layers of the EHR's LSTM.
        heads: Attention heads of the EHR's Transformer.
        layers: Its layers after the first one.
        feedforward: Width of its feed-forward layers.
        max_hours: The longest time series that it takes.
        dropout: Dropout of the EHR encoder.
        pooling: What becomes of its hours (see `encoders.HourPooling`).
    """

    def __init__(
        self,
        n_features: int,
        n_labels: int,
        dim: int = 256,
        ehr_encoder: Literal["lstm", "transformer"] = "lstm",
        cxr_backbone: BackboneSpec = "resnet34",
        fusion_dim: int = 512,
        absent_cxr: Literal["learned", "skip"] = "learned",
        lstm_layers: int = 2,
        heads: int = 4,
        layers: int = 1,
        feedforward: int = 2048,
        max_hours: int = 48,
        dropout: float = 0.3,
        pooling: HourPooling = "published",
    ) -> None:
        super().__init__()
        check_choice("ehr_encoder", ehr_encoder, ("lstm", "transformer"))
        check_choice("absent_cxr", absent_cxr, ("learned", "skip"))
        self.ehr_encoder = (
            EhrLstmEncoder(n_features, dim, lstm_layers, dropout, pooling)
            if ehr_encoder == "lstm"
            else EhrEncoder(n_features, dim, heads, layers, dropout, 1, max_hours, feedforward, pooling)
        )
        self.cxr_encoder = CxrEncoder(dim, cxr_backbone)
        self.absent_cxr = nn.Parameter(torch.zeros(dim)) if absent_cxr == "learned" else None
        self.fusion = Lstm(dim, fusion_dim, batch_first=True)
        self.head = Head(fusion_dim, n_labels)

    def forward(self, batch: Batch) -> FusionOutput:
        """Return logits (B, C) and the representations `ehr` (B, D) and `cxr` (M, D)."""
        (ehr,) = self.ehr_encoder(batch.ehr, batch.n_hours)
        ehr, cxr = at_least_float32(ehr), at_least_float32(self.cxr_encoder(batch.cxr))
        absent = torch.zeros_like(ehr) if self.absent_cxr is None else self.absent_cxr.expand_as(ehr)
        second = absent.index_copy(0, batch.cxr_of, cxr)  # (B, D)
        hidden, _ = self.fusion(torch.stack([ehr, second], dim=1))  # (B, 2, fusion_dim)
        last = hidden[:, 1]
        if self.absent_cxr is None:
            last = torch.where(batch.has_cxr[:, None], last, hidden[:, 0])
        return FusionOutput(self.head(last), representations={"ehr": ehr, "cxr": cxr})

    def loss(self, output: FusionOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the binary cross entropy, averaged over stays and phenotypes, as `total`."""
        return {"total": F.binary_cross_entropy_with_logits(output.logits, batch.labels)}
