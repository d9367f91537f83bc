"""Models as a user would write them, in a module of their own, and helpers of tests that stop a training."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drfuse.data import Batch
from drfuse.models import FusionModel, FusionOutput
from drfuse.training import FusionTraining


def interrupt_second(task: FusionTraining) -> None:
    """Stop a training at the start of its second epoch; stands for `FusionTraining.on_train_epoch_start`."""
    if task.current_epoch == 1:
        raise KeyboardInterrupt
    torch.manual_seed(task.options.seed * 1_000_003)


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for a condition, at most ten minutes: other processes may keep the machine busy."""
    deadline = time.monotonic() + 600
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Return whether a process exists and has not ended."""
    state = Path(f"/proc/{pid}/stat")
    try:
        return state.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


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


class Killed(FirstHour):
    """A model whose process dies, as one does that takes too much memory."""

    def forward(self, batch: Batch) -> FusionOutput:  # noqa: ARG002
        os._exit(9)


class Broken(FirstHour):
    """A model that does not fit its own tensors."""

    def forward(self, batch: Batch) -> FusionOutput:
        return FusionOutput(self.head(batch.ehr[:, 0, :3]))


class Endless(FirstHour):
    """A model that never ends its first training step; when that begins, a file appears in a folder."""

    def __init__(self, n_features: int, n_labels: int, folder: str) -> None:
        super().__init__(n_features, n_labels)
        self.folder = Path(folder)

    def forward(self, batch: Batch) -> FusionOutput:
        if self.training:
            (self.folder / str(os.getpid())).touch()
            time.sleep(600)
        return super().forward(batch)


class LosesItsMachine(FirstHour):
    """A model whose process is killed in its second epoch, once, or waits there for its machine to be lost.

    Args:
        n_features: F.
        n_labels: C.
        folder: Where it notes that it has begun to die; a file `doomed` there has the Ray node that is lost.
        steps: Of training, before it dies.
    """

    def __init__(self, n_features: int, n_labels: int, folder: str, steps: int) -> None:
        super().__init__(n_features, n_labels)
        self.folder, self.steps, self.taken = Path(folder), steps, 0

    def forward(self, batch: Batch) -> FusionOutput:
        self.taken += self.training
        if self.taken == self.steps and not (self.folder / "died").exists():
            doomed = self.folder / "doomed"
            if not doomed.exists():
                (self.folder / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            import ray

            if ray.get_runtime_context().get_node_id() == doomed.read_text():
                (self.folder / "died").touch()
                time.sleep(600)
        return super().forward(batch)
