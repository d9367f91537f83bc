"""A batch in, logits and named losses out: one file per published model, all under `FusionModel`.

Models know tensors and sizes only: no files, no optimizer, no task. `encoders` and `losses` are shared.
"""

from drfuse.models.base import MODALITIES, FusionModel, FusionOutput, check_contract
from drfuse.models.drfuse import DrFuse, logit_pool
from drfuse.models.unimodal import CxrResNet, EhrTransformer

__all__ = [
    "MODALITIES",
    "CxrResNet",
    "DrFuse",
    "EhrTransformer",
    "FusionModel",
    "FusionOutput",
    "check_contract",
    "logit_pool",
]
