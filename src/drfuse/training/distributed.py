"""The processes that train one run together: their ranks, and how they start, talk and end."""

import atexit
import logging
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self, TypeVar, cast

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch.distributed.rendezvous import rendezvous

from drfuse.errors import InputError
from drfuse.imports import import_here, modules_from_here
from drfuse.logs import Terminal, log_to
from drfuse.processes import end_with_parent
from drfuse.training.peers import (
    SECONDS_TO_MEET,
    PeerEndedError,
    ends_with_peers,
    is_lost_connection,
    watch_peers,
)

_TIMEOUT = timedelta(hours=1)  # the first process may verify a large cohort while the others wait
_SECONDS_TO_CLEAN_UP, _SECONDS_TO_FAIL = 30.0, 2.0

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that train a run together, one per device.

    Attributes:
        rank: This process, from 0.
        size: How many processes there are.
        devices: How many processes each machine has.
    """

    rank: int = 0
    size: int = 1
    devices: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes everything but the others' predictions."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether this is the only process."""
        return self.size == 1

    @classmethod
    def of_environment(cls, devices: int | None, nodes: int | None) -> Self | None:
        """Return the rank that torchrun, srun or `start_ranks` gave this process; None without one of them.

        Args:
            devices: Requested devices per machine.
            nodes: Requested machines. One device of one machine always means a process alone (None).

        Raises:
            InputError: If the processes that run are not those requested.
        """
        if (devices, nodes) == (1, 1):
            return None
        if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "RANK" not in os.environ:
            _set_torchrun_variables()
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            if (nodes or 1) > 1:
                n_devices = devices or 1
                raise InputError(
                    f"--nodes {nodes} needs one process per device; start them on each machine with "
                    f"`torchrun --nnodes {nodes} --nproc-per-node {n_devices} --rdzv-backend c10d "
                    "--rdzv-endpoint HOST:29500 -m drfuse train ...`, or, under SLURM, with "
                    f"`srun --nodes {nodes} --ntasks-per-node {n_devices} drfuse train ...`"
                )
            return None
        size, local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        n_machines = size // local
        if (devices or local, nodes or n_machines, size) != (local, n_machines, local * n_machines):
            raise InputError(
                f"{size} processes were started, {local} of them on this machine, which does not match "
                "--devices and --nodes; leave these options out, or start one process per device"
            )
        return cls(int(os.environ["RANK"]), size, local)

    def join(self) -> None:
        """Connect this process with the others, until it ends.

        Raises:
            InputError: If one of them is missing.
        """
        # tells Lightning's loggers who writes; under srun, a process that trains alone does as well
        cast(Any, rank_zero_only).rank = self.rank
        if self.is_alone:
            return
        try:
            if not dist.is_initialized():  # by the user's own script, or by an earlier run
                self._meet()
            watch_peers(self.rank, self.size)
        except RuntimeError as error:
            if not is_lost_connection(error):
                raise
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"the {self.size} processes of this training did not meet within {SECONDS_TO_MEET} seconds "
                f"({reason}): one has failed, and its message says why, or does not reach "
                f"{os.environ.get('MASTER_ADDR')}; start all of them again"
            ) from None

    def _meet(self) -> None:
        """Connect this process with the others; what they do later may take longer than that."""
        soon = timedelta(seconds=SECONDS_TO_MEET)
        store, rank, size = next(rendezvous("env://", timeout=soon))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=soon)
        dist.distributed_c10d._set_pg_timeout(_TIMEOUT)
        atexit.register(dist.destroy_process_group)

    def placement(self) -> dict[str, Any]:
        """Return a Lightning trainer's options about devices and processes."""
        if self.is_alone:
            return {"devices": 1, "plugins": [LightningEnvironment()]}  # even under torchrun or srun
        return {
            "devices": self.devices,
            "num_nodes": self.size // self.devices,
            "plugins": [TorchElasticEnvironment()],
            # a part without radiographs, or a loss without one of its terms, leaves parameters unused
            "strategy": DDPStrategy(find_unused_parameters=True),
            "use_distributed_sampler": False,
        }

    @contextmanager
    def abort_peers_on_error(self) -> Iterator[None]:
        """If the first process fails in this block, end the others, which wait in `share`."""
        try:
            yield
        except BaseException:
            if self.is_first and not self.is_alone:
                dist.broadcast_object_list([None], src=0)
            raise

    def share(self, value: _Result | None = None) -> _Result:
        """Return the first process's value, in every process.

        Raises:
            SystemExit: In the others, if the first one failed; it reports why.
        """
        shared = [None if value is None else (value,)]
        if not self.is_alone:
            dist.broadcast_object_list(shared, src=0)
        if shared[0] is None:
            raise SystemExit(2)
        return shared[0][0]

    def gather(self, value: _Result) -> list[_Result]:
        """Return the values of all processes in the first process, and an empty list in the others."""
        if self.is_alone:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(value, values)
        return values or []


def _set_torchrun_variables() -> None:
    """Set the environment variables of torchrun from those of a SLURM step."""
    slurm = SLURMEnvironment()
    size, nodes = int(os.environ["SLURM_STEP_NUM_TASKS"]), int(os.environ["SLURM_STEP_NUM_NODES"])
    os.environ |= {
        "MASTER_ADDR": slurm.main_address,
        "MASTER_PORT": str(slurm.main_port),
        "RANK": os.environ["SLURM_PROCID"],
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "GROUP_RANK": os.environ["SLURM_NODEID"],
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size // nodes),
    }


def check_devices(devices: int, accelerator: str) -> None:
    """Raise InputError if this machine has fewer GPUs, or fewer CPU cores, than `devices`."""
    gpus = torch.cuda.device_count()
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus > 0)
    available, what = (gpus, "GPUs") if on_gpu else (os.cpu_count() or 1, "CPU cores")
    if devices > available:
        raise InputError(
            f"--devices is {devices}, but this machine has {available} {what}; choose fewer, or another "
            "--accelerator"
        )


def start_ranks(function: Callable[..., _Result], arguments: Mapping[str, Any], size: int) -> _Result:
    """Return a function's result in the first of `size` new processes, which all call it.

    The processes end with this one, however it ends.

    Raises:
        InputError: If the arguments cannot be pickled, or a process died.
        Exception: What the function raised in the first process that failed.
    """
    try:
        pickle.dumps((function, dict(arguments)))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(
            f"--devices {size} starts new processes, and the model or a callback cannot be sent to them "
            f"({error}); define it in a module, or start your script with torchrun"
        ) from error
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns when every parameter is used
    pids = context.Array("i", size)
    n_threads = max(1, torch.get_num_threads() // size)
    level = logging.getLogger("drfuse").getEffectiveLevel()
    settings = (pids, store.port, n_threads, level, modules_from_here())
    with ProcessPoolExecutor(size, context, _begin_rank, settings) as pool:
        ranks = [pool.submit(_run, function, dict(arguments)) for _ in range(size)]
        try:
            return _result_of_first(ranks)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and pids[0]:
                os.kill(pids[0], signal.SIGINT)  # lets it clean up the run's folder
                wait(ranks, _SECONDS_TO_CLEAN_UP, FIRST_EXCEPTION)
            else:  # other processes may be about to fail as well, or wait for the one that failed
                wait(ranks, _SECONDS_TO_FAIL)
            for pid in filter(None, pids[:]):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise


def _begin_rank(pids: Any, port: int, n_threads: int, level: int, modules: Mapping[str, str]) -> None:
    """Give this process the next free rank."""
    with pids.get_lock():
        rank = pids[:].index(0)
        pids[rank] = os.getpid()
    os.setpgrp()  # so that the terminal's signals reach only the parent
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the parent has made the store
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(len(pids)),
        "LOCAL_WORLD_SIZE": str(len(pids)),
    }
    torch.set_num_threads(n_threads)
    log_to(Terminal(stderr=True), level if rank == 0 else logging.ERROR)
    import_here(modules)
    end_with_parent()


def _run(function: Callable[..., _Result], arguments: dict[str, Any]) -> tuple[int, _Result]:
    with ends_with_peers():
        return int(os.environ["RANK"]), function(**arguments)


def _result_of_first(ranks: Sequence[Future[tuple[int, _Result]]]) -> _Result:
    """Return rank 0's result once all processes have ended.

    Raises:
        InputError: If a process died.
        Exception: The first that a process raised.
    """
    results: dict[int, _Result] = {}
    ended: PeerEndedError | None = None
    running = set(ranks)
    while running:
        # wake every second: a signal that another thread receives is only handled when this one runs
        done, running = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
        for rank in done:
            with suppress(SystemExit):  # the first process reports why
                try:
                    number, result = rank.result()
                except PeerEndedError as error:  # the other process knows more
                    ended = error
                    continue
                except BrokenProcessPool as error:
                    raise InputError(
                        "a process that trained the run died, perhaps because memory ran out; run the same "
                        "command again to resume"
                    ) from error
                results[number] = result
    if ended is not None:
        raise ended
    return results[0]
