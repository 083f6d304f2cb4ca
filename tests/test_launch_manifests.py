"""The image and the manifest name what exists: extras, files, arguments, and machines that make up the slice."""

import copy
import pathlib
import re
import tomllib

import kubernetes_validate
import pytest
import yaml

from albert_jax.commands import common

ROOT = pathlib.Path(__file__).parents[1]


def test_the_image_installs_what_exists():
  lines = (ROOT / "launch/Dockerfile").read_text().splitlines()
  instructions = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
  assert instructions[0][0] == "FROM"
  extras = next(value.partition("=")[2].split(",") for name, value in instructions if name == "ARG")
  known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
  assert set(extras) <= set(known)
  for name, value in instructions:
    if name == "COPY":
      assert all((ROOT / source).exists() for source in value.split()[:-1]), value
  python = re.fullmatch(r"python:3\.(\d+)-slim", instructions[0][1])
  assert int(python[1]) >= 11


def test_the_manifest_is_a_jobset_whose_machines_make_up_the_slice():
  manifest = yaml.safe_load((ROOT / "launch/jobset.yaml").read_text())
  assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  [group] = manifest["spec"]["replicatedJobs"]
  job = group["template"]["spec"]
  assert job["completionMode"] == "Indexed"
  pod = job["template"]["spec"]
  [container] = pod["containers"]
  width, height = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
  chips = container["resources"]["limits"]["google.com/tpu"]
  assert container["resources"]["requests"]["google.com/tpu"] == chips
  assert job["parallelism"] == job["completions"] == width * height // chips
  assert pod["restartPolicy"] == "Never"


def _as_jobs(manifest):
  """Lists the jobs that the JobSet makes, as Kubernetes' own kind."""
  return [
    {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": group["name"]}, **group["template"]}
    for group in manifest["spec"]["replicatedJobs"]
  ]


def test_the_jobs_of_the_manifest_pass_kubernetes_schema():
  manifest = yaml.safe_load((ROOT / "launch/jobset.yaml").read_text())
  [job] = _as_jobs(manifest)
  kubernetes_validate.validate(job, "1.33", strict=True)
  for field, value in {"backoffLimit": "none", "backofLimit": 0}.items():
    wrong = copy.deepcopy(job)
    wrong["spec"][field] = value
    with pytest.raises(kubernetes_validate.ValidationError, match=field):
      kubernetes_validate.validate(wrong, "1.33", strict=True)


def test_the_manifest_starts_a_command_that_parses():
  manifest = yaml.safe_load((ROOT / "launch/jobset.yaml").read_text())
  pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
  command, *arguments = pod["containers"][0]["args"]
  parser = common.parser_of(command)
  config, *overrides = [value for value in arguments if value.startswith("--config")]
  common.with_overrides(common.load_config(config.partition("=")[2]), overrides)
  parser.parse_args([value for value in arguments if value not in overrides])
