"""The wheel holds all that the commands need, in a folder that holds nothing."""

import pathlib
import random
import re
import subprocess
import sys
import tomllib
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """Returns the wheel, built from the sdist as a release is."""
  pytest.importorskip("build")
  out = tmp_path_factory.mktemp("dist")
  command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
  assert len(list(out.glob("*.tar.gz"))) == 1
  return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_configs_and_data_files(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  assert {f"albert_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")} <= names
  tracked = subprocess.run(["git", "ls-files", "albert_jax"], cwd=ROOT, capture_output=True, text=True, check=False)
  assert not set(tracked.stdout.split()) - names
  assert not [name for name in names if name.startswith(("tests/", "configs/", "benchmarks/"))]


@pytest.mark.slow
def test_a_bare_folder_is_enough(wheel, tmp_path):
  environment, folder = tmp_path / "venv", tmp_path / "empty"
  folder.mkdir()
  venv.create(environment, with_pip=False)
  python = environment / "bin/python"
  site = next(environment.glob("lib/*/site-packages"))
  # The packages that this project needs, but not this checkout.
  installed = [path for path in sys.path if path.endswith("site-packages")]
  (site / "dependencies.pth").write_text("\n".join(installed) + "\n")
  install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
  subprocess.run([*install, str(wheel)], check=True)

  def run(*args, **options):
    command = [environment / "bin/albert-jax", *args]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, (args, done.stderr[-2000:])
    return done.stdout

  draw = random.Random(0)
  words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 6))) for _ in range(300)]

  def sentence():
    return " ".join(draw.choices(words, k=3)) + "."

  documents = ["\n".join(sentence() for _ in range(20)) for _ in range(60)]
  (folder / "corpus.txt").write_text("\n\n".join(documents))
  sst = folder / "glue/SST-2"
  sst.mkdir(parents=True)
  for name in ("train", "dev"):
    rows = "".join(f"{sentence()}\t{i % 2}\n" for i in range(16))
    (sst / f"{name}.tsv").write_text(f"sentence\tlabel\n{rows}")

  where = subprocess.run(
    [python, "-c", "import albert_jax; print(albert_jax.__file__)"],
    cwd=folder,
    capture_output=True,
    text=True,
    check=True,
  )
  assert where.stdout.startswith(str(environment))
  run("vocab", "--input=corpus.txt", "--out=vocab", "--vocab_size=150")
  run("prepare", "--input=corpus.txt", "--spm=vocab/spiece.model", "--out=data", "--segment_tokens=32", "--workers=1",
      "--layout=blank", "--sentences=line")  # fmt: skip
  few = [
    "--config.steps=2",
    "--config.batch_size=8",
    "--config.data.seq_length=32",
    "--config.optimizer.warmup_steps=1",
  ]
  small = [f"--config.model.{name}" for name in (
    "vocab_size=150", "hidden_size=32", "embedding_size=16", "num_attention_heads=2", "intermediate_size=64",
    "num_hidden_layers=2",
  )]  # fmt: skip
  run("train", "--config=configs/pretrain.py:tiny", "--config.data.dataset=data", "--workdir=run", *few, *small)
  assert run("predict", "--checkpoint=run", "--task=fill-mask", "a [MASK] b").count("\n") == 1
  run("suite", "--tasks=sst-2", "--checkpoint=run", "--data=glue", "--seeds=1", "--out=suite", *few)
  assert (folder / "suite/suite.md").is_file()
  assert "albert-jax" in run("--version")


def test_the_readme_lists_every_extra():
  extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
  for_users = extras.keys() - {"parity", "test"}
  rows = re.findall(r"(?m)^\| (`[a-z, `]+`) \| .* \|$", (ROOT / "README.md").read_text().split("| extra | adds |")[1])
  assert {name for row in rows for name in re.findall(r"[a-z]+", row)} == for_users
