"""Single-modality models: the Transformer and ResNet baselines of DrFuse (Yao et al., section 4.2), an LSTM.

Each is a shared encoder with a linear head.
"""

from torch import Tensor
from torch.nn import functional as F

from drfuse.data.batch import Batch
from drfuse.models.base import FusionModel, FusionOutput, SharedEncoders
from drfuse.models.cxr_encoders import CxrEncoder
from drfuse.models.ehr_encoders import EhrEncoder, EhrLstmEncoder
from drfuse.models.losses import mean_cross_entropy
from drfuse.models.precision import Head
from drfuse.models.sizes import EncoderSizes, takes_sizes_of


class _EhrAlone(FusionModel):
    """An EHR encoder that returns one representation (B, D), and a linear head."""

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

    def shared_encoders(self) -> SharedEncoders:
        """Return the encoders."""
        return SharedEncoders(ehr=[self.encoder])


class EhrTransformer(_EhrAlone):
    """A Transformer on the EHR; it ignores radiographs."""

    reads = ("ehr",)

    @takes_sizes_of(EhrEncoder)
    def __init__(self, n_features: int, n_labels: int, sizes: EncoderSizes) -> None:
        super().__init__(EhrEncoder(n_features, sizes), sizes.dim, n_labels)


class EhrLstm(_EhrAlone):
    """An LSTM on the EHR, the first stage of MedFuse (Hayat et al., 2022); it ignores radiographs."""

    reads = ("ehr",)

    @takes_sizes_of(EhrLstmEncoder)
    def __init__(self, n_features: int, n_labels: int, sizes: EncoderSizes) -> None:
        super().__init__(EhrLstmEncoder(n_features, sizes), sizes.dim, n_labels)


class CxrResNet(FusionModel):
    """A ResNet on the radiograph; a stay without one gets no prediction."""

    reads = ("cxr",)

    @takes_sizes_of(CxrEncoder)
    def __init__(self, n_features: int, n_labels: int, sizes: EncoderSizes) -> None:  # noqa: ARG002
        super().__init__()
        self.encoder = CxrEncoder(sizes)
        self.head = Head(sizes.dim, n_labels)

    def forward(self, batch: Batch) -> FusionOutput:
        """Return logits (B, C), NaN for stays without a radiograph, and the representation `cxr` (M, D)."""
        return self.classify(self.encoder(batch), batch)

    def classify(self, cxr: Tensor, batch: Batch) -> FusionOutput:
        """Return the output of representations (M, D) of the batch's radiographs."""
        return FusionOutput(batch.nan_without_cxr(self.head(cxr)), representations={"cxr": cxr})

    def loss(self, output: FusionOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the binary cross entropy over the stays with a radiograph as `total`; 0 without any."""
        rows = batch.cxr_of
        return {"total": mean_cross_entropy(output.logits[rows], batch.labels[rows])}

    def shared_encoders(self) -> SharedEncoders:
        """Return the encoders."""
        return SharedEncoders(cxr=[self.encoder])
