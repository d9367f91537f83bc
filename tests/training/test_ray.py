"""Runs on a Ray cluster of two machines, each a set of processes of this one."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from drfuse.data import Cohort
from drfuse.errors import InputError
from drfuse.training.matrix import RunSpec, specify, train_all
from drfuse.training.tune import tune
from tests.builders import TINY_BACKBONE
from tests.training.own_model import is_running, wait_until

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.extras

QUICK: dict[str, Any] = {"epochs": 2, "crop_size": 32, "accelerator": "cpu", "batch_size": 16}
OWN = "tests.training.own_model"


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Return a cluster of two machines with a core each; the driver computes as their processes do."""
    from ray.cluster_utils import Cluster

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.lost = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    torch.set_num_threads(n_threads)


def dying_runs(cohort: Path, folder: Path, notes: Path) -> list[RunSpec]:
    """Return three runs, one of which is lost in its second epoch."""
    opened = Cohort.open(cohort)
    n_steps = -(-opened.stays["split"].eq("train").sum() // QUICK["batch_size"])
    kinds: list[dict[str, Any]] = [
        {"class_path": f"{OWN}.LosesItsMachine", "init_args": {"folder": str(notes), "steps": n_steps + 1}},
        {"class_path": f"{OWN}.FirstHour"},
        {"class_path": f"{OWN}.FirstHour", "init_args": {"scale": 0.5}},
    ]
    return [specify(opened, folder, f"run {i}", kind, **QUICK) for i, kind in enumerate(kinds)]


def check_same(serial: list[RunSpec], spread: list[RunSpec]) -> None:
    for one, other in zip(serial, spread, strict=True):
        for name in ("model.safetensors", "predictions.parquet", "config.yaml"):
            assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes(), name


def test_a_run_whose_process_is_killed_goes_on(cluster: Any, small_cohort: Path, tmp_path: Path) -> None:
    specs = dying_runs(small_cohort, tmp_path / "ray", tmp_path)
    assert train_all(specs, ray=cluster.address) == []
    assert (tmp_path / "died").exists()
    assert len(list(specs[0].folder.glob("logs/version_*"))) == 2  # it was resumed, not started anew
    serial = dying_runs(small_cohort, tmp_path / "serial", tmp_path)
    assert train_all(serial) == []
    check_same(serial, specs)


def test_a_run_whose_machine_is_lost_goes_on_another(
    cluster: Any, small_cohort: Path, tmp_path: Path
) -> None:
    (tmp_path / "doomed").write_text(cluster.lost.node_id)
    lost = threading.Thread(target=partial(lose_machine, cluster, tmp_path / "died"))
    lost.start()
    opened = Cohort.open(small_cohort)
    n_steps = -(-opened.stays["split"].eq("train").sum() // QUICK["batch_size"])
    model = {
        "class_path": f"{OWN}.LosesItsMachine",
        "init_args": {"folder": str(tmp_path), "steps": int(n_steps) + 1},
    }
    specs = [specify(opened, tmp_path / "ray", "lost", model, **QUICK, seed=seed) for seed in (0, 1)]
    assert train_all(specs, ray=cluster.address) == []
    lost.join()
    assert sum(len(list(spec.folder.glob("logs/version_*"))) for spec in specs) == 3
    serial = [specify(opened, tmp_path / "serial", "here", model, **QUICK, seed=seed) for seed in (0, 1)]
    assert train_all(serial) == []
    check_same(serial, specs)


def lose_machine(cluster: Any, died: Path) -> None:
    deadline = time.monotonic() + 120
    while not died.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    cluster.remove_node(cluster.lost, allow_graceful=False)


def test_what_it_started_ends_with_a_command_that_is_killed(
    cluster: Any, small_cohort: Path, tmp_path: Path
) -> None:
    (pids := tmp_path / "pids").mkdir()
    model = {"class_path": f"{OWN}.Endless", "init_args": {"folder": str(pids)}}
    program = (
        "import sys; from pathlib import Path; from drfuse.data import Cohort\n"
        "from drfuse.training.matrix import specify, train_all\n"
        f"spec = specify(Cohort.open(Path(sys.argv[1])), Path(sys.argv[2]), 'endless', {model}, "
        f"**{QUICK | {'num_workers': 2}})\n"
        f"train_all([spec], ray={cluster.address!r})"
    )
    arguments = [sys.executable, "-c", program, str(small_cohort), str(tmp_path / "runs")]
    with subprocess.Popen(arguments, cwd=Path(__file__).parents[2]) as command:
        wait_until(lambda: any(pids.iterdir()) or command.poll() is not None)
        (worker,) = (int(path.name) for path in pids.iterdir())
        loaders = list(map(int, Path(f"/proc/{worker}/task/{worker}/children").read_text().split()))
        command.kill()
    assert len(loaders) >= 2
    wait_until(lambda: not any(map(is_running, (worker, *loaders))))


def test_a_search_finds_what_the_serial_one_finds(cluster: Any, small_cohort: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "alignment_weight": (0.0, 1.0),
        "orthogonality_weight": (0.1,),
        "auxiliary_weight": (0.5,),
        "lr": (1e-3,),
        "model_args": {"dim": 8, "heads": 2, "feedforward": 16, "cxr_backbone": TINY_BACKBONE},
        **QUICK,
    }
    tune(small_cohort, tmp_path / "ray", ray=cluster.address, **options)
    tune(small_cohort, tmp_path / "serial", **options)
    for name in ("trials.csv", "best.yaml"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "serial" / name).read_bytes()


def test_a_cluster_that_does_not_answer_is_named(small_cohort: Path, tmp_path: Path) -> None:
    model = {"class_path": f"{OWN}.FirstHour"}
    spec = specify(Cohort.open(small_cohort), tmp_path, "run", model, **QUICK)
    with pytest.raises(InputError, match=r"no Ray cluster answers at 127\.0\.0\.1:1"):
        train_all([spec], ray="127.0.0.1:1")
