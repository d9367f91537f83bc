"""A batch in, logits and named losses out: one file per published model, all under `FusionModel`.

Models know tensors and sizes only: no files, no optimizer, no task. `encoders` and `losses` are shared.
"""

from drfuse.models.base import (
    MODALITIES,
    FittedModel,
    FittingData,
    FusionModel,
    FusionOutput,
    check_contract,
)
from drfuse.models.daft import DAFT
from drfuse.models.drfuse import DrFuse, logit_pool
from drfuse.models.late import LateFusion
from drfuse.models.linear import LogisticCxr, LogisticEhr, LogisticLate
from drfuse.models.medfuse import MedFuse
from drfuse.models.mmtm import MMTM
from drfuse.models.unimodal import CxrResNet, EhrLstm, EhrTransformer

__all__ = [
    "DAFT",
    "MMTM",
    "MODALITIES",
    "CxrResNet",
    "DrFuse",
    "EhrLstm",
    "EhrTransformer",
    "FittedModel",
    "FittingData",
    "FusionModel",
    "FusionOutput",
    "LateFusion",
    "LogisticCxr",
    "LogisticEhr",
    "LogisticLate",
    "MedFuse",
    "check_contract",
    "logit_pool",
]
