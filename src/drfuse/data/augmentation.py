"""Scales, crops and augments stored radiographs, a whole batch at a time, on the device."""

import torch
from kornia import augmentation
from torch import Tensor, nn

# Published code uses ImageNet's statistics; these are their means over the three channels, for grey images.
_MEAN = (0.485 + 0.456 + 0.406) / 3
_STD = (0.229 + 0.224 + 0.225) / 3


class CxrTransform(nn.Module):
    """Standardizes and crops radiographs; in training mode it augments them first.

    The published augmentation is a horizontal flip, then rotation by up to 45 degrees, scaling by 0.85 to
    1.15 and translation by up to 0.15 of the side, with black around the image. With `shifts` it is a
    translation by up to a sixteenth of the side, which repeats the edge pixels.

    Args:
        crop_size: Side of the centre crop, in pixels.
        shifts: Only shift, for radiographs in which the chest is always upright and centred.
    """

    def __init__(self, crop_size: int, shifts: bool = False) -> None:
        super().__init__()
        self.crop_size = crop_size
        self.augment = (
            augmentation.RandomAffine(0.0, translate=(1 / 16, 1 / 16), p=1.0, padding_mode="border")
            if shifts
            else nn.Sequential(
                augmentation.RandomHorizontalFlip(p=0.5),
                augmentation.RandomAffine(degrees=45.0, translate=(0.15, 0.15), scale=(0.85, 1.15), p=1.0),
            )
        )

    @torch.no_grad()
    def forward(self, cxr: Tensor) -> Tensor:
        """Return float32 (M, 1, crop, crop) of uint8 (M, 1, size, size); M may be 0."""
        if cxr.shape[-1] == 0:  # a batch without pixels, for frozen backbones
            return cxr.float()
        if len(cxr) == 0:
            return cxr.new_zeros((0, 1, self.crop_size, self.crop_size), dtype=torch.float32)
        grey = cxr.float() / 255
        if self.training:
            grey = self.augment(grey)
        margin = (cxr.shape[-1] - self.crop_size) // 2
        inside = slice(margin, margin + self.crop_size)
        return (grey[..., inside, inside] - _MEAN) / _STD
