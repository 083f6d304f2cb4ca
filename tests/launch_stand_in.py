"""Stands in for gcloud and for SLURM's commands in tests/test_launch.py: records each call, plays a small world, and
fails where it is told to. Put on PATH under the names of the real ones; $WORLD is a folder:

  calls       a JSON line for each call: {"name", "argv", "env"}
  world.json  {"queue": state of the request, "coming": states it will have, "later": and those of the next request,
               "node": state of the TPU, "workers": their number,
               "events": [{"on": regex of the call, "skip": n, "times": n, "do": what, …}], "job": in SLURM's queue,
               "srun_waits": until it gets SIGTERM}
  homes/N/    the home of worker N, in which commands given by ssh really run
  bin/        programs of the workers

What an event does: fail (with "code" and "stderr"), preempt, down ("worker", that does not answer), release (remove the
file "path"); and "release" beside another.
"""

import contextlib
import fcntl
import json
import os
import re
import signal
import sys

FOLDER = os.environ["WORLD"]
SHOWN = ("JAX_LOCAL_DEVICE_IDS",)


class Refused(Exception):
  def __init__(self, code, text):
    super().__init__(text)
    self.code = code


@contextlib.contextmanager
def world():
  """The world, to look at and to change; one call at a time."""
  with open(f"{FOLDER}/lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with open(f"{FOLDER}/world.json") as file:
      value = json.load(file)
    try:
      yield value
    finally:
      with open(f"{FOLDER}/world.json", "w") as file:
        json.dump(value, file)


def events(value, call):
  """Applies the events that are due.

  Returns:
    the workers that do not answer.
  """
  down = set()
  for event in value["events"]:
    if not re.search(event["on"], call, re.DOTALL):
      continue
    if event.get("skip", 0):
      event["skip"] -= 1
    elif event.get("times", 1):
      event["times"] = event.get("times", 1) - 1
      if event["do"] == "fail":
        raise Refused(event["code"], event["stderr"])
      if event["do"] == "preempt":
        end_workers()
        value.update(queue="SUSPENDED", node="PREEMPTED")
      if event["do"] == "down":
        down.add(event["worker"])
      if "release" in event:
        os.remove(event["release"])
  return down


def end_workers():
  import pathlib
  import shutil

  for group in pathlib.Path(FOLDER, "homes").glob("*/albert_jax/run/group"):
    with contextlib.suppress(ProcessLookupError, ValueError):
      os.killpg(int(group.read_text()), signal.SIGKILL)
  shutil.rmtree(f"{FOLDER}/homes", ignore_errors=True)


def gcloud(argv, call):
  assert argv[:2] == ["compute", "tpus"], argv
  group, verb, *rest = argv[2:]
  flags = dict(arg.split("=", 1) if "=" in arg else (arg, "") for arg in rest if arg.startswith("--"))
  names = [arg for arg in rest if not arg.startswith("--")]
  assert "--zone" in flags and "--quiet" in flags, argv
  missing = Refused(1, f"ERROR: (gcloud.compute.tpus.{group}.{verb}) NOT_FOUND: Resource {names} was not found")
  with world() as state:
    down = events(state, call)
    match group, verb:
      case "queued-resources", "create":
        if state["queue"]:
          raise Refused(1, "ERROR: (gcloud.compute.tpus.queued-resources.create) ALREADY_EXISTS: it already exists")
        assert {"--node-id", "--accelerator-type", "--runtime-version"} <= set(flags)
        state["queue"] = state["coming"][0]
        return 0
      case "queued-resources", "describe":
        if not state["queue"]:
          raise missing
        print(state["queue"])
        if state["queue"] in state["coming"][:-1]:
          state["queue"] = state["coming"][state["coming"].index(state["queue"]) + 1]
        if state["queue"] == "ACTIVE" and not state["node"]:
          state["node"] = "READY"
          for i in range(state["workers"]):
            os.makedirs(f"{FOLDER}/homes/{i}")
        return 0
      case "queued-resources", "delete":
        assert "--force" in flags
        if not state["queue"]:
          raise missing
        end_workers()
        state.update(queue=None, node=None, coming=state["later"] or state["coming"], later=None)
        return 0
      case "tpu-vm", "describe":
        if not state["node"]:
          raise missing
        print(f"{state['node']}\t{state['workers']}")
        return 0
    assert group == "tpu-vm" and verb in ("ssh", "scp"), argv
    if state["node"] != "READY":
      raise Refused(1, f"ERROR: (gcloud.compute.tpus.tpu-vm.{verb}) the TPU is in state {state['node']}")
    every = range(state["workers"]) if flags["--worker"] == "all" else [int(flags["--worker"])]
  import shutil  # Here, because most calls need neither, and tests make hundreds.
  import subprocess

  codes = []
  running = []
  for i in every:
    worker_folder = f"{FOLDER}/homes/{i}"
    if i in down:
      print(f"ssh: connect to host worker {i} port 22: Connection timed out", file=sys.stderr)
      codes.append(255)
    elif verb == "scp":
      source, (_, target) = names[0], names[1].split(":")
      shutil.copy(source, f"{worker_folder}/{target}")
    else:
      env = {"HOME": worker_folder, "PATH": f"{FOLDER}/bin:/usr/bin:/bin", "HOST": f"t1v-n-abc-w-{i}", "WORLD": FOLDER}
      # gcloud splits the command at blanks, and ssh joins it again.
      command = " ".join(flags["--command"].split(" "))
      running.append(subprocess.Popen(["bash", "-c", command], env=env, cwd=worker_folder))
  return next((code for code in [*codes, *(process.wait() for process in running)] if code), 0)


def sbatch(argv, call):
  with world() as state:
    events(state, call)
    state["job"] = "7 PENDING"
  print(7)


def squeue(argv, call):
  with world() as state:
    events(state, call)
    if state["job"]:
      print(state["job"])


def srun(argv, call):
  with world() as state:
    events(state, call)
    waits = state["srun_waits"]
  if waits:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with open(f"{FOLDER}/new", "w") as file:
      file.write(str(os.getpid()))
    os.rename(f"{FOLDER}/new", f"{FOLDER}/srun_pid")
    signal.pause()


def scancel(argv, call):
  with world() as state:
    events(state, call)
  if os.path.exists(f"{FOLDER}/srun_pid"):
    with open(f"{FOLDER}/srun_pid") as file:
      os.kill(int(file.read()), signal.SIGTERM)


def scontrol(argv, call):
  with world() as state:
    events(state, call)


def main():
  name, argv = os.path.basename(sys.argv[0]), sys.argv[1:]
  with open(f"{FOLDER}/calls", "a") as file:
    env = {key: os.environ[key] for key in SHOWN if key in os.environ}
    file.write(json.dumps({"name": name, "argv": argv, "env": env}) + "\n")
  try:
    return globals()[name](argv, f"{name} {' '.join(argv)}")
  except Refused as refused:
    print(refused, file=sys.stderr)
    return refused.code


if __name__ == "__main__":
  sys.exit(main())
