"""The processes of a run: how many there are, on which devices, and who started them."""

import os
from typing import NamedTuple

import torch

from utils.errors import UsageError

RANKS = {  # by who sets them: the number of processes, then the variables that number one of them
    "a launcher": ("WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK"),
    "SLURM": ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS_PER_NODE"),
    "LSF": ("JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_LOCAL_RANK"),
}


class Devices(NamedTuple):
    """The devices of a run."""

    accelerator: str  # "gpu" or "cpu"
    per_node: int  # processes, each with a device
    nodes: int

    @property
    def processes(self) -> int:
        """Returns the processes of the whole run."""
        return self.per_node * self.nodes


def choose_devices(gpus: int, cpu_processes: int, nodes: int) -> Devices:
    """Returns the devices of a run: GPUs where there are any, else the CPU. Raises UsageError for too many GPUs."""
    if not gpus or not torch.cuda.is_available():
        if gpus:
            print("no GPU here: training on the CPU")
        return Devices("cpu", cpu_processes, nodes)
    if gpus > torch.cuda.device_count():
        raise UsageError(f"--gpus {gpus}: this machine has {torch.cuda.device_count()}")
    return Devices("gpu", gpus, nodes)


def forget_other_launchers(devices: Devices) -> None:
    """Removes from the environment what other programs left there about processes that this run does not have.

    A terminal that was opened in a job keeps that job's variables for ever, by which Lightning would take this
    process for another one's companion, and wait for it. Must come before Lightning is imported.
    Raises UsageError where SLURM started another number of processes than the flags ask for, or nothing starts those
    on other nodes: this process would wait for them.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun, which sets all of them
        return
    for who, (size, *ranks) in RANKS.items():
        there = [name for name in (size, *ranks) if name in os.environ]
        claimed = os.environ.get(size, str(devices.processes))
        if devices.processes > 1 and claimed == str(devices.processes):
            continue
        if devices.processes > 1 and who == "SLURM" and claimed != "1":
            raise UsageError(f"SLURM started {claimed} tasks, the flags ask for {devices.processes} processes: --gpus "
                             "and --nodes must say what srun was told; where that job is over, `unset SLURM_NTASKS`")
        strange = claimed != str(devices.processes) or any(os.environ.get(name, "0") != "0" for name in ranks[:3])
        values = " ".join(f"{name}={os.environ.pop(name)}" for name in there)
        if strange:
            print(f"left in the environment by {who} of something else, and ignored: {values}")
    if devices.nodes == 1 and not any(name in os.environ for name in ("LOCAL_RANK", "SLURM_NTASKS")):
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)
    launched = ("MASTER_ADDR", *(size for size, *_ in RANKS.values()))
    if devices.nodes > 1 and not any(name in os.environ for name in launched):
        raise UsageError(f"--nodes {devices.nodes}: nothing starts the other nodes: take torchrun or srun as in "
                         "docs/clusters.md, or set MASTER_ADDR and NODE_RANK")
