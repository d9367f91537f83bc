"""MMTM (Joze et al., CVPR 2020, arXiv:1911.08670), applied as in MedFuse's comparison (MLHC 2022)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drfuse.data.batch import Batch
from drfuse.errors import InputError
from drfuse.models.base import FusionModel, FusionOutput, SharedEncoders
from drfuse.models.cxr_encoders import CxrStages, enough_for_batch_norm
from drfuse.models.ehr_encoders import EhrEncoder, mean_over_hours
from drfuse.models.losses import at_least_float32, mean_cross_entropy
from drfuse.models.precision import Head
from drfuse.models.sizes import EncoderSizes, takes_sizes_of


class Exchange(nn.Module):
    """Gate each modality's channels by both modalities: the multimodal transfer module.

    With s the means of both modalities side by side, z = relu(W s + b), and each channel of modality m is
    multiplied by its gate 2 sigmoid(W_m z + b_m), which is 1 at an input of 0.

    Args:
        cxr_channels: C, of the feature maps.
        ehr_channels: D, of the hours.
        ratio: The joint layer has 2 (C + D) / ratio units.
    """

    def __init__(self, cxr_channels: int, ehr_channels: int, ratio: int = 4) -> None:
        super().__init__()
        channels = cxr_channels + ehr_channels
        if not 1 <= ratio <= 2 * channels:
            raise InputError(f"ratio is {ratio}; expected 1 to {2 * channels}")
        width = 2 * channels // ratio
        self.joint = nn.Linear(channels, width)
        self.excite_cxr = nn.Linear(width, cxr_channels)
        self.excite_ehr = nn.Linear(width, ehr_channels)

    def forward(self, maps: Tensor, hidden: Tensor, padded: Tensor) -> tuple[Tensor, Tensor]:
        """Return gated maps (B, C, H, W) and hours (B, T, D); `padded` (B, T) is True for padding."""
        squeezed = torch.cat([maps.mean(dim=(2, 3)), mean_over_hours(hidden, padded)], dim=-1)
        joint = self.joint(squeezed).relu()
        cxr_gate = 2 * self.excite_cxr(joint).sigmoid()
        ehr_gate = 2 * self.excite_ehr(joint).sigmoid()
        return maps * cxr_gate[..., None, None], hidden * ehr_gate[:, None]


class MMTM(FusionModel):
    """A ResNet and a Transformer that gate each other's channels.

    After every stage of the ResNet, or only the last, its feature maps and the hours after the Transformer's
    first layer gate each other; then come the Transformer's other layers and the means. A joint head on both
    representations predicts; for the loss, each modality also has its own head.

    The backbone must be a ResNet. An all-zero image stands for an absent radiograph and passes through it
    (DrFuse, section 4.2); the loss of the CXR head leaves such stays out.

    Args:
        exchange_after: Stages of the ResNet after which the modalities gate each other: `every`, or `last`.
        ratio: How much narrower an exchange's joint layer is than twice its input.
    """

    @takes_sizes_of(EhrEncoder, CxrStages)
    def __init__(
        self,
        n_features: int,
        n_labels: int,
        sizes: EncoderSizes,
        exchange_after: Literal["every", "last"] = "every",
        ratio: int = 4,
    ) -> None:
        super().__init__()
        self.ehr_encoder = EhrEncoder(n_features, sizes)
        self.cxr_stages = CxrStages(sizes)
        channels, dim = self.cxr_stages.channels, sizes.dim
        self.first_exchange = 0 if exchange_after == "every" else len(channels) - 1
        self.exchanges = nn.ModuleList(Exchange(c, dim, ratio) for c in channels[self.first_exchange :])
        self.project = nn.Linear(channels[-1], dim)
        self.ehr_head = Head(dim, n_labels)
        self.cxr_head = Head(dim, n_labels)
        self.joint_head = Head(2 * dim, n_labels)

    def forward(self, batch: Batch) -> FusionOutput:
        """Return the joint head's logits (B, C) and the representations `ehr` (B, D) and `cxr` (M, D)."""
        hidden, padded = self.ehr_encoder.embed(batch.ehr, batch.n_hours)
        images = batch.cxr_or_zeros()
        with enough_for_batch_norm(images):
            maps = self.cxr_stages.embedder(images)
            for number, stage in enumerate(self.cxr_stages.stages):
                maps = stage(maps)
                if number >= self.first_exchange:
                    maps, hidden = self.exchanges[number - self.first_exchange](maps, hidden, padded)
        (ehr,) = self.ehr_encoder.finish(hidden, padded)
        cxr = self.project(maps.mean(dim=(2, 3)))
        ehr, cxr = at_least_float32(ehr), at_least_float32(cxr)
        logits = self.joint_head(torch.cat([ehr, cxr], dim=-1))
        return FusionOutput(logits, representations={"ehr": ehr, "cxr": cxr[batch.cxr_of]})

    def loss(self, output: FusionOutput, batch: Batch) -> dict[str, Tensor]:
        """Return `total` and its parts, the mean binary cross entropies of the `joint`, `ehr` and `cxr` head.

        That of `cxr` is over the stays with a radiograph, or 0 without any.
        """
        h = output.representations
        parts = {
            "joint": F.binary_cross_entropy_with_logits(output.logits, batch.labels),
            "ehr": F.binary_cross_entropy_with_logits(self.ehr_head(h["ehr"]), batch.labels),
            "cxr": mean_cross_entropy(self.cxr_head(h["cxr"]), batch.labels[batch.cxr_of]),
        }
        return {"total": torch.stack([*parts.values()]).sum(), **parts}

    def shared_encoders(self) -> SharedEncoders:
        """Return the encoders."""
        return SharedEncoders(ehr=[self.ehr_encoder])
