"""DAFT (Pölsterl et al., MICCAI 2021, arXiv:2107.05990; Wolf et al., NeuroImage 2022)."""

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.resnet.modeling_resnet import ResNetConvLayer

from drfuse.data.batch import Batch
from drfuse.models.base import FusionModel, FusionOutput, SharedEncoders
from drfuse.models.cxr_encoders import CxrStages, enough_for_batch_norm
from drfuse.models.ehr_encoders import EhrEncoder, mean_over_hours
from drfuse.models.precision import Head
from drfuse.models.sizes import EncoderSizes, takes_sizes_of

_REDUCTION = 7  # how much wider the auxiliary network's input is than its bottleneck
_LEAST_UNITS = 8  # in a narrower bottleneck, of a toy model, all units could be dead


class AffineParameters(nn.Module):
    """A scale and a shift for each channel, from what both modalities show: DAFT's auxiliary network.

    W_2 relu(W_1 x), without biases; neither scale nor shift has an activation. The normalisation that follows
    takes up the size of the scale, which starts near zero.

    Args:
        n_conditions: Width of x; the bottleneck has a seventh of it, but 8 units at least.
        channels: To be scaled and shifted.
    """

    def __init__(self, n_conditions: int, channels: int) -> None:
        super().__init__()
        width = max(_LEAST_UNITS, n_conditions // _REDUCTION)
        self.bottleneck = nn.Linear(n_conditions, width, bias=False)
        self.parameters_of = nn.Linear(width, 2 * channels, bias=False)

    def forward(self, cxr: Tensor, ehr: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and shift (B, channels), from one vector of each modality, together x."""
        hidden = self.bottleneck(torch.cat([cxr, ehr], dim=-1)).relu()
        scale, shift = self.parameters_of(hidden).chunk(2, dim=-1)
        return scale, shift


class DAFT(FusionModel):
    """One modality's features, scaled and shifted channel by channel by what both modalities show.

    `cxr` modulates the radiograph, as the paper does: the feature maps within the last residual block, after
    its shortcut has branched off and before its first convolution. The EHR acts through that alone; the
    block's output, averaged over space, predicts.

    `ehr`, as in MedFuse's comparison (Hayat et al., MLHC 2022), modulates the hours between the Transformer's
    first layer and its others, by the image features after the ResNet's third stage (the one before the last
    if there are fewer). The Transformer predicts; the ResNet's later stages are left out.

    The backbone must be a ResNet. An absent radiograph is an all-zero image, which passes through it like any
    other (DrFuse, section 4.2).
    Under `cxr` such a stay is predicted from that image, conditioned on its EHR.

    Args:
        modulate: The modality that is scaled and shifted, and predicts: `cxr` (the paper) or `ehr` (MedFuse's
            comparison).
    """

    @takes_sizes_of(EhrEncoder, CxrStages)
    def __init__(
        self,
        n_features: int,
        n_labels: int,
        sizes: EncoderSizes,
        modulate: Literal["cxr", "ehr"] = "cxr",
    ) -> None:
        super().__init__()
        self.modulate = modulate
        self.ehr_encoder = EhrEncoder(n_features, sizes)
        self.cxr_stages = CxrStages(sizes)
        if modulate == "cxr":
            modulated = cast(ResNetConvLayer, self.cxr_stages.blocks[-1].layer[0]).convolution.in_channels
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
        with enough_for_batch_norm(images):
            fused = (
                self._modulate_cxr(batch, images)
                if self.modulate == "cxr"
                else self._modulate_ehr(batch, images)
            )
        fused = self.project(fused)
        return FusionOutput(self.head(fused), representations={"fused": fused})

    def loss(self, output: FusionOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the binary cross entropy, averaged over stays and phenotypes, as `total`."""
        return {"total": F.binary_cross_entropy_with_logits(output.logits, batch.labels)}

    def shared_encoders(self) -> SharedEncoders:
        """Return the encoders."""
        return SharedEncoders(ehr=[self.ehr_encoder])

    def _modulate_cxr(self, batch: Batch, images: Tensor) -> Tensor:
        """Return what the last residual block, modulated by the EHR, makes of each image, (B, channels)."""
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
        """Return the EHR's representation (B, D) after its hours were modulated by the image."""
        hidden, padded = self.ehr_encoder.embed(batch.ehr, batch.n_hours)
        maps = self.cxr_stages.embedder(images)
        for stage in self.cxr_stages.stages:
            maps = stage(maps)
        scale, shift = self.affine(maps.mean(dim=(2, 3)), mean_over_hours(hidden, padded))
        (fused,) = self.ehr_encoder.finish(hidden * scale[:, None] + shift[:, None], padded)
        return fused
