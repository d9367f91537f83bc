"""A batch in, logits and named losses out: one file per published model, each a `FusionModel`.

Models know tensors and sizes only: no files, no optimizer, no task. They share `ehr_encoders`,
`cxr_encoders` and `losses`. To ship a new model, add a file with a `FusionModel` here: the command line and
the contract tests find it (`shipped_models`).
"""

from importlib import import_module
from inspect import isabstract
from pkgutil import iter_modules

from drfuse.models.additive_evidence import AdditiveEvidence
from drfuse.models.base import (
    MODALITIES,
    FittedModel,
    FittingData,
    FusionModel,
    FusionOutput,
    SharedEncoders,
    check_contract,
)
from drfuse.models.daft import DAFT
from drfuse.models.drfuse import DrFuse, logit_pool
from drfuse.models.late import LateFusion
from drfuse.models.linear import LogisticCxr, LogisticEhr, LogisticLate
from drfuse.models.medfuse import MedFuse
from drfuse.models.mmtm import MMTM
from drfuse.models.sizes import EncoderSizes, takes_sizes_of
from drfuse.models.unimodal import CxrResNet, EhrLstm, EhrTransformer

__all__ = [
    "DAFT",
    "MMTM",
    "MODALITIES",
    "AdditiveEvidence",
    "CxrResNet",
    "DrFuse",
    "EhrLstm",
    "EhrTransformer",
    "EncoderSizes",
    "FittedModel",
    "FittingData",
    "FusionModel",
    "FusionOutput",
    "LateFusion",
    "LogisticCxr",
    "LogisticEhr",
    "LogisticLate",
    "MedFuse",
    "SharedEncoders",
    "check_contract",
    "logit_pool",
    "shipped_models",
    "takes_sizes_of",
]


def shipped_models() -> dict[str, type[FusionModel]]:
    """Return the public model classes of this package by name, sorted."""
    models: dict[str, type[FusionModel]] = {}
    for file in iter_modules(__path__, f"{__name__}."):
        for name, kind in vars(import_module(file.name)).items():
            is_model = isinstance(kind, type) and issubclass(kind, FusionModel) and not isabstract(kind)
            if is_model and kind.__module__ == file.name and not name.startswith("_"):
                models[name] = kind
    return dict(sorted(models.items()))


shipped_models()  # imports every file: `drfuse train --model NAME` finds only imported classes
