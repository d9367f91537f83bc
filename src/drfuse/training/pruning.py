"""Tells a search how each epoch of a trial went."""

import lightning as L
import optuna

from drfuse.training.metrics import MONITORED


class ReportToTrial(L.Callback):
    """Reports each epoch to a trial, and raises TrialPruned if the trial has little promise."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Report the validation PRAUC of the epoch."""
        self.trial.report(trainer.callback_metrics[MONITORED["monitor"]].item(), trainer.current_epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned
