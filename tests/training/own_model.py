"""A model as a user would write one: a class under the contract, in a module of its own."""

from torch import Tensor, nn
from torch.nn import functional as F

from drfuse.data import Batch
from drfuse.models import FusionModel, FusionOutput


class FirstHour(FusionModel):
    """A linear layer on the features of a stay's first hour; it has no modality weights."""

    def __init__(self, n_features: int, n_labels: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.head = nn.Linear(n_features, n_labels)

    def forward(self, batch: Batch) -> FusionOutput:
        return FusionOutput(self.head(batch.ehr[:, 0]) * self.scale)

    def loss(self, output: FusionOutput, batch: Batch) -> dict[str, Tensor]:
        return {"total": F.binary_cross_entropy_with_logits(output.logits, batch.labels)}
