"""Joins the processes of a multi-host run."""

import os
import re
from typing import Any

import jax

from albert_jax.errors import UserError, message_lines

HEARTBEAT_SECONDS = 60  # After this time without a heartbeat a host counts as dead, and all others exit.


def join(coordinator: str = "", processes: int | None = None, process: int | None = None) -> None:
  """Joins the processes of a multi-host run, by the arguments or by the environment of the launcher, a pod or SLURM.

  Args:
    coordinator: HOST:PORT of process 0; '' to use the environment.
    processes: the number of processes.
    process: the index of this process, from 0.

  Raises:
    UserError: the arguments or the environment are invalid, or JAX finds no device.
  """
  options: dict[str, Any] = {"heartbeat_timeout_seconds": HEARTBEAT_SECONDS}
  if coordinator:
    options |= _cluster(coordinator, processes, process)
  elif processes is not None or process is not None:
    raise UserError("--processes and --process need --coordinator=HOST:PORT, where process 0 listens")
  elif not _is_launched():
    options = {}
  if options:
    try:
      jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
      raise UserError(
        f"the processes of this run could not find each other: {message_lines(error)[0][:200]}; start all of them, "
        "each with --coordinator=HOST:PORT --processes=N --process=I"
      ) from error
  try:
    jax.devices()
  except RuntimeError as error:
    raise UserError(
      f"JAX has no device: {message_lines(error)[0][:200]}; JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r}, "
      "expected '', cpu, cuda or tpu"
    ) from error


def _cluster(coordinator, processes, process) -> dict[str, Any]:
  match = re.fullmatch(r"[^:\s]+:(\d{1,5})|\[[0-9a-fA-F:.]+\]:(\d{1,5})", coordinator)
  if not match or not 0 < int(match[1] or match[2]) < 65536:
    raise UserError(f"--coordinator={coordinator} must be HOST:PORT, as --coordinator=10.0.0.1:8476")
  if processes is None or process is None:
    raise UserError("--coordinator needs --processes=N and --process=I")
  if not 0 <= process < processes:
    raise UserError(f"--process={process} must be from 0 to {processes - 1}, as there are --processes={processes}")
  return {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}


def _is_launched() -> bool:
  """Returns whether the environment has the settings of a multi-host run; JAX then reads them itself."""
  counts = {name: os.environ.get(name, "1") for name in ("ALBERT_JAX_PROCESSES", "SLURM_NTASKS")}
  for name, count in counts.items():
    if not count.strip().isdecimal():
      raise UserError(f"the environment variable {name}={count!r} must be the number of processes; unset it for one")
  if int(counts["SLURM_NTASKS"]) > 1 and int(counts["ALBERT_JAX_PROCESSES"]) <= 1 and "SLURM_PROCID" not in os.environ:
    raise UserError(
      f"SLURM_NTASKS={counts['SLURM_NTASKS']}, but srun did not start this process (SLURM_PROCID is not set); start it "
      "with: srun albert-jax train …, or unset SLURM_NTASKS for one process"
    )
  return "," in os.environ.get("TPU_WORKER_HOSTNAMES", "") or max(map(int, counts.values())) > 1
