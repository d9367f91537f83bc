"""Checkpoints that are written in the background: whole, in order, and never failing in silence."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drfuse.errors import DamagedRunError
from drfuse.run import Run
from drfuse.sums import sha256
from drfuse.training.checkpoints import BackgroundWriter, load_best, load_checkpoint, load_last
from tests.builders import left_in


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
    with pytest.raises(OSError, match=r"new\.ckpt cannot be written \(unexpected .*; if the disk is full"):
        writer.teardown()
    assert left_in(tmp_path) == {"old.ckpt", "sums.json"}


STATE: dict[str, Any] = {"cohort": "", "state_dict": {}, "val_prauc": 0.5}
LAST: dict[str, Any] = {"callbacks": {}, "optimizer_states": [], "loops": {}}


def write_epochs(run: Run, n_epochs: int) -> None:
    """Write what epochs leave: their last checkpoints and that of the best, which is the latest."""
    writer = BackgroundWriter()
    for epoch in range(n_epochs):
        weights = {"weight": torch.full((500,), float(epoch))}
        state = STATE | {"epoch": epoch, "state_dict": weights, "val_prauc": epoch / 10}
        writer.save_checkpoint(state, run.checkpoints / f"best-epoch={epoch}.ckpt")
        writer.save_checkpoint(state | LAST, run.last_checkpoint)
        if epoch:
            writer.remove_checkpoint(run.checkpoints / f"best-epoch={epoch - 1}.ckpt")
    writer.teardown()


def flip_bit(path: Path, at: float, bit: int = 0) -> None:
    """Flip a bit of the byte at a share of a file's length."""
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1 << bit
    path.write_bytes(content)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    write_epochs(run, 3)
    return run


def test_two_last_checkpoints_and_their_sums_are_kept(run: Run) -> None:
    kept = {"last.ckpt", "previous.ckpt", "best-epoch=2.ckpt"}
    assert left_in(run.checkpoints) == kept | {"sums.json"}
    epochs = [load_checkpoint(run.checkpoints / name)["epoch"] for name in ("last.ckpt", "previous.ckpt")]
    assert epochs == [2, 1]
    sums = json.loads((run.checkpoints / "sums.json").read_text())
    assert sums["last.ckpt"][-1] == sha256(run.last_checkpoint)
    assert len(sums["last.ckpt"]) == 3


@pytest.mark.parametrize("name", ["last.ckpt", "best-epoch=2.ckpt"])
def test_every_flipped_bit_of_a_checkpoint_is_noticed(run: Run, name: str) -> None:
    rng = np.random.default_rng(0)
    path = run.checkpoints / name
    for at, bit in zip(rng.random(40), rng.integers(8, size=40), strict=True):
        flip_bit(path, at, bit)
        with pytest.raises(DamagedRunError, match=rf"{name} is damaged; start the run again"):
            load_checkpoint(path)
        flip_bit(path, at, bit)
    assert load_checkpoint(path)["epoch"] == 2


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before_it(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    flip_bit(run.last_checkpoint, 0.5)
    found = load_last(run)
    assert found is not None
    assert found["epoch"] == 1
    assert "last.ckpt is damaged; the run goes on from the checkpoint before it" in caplog.text
    assert left_in(run.checkpoints) == {"last.ckpt", "best-epoch=2.ckpt", "sums.json"}
    write_epochs(run, 3)
    assert load_checkpoint(run.last_checkpoint)["epoch"] == 2


def test_a_kill_between_two_renames_loses_one_epoch(run: Run) -> None:
    run.last_checkpoint.unlink()
    found = load_last(run)
    assert found is not None
    assert found["epoch"] == 1


def test_two_damaged_checkpoints_are_an_error(run: Run) -> None:
    for name in ("last.ckpt", "previous.ckpt"):
        flip_bit(run.checkpoints / name, 0.5)
    with pytest.raises(DamagedRunError, match=r"previous\.ckpt is damaged; start the run again"):
        load_last(run)
    assert load_last(Run(run.folder / "other")) is None


def test_a_damaged_best_checkpoint_is_taken_from_the_last_if_it_is_of_the_same_epoch(run: Run) -> None:
    flip_bit(run.checkpoints / "best-epoch=2.ckpt", 0.5)
    assert load_best(run)["state_dict"]["weight"][0] == 2
    flip_bit(run.last_checkpoint, 0.5)
    with pytest.raises(DamagedRunError, match=r"best-epoch=2\.ckpt is damaged"):
        load_best(run)


@pytest.mark.parametrize("content", ["", "[1]", '{"last.ckpt": 3}', "\x00", "["])
def test_damaged_sums_leave_no_checkpoint_to_trust(run: Run, content: str) -> None:
    (run.checkpoints / "sums.json").write_text(content)
    with pytest.raises(DamagedRunError, match="is damaged"):
        load_last(run)


def test_checkpoints_of_an_earlier_version_are_read(run: Run) -> None:
    (run.checkpoints / "sums.json").unlink()
    found = load_last(run)
    assert found is not None
    assert found["epoch"] == 2
    write_epochs(run, 1)
    assert load_checkpoint(run.checkpoints / "best-epoch=2.ckpt")["epoch"] == 2
