"""MedFuse (Hayat et al., MLHC 2022, arXiv:2207.07027): an LSTM reads one representation of each modality."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drfuse.data.batch import Batch
from drfuse.models.base import FusionModel, FusionOutput, SharedEncoders
from drfuse.models.cxr_encoders import CxrEncoder
from drfuse.models.ehr_encoders import EhrEncoder, EhrLstmEncoder
from drfuse.models.losses import at_least_float32
from drfuse.models.precision import Head, Lstm
from drfuse.models.sizes import EncoderSizes, takes_sizes_of


class MedFuse(FusionModel):
    """An LSTM over the sequence of EHR and projected CXR, with a linear head on its last hidden state.

    MedFuse trains in two stages: first `EhrLstm` and `CxrResNet` alone, whose encoders match `ehr_encoder`
    and `cxr_encoder` here; then everything, starting from their weights. MedFuse-II (DrFuse, section 4.2) is
    `MedFuse(ehr_encoder="transformer", cxr_backbone="resnet50")`; its first stage is `EhrTransformer` and
    `CxrResNet`.

    Args:
        ehr_encoder: `lstm` as in `EhrLstm`, or `transformer` as in `EhrTransformer`.
        fusion_dim: Width of the fusion LSTM.
        absent_cxr: What stands for an absent radiograph: one `learned` representation (DrFuse's account of
            MedFuse), or nothing: `skip` ends the sequence after the EHR (code).
    """

    @takes_sizes_of(EhrLstmEncoder, EhrEncoder, CxrEncoder, cxr_backbone="resnet34")
    def __init__(
        self,
        n_features: int,
        n_labels: int,
        sizes: EncoderSizes,
        ehr_encoder: Literal["lstm", "transformer"] = "lstm",
        fusion_dim: int = 512,
        absent_cxr: Literal["learned", "skip"] = "learned",
    ) -> None:
        super().__init__()
        encoder = EhrLstmEncoder if ehr_encoder == "lstm" else EhrEncoder
        self.ehr_encoder = encoder(n_features, sizes)
        self.cxr_encoder = CxrEncoder(sizes)
        self.absent_cxr = nn.Parameter(torch.zeros(sizes.dim)) if absent_cxr == "learned" else None
        self.fusion = Lstm(sizes.dim, fusion_dim, batch_first=True)
        self.head = Head(fusion_dim, n_labels)

    def forward(self, batch: Batch) -> FusionOutput:
        """Return logits (B, C) and the representations `ehr` (B, D) and `cxr` (M, D)."""
        (ehr,) = self.ehr_encoder(batch.ehr, batch.n_hours)
        ehr, cxr = at_least_float32(ehr), at_least_float32(self.cxr_encoder(batch))
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

    def shared_encoders(self) -> SharedEncoders:
        """Return the encoders."""
        return SharedEncoders(ehr=[self.ehr_encoder], cxr=[self.cxr_encoder])
