"""launch/tpu.sh and launch/gpu.sh against a stand-in for gcloud and SLURM that records, plays a TPU, and fails."""

import contextlib
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TPU = ["--name=t", "--zone=us-z1-b", "--accelerator=v5litepod-16", "--spot"]
TRAINING = ["--config=configs/pretrain.py:base"]
QUOTA = {
  "do": "fail", "on": "queued-resources create", "code": 1,
  "stderr": "ERROR: (gcloud.compute.tpus.queued-resources.create) RESOURCE_EXHAUSTED: Quota limit exceeded",
}  # fmt: skip

# The workers' `albert-jax train`: counts to --steps in a folder that all share, going on from there.
ALBERT_JAX = r"""#!/usr/bin/env bash
for word; do
  case $word in --workdir=*) workdir=${word#*=} ;; --steps=*) steps=${word#*=} ;; esac
done
mkdir -p "$workdir"
step=$(cat "$workdir/step" 2>/dev/null || echo 0)
trap 'echo "Stopped at step $step by SIGTERM; saved."; exit 0' TERM
echo "$HOST $step $(cat version)" >>"$workdir/starts"
printf '%s\0' "$@" >"$workdir/argv"
echo "${WANDB_API_KEY:-}" >"$workdir/key"
echo "$ALBERT_JAX_PROCESSES" >"$workdir/processes"
if [[ -f $workdir/fail_$HOST ]]; then
  read -r code times <"$workdir/fail_$HOST"
  if ((times > 1)); then echo "$code $((times - 1))" >"$workdir/fail_$HOST"; else rm "$workdir/fail_$HOST"; fi
  echo "albert-jax train: it went wrong" >&2
  exit "$code"
fi
while ((step < ${steps:-5})); do
  sleep 0.01
  if [[ -f $workdir/hold ]] && ((step >= 3)); then continue; fi
  step=$((step + 1))
  if [[ $HOST == *-w-0 ]]; then echo "$step" >"$workdir/new" && mv "$workdir/new" "$workdir/step"; fi
done
"""


class World:
  """A checkout with the scripts, the stand-ins, and what they know; see launch_stand_in.py."""

  def __init__(self, folder):
    self.folder, self.checkout, self.run_folder = folder, folder / "a checkout", folder / "the run"
    self.hold = self.run_folder / "hold"  # The training waits at step 3 while this is there.

  def build(self):
    folder = self.folder
    for name in ("bin", "stand_ins", "a checkout/launch"):
      (folder / name).mkdir(parents=True)
    for name in ("gcloud", "sbatch", "srun", "squeue", "scancel", "scontrol"):
      text = (ROOT / "tests" / "launch_stand_in.py").read_text()
      self.program(f"stand_ins/{name}", f"#!{sys.executable} -IS\n{text}")
    self.program("bin/hostname", '#!/bin/sh\necho "$HOST"\n')
    self.program("bin/uv", "#!/bin/sh\necho /usr/bin/python3\n")
    for name in ("tpu.sh", "gpu.sh"):
      shutil.copy(ROOT / "launch" / name, self.checkout / "launch")
    self.program("a checkout/albert-jax", ALBERT_JAX)
    (self.checkout / "launch" / "venv.sh").write_text(
      'mkdir -p .venv/bin\ncp albert-jax .venv/bin\necho "$HOST" "${EXTRAS:-}" >>"$WORLD/installed"\n'
    )
    (self.checkout / "version").write_text("1\n")
    (self.checkout / ".gitignore").write_text(".venv\nruns/\n*.secret\n")
    (self.checkout / "keys.secret").write_text("password")
    subprocess.run(["git", "init", "--quiet", str(self.checkout)], check=True)
    self.set(
      queue=None, coming=["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], later=None, node=None, workers=2,
      events=[], job=None, srun_waits=False,
    )  # fmt: skip
    (folder / "calls").touch()
    (folder / "installed").touch()

  def program(self, name, text):
    path = self.folder / name
    path.write_text(text)
    path.chmod(0o755)

  def set(self, **values):
    path = self.folder / "world.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**old, **values}))

  def get(self, key):
    return json.loads((self.folder / "world.json").read_text())[key]

  def start(self, script, *args, **env):
    environment = {
      "PATH": f"{self.folder / 'stand_ins'}:{pathlib.Path(sys.executable).parent}:/usr/bin:/bin",
      "HOME": str(self.folder), "WORLD": str(self.folder), "TMPDIR": str(self.folder),
      **{f"ALBERT_{kind}_{name}": "0" for kind in ("TPU", "GPU") for name in ("POLL", "BACKOFF")}, **env,
    }  # fmt: skip
    return subprocess.Popen(
      [self.checkout / "launch" / script, *args],
      env=environment, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip

  def run(self, script, *args, expect=0, **env):
    """Runs a script to its end.

    Returns:
      what it wrote, stderr first.
    """
    process = self.start(script, *args, **env)
    out, err = process.communicate(timeout=300)
    assert process.returncode == expect, err + out
    return err + out

  def tpu(self, command, *args, training=None, expect=0, **env):
    after = [] if training is None else ["--", *TRAINING, f"--workdir={self.run_folder}", *training]
    return self.run("tpu.sh", command, *TPU, *args, *after, expect=expect, **env)

  def calls(self, pattern=""):
    lines = (json.loads(line) for line in (self.folder / "calls").read_text().splitlines())
    return [line for line in lines if re.search(pattern, " ".join([line["name"], *line["argv"]]))]

  def starts(self):
    """Returns (host, from step, version of the checkout) of each start of the training."""
    lines = (self.run_folder / "starts").read_text().splitlines()
    return [(host, int(step), version) for host, step, version in map(str.split, lines)]

  def wait_until(self, what):
    for _ in range(10_000):
      if what():
        return
      time.sleep(0.01)
    pytest.fail("it did not happen")

  def end(self):
    for path in self.folder.glob("homes/*/albert_jax/run/group"):
      with contextlib.suppress(ProcessLookupError):
        os.killpg(int(path.read_text()), signal.SIGKILL)


@pytest.fixture(scope="module")
def still(tmp_path_factory):
  """Returns a world for tests that change nothing."""
  world = World(tmp_path_factory.mktemp("still"))
  world.build()
  return world


@pytest.fixture(scope="module")
def set_up(tmp_path_factory):
  """Returns the TPU is there, with two workers on which everything is installed."""
  world = World(tmp_path_factory.mktemp("set_up") / "world")
  world.build()
  for i in range(2):
    (world.folder / "homes" / str(i)).mkdir(parents=True)
  world.set(queue="ACTIVE", node="READY")
  world.tpu("setup")
  return world


@pytest.fixture
def world(tmp_path):
  """Nothing is there yet."""
  stand_in = World(tmp_path / "world")
  stand_in.build()
  stand_in.run_folder.mkdir()
  yield stand_in
  stand_in.end()


@pytest.fixture
def ready(set_up, tmp_path):
  """Returns a copy of `set_up`."""
  shutil.copytree(set_up.folder, tmp_path / "world")
  stand_in = World(tmp_path / "world")
  stand_in.run_folder.mkdir()
  yield stand_in
  stand_in.end()


# --- Both ---


@pytest.mark.parametrize("script", ["tpu.sh", "gpu.sh", "speedrun.sh"])
def test_shellcheck_has_nothing_to_say(script):
  program = shutil.which("shellcheck", path=f"{os.environ['PATH']}:{pathlib.Path(sys.executable).parent}")
  if program is None:
    pytest.skip("needs shellcheck")
  result = subprocess.run([program, "-x", f"launch/{script}"], cwd=ROOT, capture_output=True, text=True)
  assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", ["tpu.sh", "gpu.sh"])
def test_help_shows_an_example_and_every_flag(still, script):
  text = still.run(script, "--help")
  assert f"launch/{script} train" in text
  source = (ROOT / "launch" / script).read_text()
  flags = re.findall(r"^ +(--[a-z_]+)(?:=\*)?\) [A-Z]", source, re.M)
  assert len(flags) > 10
  assert [flag for flag in flags if flag not in text] == []
  assert still.run(script, "train", "--help") == text


@pytest.mark.parametrize(
  ("script", "args", "says"),
  [
    ("tpu.sh", [], "no command"),
    ("tpu.sh", ["fly"], "no command 'fly'"),
    ("tpu.sh", ["status", "--zone=z"], "--name=''"),
    ("tpu.sh", ["status", "--name=It's", "--zone=z"], "--name='It's'"),
    ("tpu.sh", ["status", "--name=t"], "--zone=''"),
    ("tpu.sh", ["status", "--name=t", "--zone", "z"], "--flag=VALUE"),
    ("tpu.sh", ["create", "--name=t", "--zone=z"], "--accelerator"),
    ("tpu.sh", ["create", "--name=t", "--zone=z", "--accelerator=v5e-8"], "--runtime"),
    ("tpu.sh", ["train", *TPU], "after --"),
    ("tpu.sh", ["train", *TPU, "--workdir=w"], "put it after --"),
    ("tpu.sh", ["train", *TPU, "--", "--config=c"], "--workdir="),
    ("tpu.sh", ["train", *TPU, "--", "--config=c", "--workdir=gs://bucket"], "--workdir=gs://BUCKET/RUN"),
    ("tpu.sh", ["create", *TPU, "--", "x"], "nothing after --"),
    ("tpu.sh", ["create", *TPU, "--poll=soon"], "--poll=soon"),
    ("tpu.sh", ["create", *TPU, "--babysit"], "flag of train"),
    ("tpu.sh", ["create", *TPU, "--env=NOT_THERE"], "no variable NOT_THERE"),
    ("tpu.sh", ["create", *TPU, "--env=KEY=value"], "never its value"),
    ("tpu.sh", ["setup", *TPU, "--repo=https://me:word@host/x"], "password"),
    ("tpu.sh", ["setup", *TPU, "--branch=b"], "--repo"),
    ("gpu.sh", [], "no command"),
    ("gpu.sh", ["train", "--name=t", "--", *TRAINING, "--workdir=w"], "--gpus=''"),
    ("gpu.sh", ["train", "--name=t", "--gpus=8", "--per=core", "--", *TRAINING, "--workdir=w"], "--per=core"),
    ("gpu.sh", ["train", "--name=t", "--gpus=8", "--nodes=08", "--", *TRAINING, "--workdir=w"], "--nodes=08"),
    ("tpu.sh", ["train", *TPU, "--retries=010", "--", *TRAINING, "--workdir=gs://b/w"], "--retries=010"),
    ("gpu.sh", ["train", "--name=t", "--gpus=8"], "after --"),
    ("gpu.sh", ["logs", "--name=t"], "no log"),
    ("gpu.sh", ["status"], "--name=''"),
  ],
)
def test_a_mistake_is_one_line_and_no_call(still, script, args, says):
  text = still.run(script, *args, expect=2)
  assert text.count("\n") == 1
  assert text.startswith(f"launch/{script}: ")
  assert says in text
  assert not still.calls()


def test_the_name_of_the_temporary_folder_is_never_run(world, tmp_path):
  folder = tmp_path / "t'; touch RUN; '"
  folder.mkdir()
  world.run("gpu.sh", "train", "--no_setup", "--name=t", "--gpus=1", "--", *TRAINING, "--workdir=w", TMPDIR=str(folder))
  assert not list(folder.iterdir())
  assert not [path for root in (tmp_path, world.checkout) for path in root.rglob("RUN")]


def test_without_gcloud_or_slurm_it_says_so(world):
  (world.folder / "tools").mkdir()
  for name in ("bash", "dirname", "env"):
    (world.folder / "tools" / name).symlink_to(shutil.which(name))
  assert "install the Google Cloud CLI" in world.tpu("create", expect=2, PATH=str(world.folder / "tools"))
  text = world.run("gpu.sh", "status", "--name=t", expect=2, PATH=str(world.folder / "tools"))
  assert "no SLURM here" in text


# --- TPU ---


@pytest.mark.parametrize(
  ("workdir", "is_lost"), [("gs://bucket/run", False), ("/mnt/disk/run", False), ("runs/x", True)]
)
def test_a_workdir_that_goes_with_the_tpu_is_noticed(still, workdir, is_lost):
  text = still.run(
    "tpu.sh", "train", *TPU, "--dry_run", "--", *TRAINING, f"--workdir={workdir}", "--config.data.dataset=gs://b/d"
  )
  assert ("lost with the TPU" in text) == is_lost
  assert f"--workdir={workdir} --config.data.dataset=gs://b/d" in text


@pytest.mark.parametrize("command", ["create", "setup", "train", "status", "logs", "ssh", "stop", "delete"])
def test_dry_run_prints_what_can_be_pasted_and_runs_nothing(still, command):
  text = still.tpu(command, "--dry_run", training=["it's", "a b"] if command == "train" else None)
  assert not still.calls()
  assert "gcloud compute tpus" in text
  lines = text[text.index("gcloud") :]
  words = shlex.split(lines)
  assert words[:3] == ["gcloud", "compute", "tpus"]
  assert "--zone=us-z1-b" in words
  if command == "train":
    script = next(word for word in words if word.startswith("--command=")).removeprefix("--command=")
    assert shlex.split(script.splitlines()[-1])[-2:] == ["it's", "a b"]


@pytest.mark.parametrize("command", ["setup", "train", "status", "logs", "stop"])
def test_dry_run_can_be_read(still, command):
  text = still.tpu(command, "--dry_run", training=[] if command == "train" else None)
  scripts = [word for word in shlex.split(text[text.index("gcloud") :]) if word.startswith("--command=")]
  assert scripts
  for script in scripts:
    assert "()" not in script  # No function of the launcher.
    assert script.count("\n") < 5
    assert subprocess.run(["bash", "-n", "-c", script.removeprefix("--command=")]).returncode == 0


def test_create_waits_until_the_tpu_is_there_and_again_it_asks_for_nothing(world):
  text = world.tpu("create", "--project=p", "--create_flag=--network=n")
  assert re.findall(r" t: (\w+)$", text, re.M) == ["NONE", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
  world.tpu("create")
  (call,) = world.calls("create")
  assert call["argv"] == [
    "compute", "tpus", "queued-resources", "create", "t", "--node-id=t", "--accelerator-type=v5litepod-16",
    "--runtime-version=v2-alpha-tpuv5-lite", "--spot", "--network=n", "--zone=us-z1-b", "--project=p", "--quiet",
  ]  # fmt: skip


def test_settings_come_from_the_environment_too(world):
  values = {"NAME": "e", "ZONE": "z", "PROJECT": "p", "ACCELERATOR": "v4-8", "RUNTIME": "r", "SPOT": "0"}
  world.run("tpu.sh", "create", **{f"ALBERT_TPU_{name}": value for name, value in values.items()})
  (call,) = world.calls("create")
  assert call["argv"][4:] == [
    "e", "--node-id=e", "--accelerator-type=v4-8", "--runtime-version=r", "--zone=z", "--project=p", "--quiet"
  ]  # fmt: skip


def test_a_quota_that_is_refused_is_asked_for_again_but_not_for_ever(world):
  world.set(events=[{**QUOTA, "times": 2}])
  world.tpu("create")
  assert len(world.calls("create")) == 3
  world.tpu("delete")
  world.set(events=[{**QUOTA, "times": 99}])
  assert "the quota for v5litepod-16 in us-z1-b" in world.tpu("create", "--retries=4", expect=2)
  assert len(world.calls("create")) == 3 + 4


def test_what_is_no_use_is_not_tried_again(world):
  denied = "ERROR: (gcloud.compute.tpus.queued-resources.describe) PERMISSION_DENIED: not yours"
  world.set(events=[{"do": "fail", "on": "describe", "code": 1, "stderr": denied}])
  assert "not yours" in world.tpu("create", expect=2)
  assert len(world.calls()) == 1


def test_a_request_that_failed_is_made_anew_but_not_for_ever(world):
  world.set(coming=["WAITING_FOR_RESOURCES", "FAILED"], later=["ACTIVE"])
  world.tpu("create")
  assert len(world.calls("create")) == 2
  world.tpu("delete")
  world.set(coming=["WAITING_FOR_RESOURCES", "FAILED"])
  assert "giving up" in world.tpu("create", "--retries=2", expect=1)
  assert len(world.calls("create")) == 2 + 3


def test_setup_copies_the_checkout_as_it_is_and_again_does_nothing(ready):
  homes = [ready.folder / "homes" / str(i) / "albert_jax" for i in range(2)]
  installed = ready.folder / "installed"
  assert sorted(installed.read_text().split("\n")) == ["", "t1v-n-abc-w-0 tpu,gcs", "t1v-n-abc-w-1 tpu,gcs"]
  assert not (homes[0] / "src" / "keys.secret").exists()
  ready.tpu("setup")
  assert len(installed.read_text().splitlines()) == 2
  (ready.checkout / "version").unlink()
  (ready.checkout / "it's new").write_text("x")
  ready.tpu("setup")
  for worker_folder in homes:
    assert (worker_folder / "src" / "it's new").exists()
    assert not (worker_folder / "src" / "version").exists()
  assert len(installed.read_text().splitlines()) == 4


def test_setup_can_clone_a_branch(world):
  git = ["git", "-C", str(world.checkout), "-c", "user.name=n", "-c", "user.email=e"]
  subprocess.run([*git, "checkout", "--quiet", "-b", "wide"], check=True)
  subprocess.run([*git, "add", "."], check=True)
  subprocess.run([*git, "commit", "--quiet", "-m", "m"], check=True)
  world.set(coming=["ACTIVE"])
  world.tpu("create")
  world.tpu("create")  # The homes appear with the state after this one.
  repo = f"--repo={world.checkout}"
  assert "no branch or tag 'thin'" in world.tpu("setup", repo, "--branch=thin", expect=2)
  world.tpu("setup", repo, "--branch=wide")
  world.tpu("setup", repo, "--branch=wide")
  assert len((world.folder / "installed").read_text().splitlines()) == 2
  assert (world.folder / "homes" / "1" / "albert_jax" / "src" / "version").read_text() == "1\n"
  assert not world.calls(" scp ")


def test_the_training_gets_its_arguments_letter_by_letter_and_starts_once(ready):
  odd = ['--config.x=it\'s "odd" $HOME `x` \\ *', "", "a  b\nc", "ü;&|"]
  ready.hold.touch()
  ready.tpu("train", training=odd)
  ready.tpu("train", training=odd)
  ready.wait_until(lambda: (ready.run_folder / "argv").exists() and len(ready.starts()) == 2)
  arguments = (ready.run_folder / "argv").read_text().split("\0")[:-1]
  assert arguments == ["train", *TRAINING, f"--workdir={ready.run_folder}", *odd]
  assert (ready.run_folder / "processes").read_text() == "2\n"
  assert ready.tpu("status").splitlines() == [
    "request   ACTIVE", "TPU       READY, 2 workers", "training  2 running", "  t1v-n-abc-w-0 running",
    "  t1v-n-abc-w-1 running",
  ]  # fmt: skip
  assert "stop it first" in (changed(ready), ready.tpu("setup", expect=2))[1]
  assert len(ready.starts()) == 2


def changed(world):
  (world.checkout / "version").write_text("2\n")


def test_stop_lets_the_training_save_and_train_goes_on(ready):
  ready.hold.touch()
  ready.tpu("train", training=[])
  ready.wait_until(lambda: (ready.run_folder / "step").exists() and (ready.run_folder / "step").read_text() == "3\n")
  ready.wait_until(lambda: len(ready.starts()) == 2)
  ready.tpu("stop")
  ready.tpu("stop")
  assert "2 stopped" in ready.tpu("status")
  assert "Stopped at step" in ready.tpu("logs", "--worker=1")
  ready.tpu("train", training=[])
  ready.wait_until(lambda: len(ready.starts()) == 4)
  assert [step == 3 for _, step, _ in ready.starts()] == [False, False, True, True]


def test_what_it_takes_for_a_stop_is_what_train_writes():
  assert '"Stopped at step' in (ROOT / "albert_jax" / "loop.py").read_text()
  assert "/^Stopped at step/" in (ROOT / "launch" / "tpu.sh").read_text()


def test_ssh_runs_on_all_workers_or_one(ready):
  assert sorted(ready.tpu("ssh", "--", "hostname").split()) == ["t1v-n-abc-w-0", "t1v-n-abc-w-1"]
  assert ready.run("tpu.sh", "ssh", *TPU, "--worker=1", "--", "echo 'a  b' | tr a c; hostname").split() == [
    "c", "b", "t1v-n-abc-w-1"
  ]  # fmt: skip


def test_before_setup_train_says_so(world):
  (world.folder / "homes" / "0").mkdir(parents=True)
  world.set(queue="ACTIVE", node="READY", workers=1)
  assert "not set up" in world.tpu("train", training=[], expect=2)
  assert len(world.calls("ssh")) == 1
  world.set(queue="ACTIVE", node="CREATING")
  assert "state CREATING" in world.tpu("train", training=[], expect=1)


def test_an_ssh_that_fails_once_is_tried_again_and_nothing_starts_twice(ready):
  ready.hold.touch()
  ready.set(events=[{"do": "down", "on": "ssh.*worker_start", "worker": 1}])
  assert "Connection timed out" in ready.tpu("train", training=[])
  ready.wait_until(lambda: len(ready.starts()) == 2)
  assert len({host for host, _, _ in ready.starts()}) == 2


def test_a_worker_that_is_down_is_named_by_its_absence_and_tries_are_bounded(ready):
  ready.set(events=[{"do": "down", "on": "ssh", "worker": 1, "times": 99}])
  before = len(ready.calls(" ssh "))
  assert "does not run on all workers" in ready.tpu("train", "--retries=3", training=[], expect=1)
  assert len(ready.calls(" ssh ")) == before + 3
  text = ready.tpu("status", "--retries=2", expect=1)
  assert "1 of 2 workers answered" in text
  assert "t1v-n-abc-w-0" in text


def test_secrets_reach_the_training_and_nothing_else(ready):
  secret = "s3cret's key"
  ready.hold.touch()
  out = ready.tpu("train", "--env=WANDB_API_KEY", training=[], WANDB_API_KEY=secret)
  ready.wait_until(lambda: (ready.run_folder / "key").exists() and len(ready.starts()) == 2)
  assert (ready.run_folder / "key").read_text() == secret + "\n"
  out += ready.tpu("logs") + ready.tpu("train", "--dry_run", "--env=WANDB_API_KEY", training=[], WANDB_API_KEY=secret)
  assert "s3cret" not in out
  assert "s3cret" not in (ready.folder / "calls").read_text()
  left = [path for path in ready.folder.rglob("*") if path.is_file() and path.parent != ready.run_folder]
  assert [path for path in left if b"s3cret" in path.read_bytes()] == []


def test_babysit_does_everything_and_gives_the_tpu_back(world):
  text = world.tpu("train", "--babysit", "--delete_after", training=[])
  assert "The training is done" in text
  assert (world.run_folder / "step").read_text() == "5\n"
  assert len(world.starts()) == 2
  assert world.get("queue") is None


def test_babysit_goes_on_after_a_preemption_in_the_middle(world):
  world.hold.touch()
  world.set(events=[{"do": "preempt", "on": "ssh.*worker_state", "skip": 15, "release": str(world.hold)}])
  process = world.start("tpu.sh", "train", *TPU, "--babysit", "--", *TRAINING, f"--workdir={world.run_folder}")
  world.wait_until(lambda: (world.run_folder / "starts").exists())
  changed(world)  # Meanwhile the checkout moves on; the run does not.
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err + out
  assert "t was lost (time 1 of at most 100)" in err
  assert len(world.calls("create")) == 2
  assert (world.run_folder / "step").read_text() == "5\n"
  starts = world.starts()
  steps = [step for _, step, _ in starts]  # On a busy machine a worker begins when the other has got somewhere already.
  assert len(steps) == 4 and steps[0] == 0 and min(steps[2:]) >= 3
  assert {version for _, _, version in starts} == {"1"}


def test_babysit_gives_up_after_too_many_preemptions(world):
  world.set(events=[{"do": "preempt", "on": "ssh.*worker_setup", "times": 99}])
  assert "giving up" in world.tpu("train", "--babysit", "--preemptions=2", training=[], expect=1)
  assert len(world.calls("create")) == 3


def test_babysit_starts_all_workers_again_when_one_dies(ready):
  ready.hold.touch()
  ready.set(events=[{"do": "release", "on": "worker_kill", "release": str(ready.hold)}])
  (ready.run_folder / "fail_t1v-n-abc-w-1").write_text("1 1")
  text = ready.tpu("train", "--babysit", training=[])
  assert "does not run on all workers (1 exited_1, 1 running)" in text
  assert "failure 1 of at most 8" in text
  assert [host for host, _, _ in ready.starts()].count("t1v-n-abc-w-0") == 2
  assert not ready.calls("create")


def test_babysit_gives_up_on_a_training_that_always_dies(ready):
  (ready.run_folder / "fail_t1v-n-abc-w-0").write_text("1 99")
  text = ready.tpu("train", "--babysit", "--retries=1", training=["--steps=100000"], expect=1)
  assert "giving up" in text
  assert "it went wrong" in text
  assert [host for host, _, _ in ready.starts()].count("t1v-n-abc-w-0") == 2


def test_babysit_does_not_repeat_a_mistake(ready):
  (ready.run_folder / "fail_t1v-n-abc-w-1").write_text("2 99")
  text = ready.tpu("train", "--babysit", training=["--steps=100000"], expect=2)
  assert "it went wrong" in text
  assert len(ready.starts()) == 2
  assert "running" not in ready.tpu("status")
  (ready.run_folder / "fail_t1v-n-abc-w-1").unlink()  # Put right, it is another training.
  assert "The training is done" in ready.tpu("train", "--babysit", training=[])


def test_babysit_replaces_a_tpu_whose_worker_never_answers(world):
  # Seen once; from then on worker 1 is down, until the TPU is another one.
  down = {"do": "down", "on": "ssh.*worker_state", "worker": 1, "skip": 2, "times": 6}
  world.set(events=[down, {"do": "release", "on": "delete", "release": str(world.hold)}])
  world.hold.touch()
  text = world.tpu("train", "--babysit", "--retries=2", training=[])
  assert "1 of 2 workers answer" in text
  assert len(world.calls("create")) == 2
  assert (world.run_folder / "step").read_text() == "5\n"


def test_babysit_ends_when_the_training_was_asked_to_stop(ready):
  args = [*TPU, "--babysit", "--", *TRAINING, f"--workdir={ready.run_folder}", "--steps=100000"]
  process = ready.start("tpu.sh", "train", *args)
  ready.wait_until(lambda: (ready.run_folder / "step").exists() and len(ready.starts()) == 2)
  ready.tpu("stop")
  _, err = process.communicate(timeout=300)
  assert process.returncode == 0
  assert "asked to stop, and has saved" in err
  assert len(ready.starts()) == 2
  assert "The training is done" in ready.tpu("train", "--babysit", training=["--steps=1"])


def test_babysit_does_not_take_a_machine_that_shut_down_for_the_end(ready):
  ready.hold.touch()
  ready.set(events=[{"do": "release", "on": "worker_start", "skip": 1, "release": str(ready.hold)}])
  process = ready.start("tpu.sh", "train", *TPU, "--babysit", "--", *TRAINING, f"--workdir={ready.run_folder}")
  ready.wait_until(lambda: (ready.run_folder / "step").exists() and len(ready.starts()) == 2)
  for path in ready.folder.glob("homes/*/albert_jax/run/pid"):
    os.kill(int(path.read_text()), signal.SIGTERM)
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err + out
  assert "interrupted" in err
  assert (ready.run_folder / "step").read_text() == "5\n"


def test_delete_is_fine_twice(ready):
  ready.tpu("delete")
  ready.tpu("delete")
  assert ready.get("queue") is None
  assert ready.tpu("status").split() == ["request", "NONE"]


# --- GPU ---

GPU = ["--name=g", "--nodes=2", "--gpus=a100:8", "--no_setup"]
JOB = ["job", "--name=g", "--nodes=2", "--gpus=a100:8", "--", *TRAINING, "--workdir=w", "it's"]


def in_job(world, *args, expect=0, **env):
  """What the job does, as sbatch starts it: in the checkout, but from another place."""
  world.program("slurm_script", (ROOT / "launch" / "gpu.sh").read_text())
  environment = {
    "PATH": f"{world.folder / 'stand_ins'}:/usr/bin:/bin", "WORLD": str(world.folder), "SLURM_JOB_ID": "7",
    "ALBERT_GPU_BACKOFF": "0", **env,
  }  # fmt: skip
  return subprocess.Popen(
    [world.folder / "slurm_script", *args], env=environment, cwd=world.checkout, text=True, stderr=subprocess.PIPE
  )


def test_gpu_train_gives_sbatch_one_job_and_again_none(world):
  world.run("gpu.sh", "train", *GPU, "--time=1:00:00", "--partition=p", "--", *TRAINING, "--workdir=w", "it's")
  assert "in the queue already: job 7 PENDING" in world.run(
    "gpu.sh", "train", *GPU, "--", *TRAINING, "--workdir=w", "it's"
  )
  (call,) = world.calls("^sbatch")
  at = call["argv"].index(f"{world.checkout}/launch/gpu.sh")
  flags, job = call["argv"][:at], call["argv"][at + 1 :]
  assert {
    "--job-name=g", "--nodes=2", "--gpus-per-node=a100:8", "--ntasks-per-node=8", f"--chdir={world.checkout}",
    "--requeue", "--signal=B:USR1@180", "--time=1:00:00", "--partition=p",
  } <= set(flags)  # fmt: skip
  assert job[0] == "job"
  assert job[job.index("--") :] == ["--", *TRAINING, "--workdir=w", "it's"]


def test_gpu_train_installs_before_it_queues(world):
  world.run("gpu.sh", "train", *GPU[:-1], "--", *TRAINING, "--workdir=w", HOST="login")
  assert (world.folder / "installed").read_text() == "login gpu\n"


def test_sbatch_is_tried_again_when_slurm_is_slow_and_never_queues_twice(world):
  slow = {"do": "fail", "on": "^sbatch", "code": 1, "stderr": "sbatch: error: Socket timed out on send/recv operation"}
  world.set(events=[slow])
  world.run("gpu.sh", "train", *GPU, "--", *TRAINING, "--workdir=w")
  assert len(world.calls("^sbatch")) == 2
  world.set(job=None, events=[{**slow, "times": 99}])
  assert "failed 3 times" in world.run("gpu.sh", "train", *GPU, "--retries=3", "--", *TRAINING, "--workdir=w", expect=1)
  refused = "sbatch: error: Batch job submission failed: Invalid partition name specified"
  world.set(job=None, events=[{**slow, "stderr": refused}])
  assert "Invalid partition" in world.run("gpu.sh", "train", *GPU, "--", *TRAINING, "--workdir=w", expect=2)


@pytest.mark.parametrize(
  ("per", "tasks", "ids"), [("gpu", 8, {}), ("node", 1, {"JAX_LOCAL_DEVICE_IDS": "0,1,2,3,4,5,6,7"})]
)
def test_the_job_runs_a_process_a_gpu_or_a_node(world, per, tasks, ids):
  process = in_job(world, "job", f"--per={per}", "--cpus=4", *JOB[1:])
  assert process.wait(timeout=60) == 0, process.stderr.read()
  (call,) = world.calls("^srun")
  assert {"--nodes=2", f"--ntasks-per-node={tasks}", "--gpus-per-node=a100:8", "--kill-on-bad-exit=1",
          "--cpus-per-task=4"} <= set(call["argv"])  # fmt: skip
  assert call["argv"][-5:] == ["albert-jax", "train", *TRAINING, "--workdir=w", "it's"]
  assert call["env"] == ids
  process.stderr.close()


@pytest.mark.parametrize(
  ("code", "times", "expect", "runs"), [(1, 1, 0, 2), (1, 99, 1, 5), (2, 99, 2, 1)], ids=["once", "always", "mistake"]
)
def test_a_training_that_breaks_in_the_job_runs_again_within_bounds(world, code, times, expect, runs):
  world.set(
    events=[{"do": "fail", "on": "^srun", "code": code, "stderr": "srun: error: task 3 exited", "times": times}]
  )
  process = in_job(world, *JOB)
  _, err = process.communicate(timeout=300)
  assert process.returncode == expect, err
  assert len(world.calls("^srun")) == runs


@pytest.mark.parametrize(("restarts", "expect"), [("3", 0), ("100", 1)])
def test_when_its_time_is_up_the_job_saves_and_queues_again(world, restarts, expect):
  world.set(srun_waits=True)
  process = in_job(world, *JOB, SLURM_RESTART_COUNT=restarts)
  world.wait_until((world.folder / "srun_pid").exists)
  time.sleep(0.1)
  process.send_signal(signal.SIGUSR1)
  _, err = process.communicate(timeout=300)
  assert process.returncode == expect, err
  assert [call["argv"] for call in world.calls("^scancel")] == [["--signal=TERM", "7"]]
  assert len(world.calls("^scontrol requeue 7")) == (expect == 0)


def test_gpu_stop_lets_the_training_save(world):
  assert "not in the queue" in world.run("gpu.sh", "stop", "--name=g")
  for state, argv in (("RUNNING", ["--signal=TERM", "7"]), ("PENDING", ["7"])):
    world.set(job=f"7 {state}")
    world.run("gpu.sh", "stop", "--name=g")
    assert world.calls("^scancel")[-1]["argv"] == argv


def test_gpu_dry_run_runs_nothing(still):
  text = still.run("gpu.sh", "train", *GPU, "--dry_run", "--", *TRAINING, "--workdir=w", "it's")
  assert not still.calls()
  assert [line.split()[0] for line in text.splitlines()] == ["sbatch", "#", "srun"]
  assert shlex.split(text.splitlines()[-1])[-1] == "it's"
