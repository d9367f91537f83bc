"""DAFT (Pölsterl et al., MICCAI 2021, arXiv:2107.05990; Wolf et al., NeuroImage 2022)."""

from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drfuse.data.batch import Batch
from drfuse.models.base import FusionModel, FusionOutput, SharedEncoders
from drfuse.models.cxr_encoders import CxrStages, enough_for_batch_norm
from drfuse.models.ehr_encoders import EhrEncoder, mean_over_hours
from drfuse.models.precision import Head
from drfuse.models.sizes import EncoderSizes, takes_sizes_of

if TYPE_CHECKING:
    from transformers.models.resnet.modeling_resnet import ResNetConvLayer

_REDUCTION = 7  # how much narrower the bottleneck is than its input
_MIN_BOTTLENECK = 8  # in a narrower one, as in a toy model, all units could be dead


class AffineParameters(nn.Module):
    """A scale and a shift for each channel, from both modalities: DAFT's auxiliary network.

    W_2 relu(W_1 x), without biases; neither scale nor shift has an activation. The scale starts near zero;
    the normalisation that follows makes up for it.

    Args:
        n_conditions: Width of x; the bottleneck has a seventh of it, but at least 8 units.
        channels: Number of channels to scale and shift.
    """

    def __init__(self, n_conditions: int, channels: int) -> None:
        super().__init__()
        width = max(_MIN_BOTTLENECK, n_conditions // _REDUCTION)
        self.bottleneck = nn.Linear(n_conditions, width, bias=False)
        self.parameters_of = nn.Linear(width, 2 * channels, bias=False)

    def forward(self, cxr: Tensor, ehr: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and shift (B, channels) from x, one vector of each modality side by side."""
        hidden = self.bottleneck(torch.cat([cxr, ehr], dim=-1)).relu()
        scale, shift = self.parameters_of(hidden).chunk(2, dim=-1)
        return scale, shift


class DAFT(FusionModel):
    """One modality's features, scaled and shifted per channel by both modalities.

    `cxr`, as in the paper, modulates the feature maps of the last residual block, after its shortcut branches
    off and before its first convolution. The EHR has no other effect; the block's output, averaged over
    space, predicts.

    `ehr`, as in MedFuse's comparison (Hayat et al., MLHC 2022), modulates the hours after the Transformer's
    first layer by the image features after the ResNet's third stage (or the last but one, if there are
    fewer). The Transformer predicts; the ResNet's later stages are dropped.

    The backbone must be a ResNet. An all-zero image stands for an absent radiograph and passes through it
    (DrFuse, section 4.2); under `cxr` such a stay is predicted from that image, conditioned on its EHR.

    Args:
        modulate: The modality that is scaled and shifted, and predicts: `cxr` (the paper) or `ehr` (MedFuse's
            comparison).
    """

    @takes_sizes_of(EhrEncoder, CxrStages)
    def __init__(
        self, n_features: int, n_labels: int, sizes: EncoderSizes, modulate: Literal["cxr", "ehr"] = "cxr"
    ) -> None:
        super().__init__()
        self.modulate = modulate
        self.ehr_encoder = EhrEncoder(n_features, sizes)
        self.cxr_stages = CxrStages(sizes)
        if modulate == "cxr":
            modulated = cast("ResNetConvLayer", self.cxr_stages.blocks[-1].layer[0]).convolution.in_channels
            self.affine = AffineParameters(modulated + sizes.dim, modulated)
            self.project: nn.Module = nn.Linear(self.cxr_stages.channels[-1], sizes.dim)
        else:
            self.cxr_stages.keep(max(1, min(3, len(self.cxr_stages.stages) - 1)))
            self.affine = AffineParameters(self.cxr_stages.channels[-1] + sizes.dim, sizes.dim)
            self.project = nn.Identity()
        self.head = Head(sizes.dim, n_labels)

    def forward(self, batch: Batch) -> FusionOutput:
        """Return logits (B, C) and the representation `fused` (B, D) that they are predicted from."""
        images = batch.cxr_or_zeros()
        modulate = self._modulate_cxr if self.modulate == "cxr" else self._modulate_ehr
        with enough_for_batch_norm(images):
            fused = modulate(batch, images)
        fused = self.project(fused)
        return FusionOutput(self.head(fused), representations={"fused": fused})

    def loss(self, output: FusionOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the binary cross entropy, averaged over stays and phenotypes, as `total`."""
        return {"total": F.binary_cross_entropy_with_logits(output.logits, batch.labels)}

    def shared_encoders(self) -> SharedEncoders:
        """Return the encoders."""
        return SharedEncoders(ehr=[self.ehr_encoder])

    def _modulate_cxr(self, batch: Batch, images: Tensor) -> Tensor:
        """Return the output (B, channels) of the modulated last residual block, averaged over space."""
        (ehr,) = self.ehr_encoder(batch.ehr, batch.n_hours)
        maps = self.cxr_stages.embedder(images)
        *blocks, last = self.cxr_stages.blocks
        for block in blocks:
            maps = block(maps)
        scale, shift = self.affine(maps.mean(dim=(2, 3)), ehr)
        modulated = maps * scale[..., None, None] + shift[..., None, None]
        maps = last.activation(last.layer(modulated) + last.shortcut(maps))
        pooled: Tensor = maps.mean(dim=(2, 3))
        return pooled

    def _modulate_ehr(self, batch: Batch, images: Tensor) -> Tensor:
        """Return the EHR representation (B, D) of the modulated hours."""
        hidden, padded = self.ehr_encoder.embed(batch.ehr, batch.n_hours)
        maps = self.cxr_stages.embedder(images)
        for stage in self.cxr_stages.stages:
            maps = stage(maps)
        scale, shift = self.affine(maps.mean(dim=(2, 3)), mean_over_hours(hidden, padded))
        (fused,) = self.ehr_encoder.finish(hidden * scale[:, None] + shift[:, None], padded)
        return fused
