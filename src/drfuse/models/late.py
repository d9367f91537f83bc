"""Late fusion: a separate model of each modality; their predictions are averaged (DrFuse, section 2)."""

from torch import Tensor

from drfuse.data.batch import Batch
from drfuse.models.base import FusionModel, FusionOutput, SharedEncoders
from drfuse.models.cxr_encoders import CxrEncoder
from drfuse.models.drfuse import logit_pool
from drfuse.models.ehr_encoders import EhrEncoder
from drfuse.models.sizes import EncoderSizes, takes_sizes_of
from drfuse.models.unimodal import CxrResNet, EhrTransformer


class LateFusion(FusionModel):
    """The mean of the probabilities of `EhrTransformer` and `CxrResNet`, (p_ehr + p_cxr) / 2.

    They share no weights, and each has its own loss; the best epoch is chosen for both together. Without a
    radiograph, the prediction is the EHR's.
    """

    @takes_sizes_of(EhrEncoder, CxrEncoder)
    def __init__(self, n_features: int, n_labels: int, sizes: EncoderSizes) -> None:
        super().__init__()
        self.ehr = EhrTransformer(n_features, n_labels, **sizes.of(EhrEncoder))
        self.cxr = CxrResNet(n_features, n_labels, **sizes.of(CxrEncoder))

    def forward(self, batch: Batch) -> FusionOutput:
        """Return logits (B, C) and the representations `ehr` (B, D) and `cxr` (M, D)."""
        ehr, cxr, rows = self.ehr(batch), self.cxr(batch), batch.cxr_of
        logits = ehr.logits.index_copy(0, rows, logit_pool(ehr.logits[rows], cxr.logits[rows]))
        return FusionOutput(logits, representations=ehr.representations | cxr.representations)

    def loss(self, output: FusionOutput, batch: Batch) -> dict[str, Tensor]:
        """Return each model's own loss, `ehr` and `cxr` (0 without radiographs), and their sum `total`."""
        h = output.representations
        ehr = self.ehr.loss(self.ehr.classify(h["ehr"]), batch)["total"]
        cxr = self.cxr.loss(self.cxr.classify(h["cxr"], batch), batch)["total"]
        return {"total": ehr + cxr, "ehr": ehr, "cxr": cxr}

    def logits_without_ehr(self, batch: Batch, mean_hour: Tensor) -> Tensor:
        """Return the logits (M, C) of the radiographs' model."""
        return self.cxr.logits_without_ehr(batch, mean_hour)

    def shared_encoders(self) -> SharedEncoders:
        """Return the encoders."""
        return SharedEncoders(ehr=[self.ehr.encoder], cxr=[self.cxr.encoder])
