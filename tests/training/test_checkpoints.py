"""Checkpoints that are written in the background: whole, in order, and never failing in silence."""

import time
from pathlib import Path

import pytest
import torch

from drfuse.training.checkpoints import BackgroundWriter


def test_a_checkpoint_holds_the_values_of_its_time(tmp_path: Path) -> None:
    writer, weight = BackgroundWriter(), torch.zeros(3)
    for epoch in range(3):
        writer.save_checkpoint({"weight": weight}, tmp_path / f"{epoch}.ckpt")
        weight += 1
    writer.teardown()
    stored = [torch.load(tmp_path / f"{epoch}.ckpt")["weight"][0].item() for epoch in range(3)]
    assert stored == [0, 1, 2]


def test_a_replaced_checkpoint_stays_if_its_successor_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = BackgroundWriter()
    writer.save_checkpoint({}, tmp_path / "old.ckpt")
    writer.teardown()

    def full(*_: object) -> None:
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    writer._pool.submit(time.sleep, 0.2)  # so that the deletion is asked for before the writing fails
    writer.save_checkpoint({}, tmp_path / "new.ckpt")
    writer.remove_checkpoint(tmp_path / "old.ckpt")
    with pytest.raises(OSError, match=r"new\.ckpt cannot be written: unexpected pos"):
        writer.teardown()
    assert [path.name for path in tmp_path.iterdir()] == ["old.ckpt"]
