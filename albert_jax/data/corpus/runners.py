"""Runs the jobs of `prepare`: in this process, in several processes, or on Apache Beam."""

import concurrent.futures
import multiprocessing
from collections.abc import Callable

import tqdm

from albert_jax.data.workers import exit_with_parent
from albert_jax.errors import UserError


def local(workers: int) -> Callable[..., None]:
  """Returns a runner on this machine's cores.

  Args:
    workers: int, processes; up to 1 is this one.

  Returns:
    A function (function, jobs, sizes, title): calls `function` with each tuple of arguments in `jobs`, which have
    `sizes` in bytes for the progress bar. Return values are ignored: the calls write files.
  """

  def run(function, jobs, sizes, title):
    with tqdm.tqdm(total=sum(sizes), unit="B", unit_scale=True, desc=title, mininterval=0.5) as bar:
      if workers <= 1 or len(jobs) == 1:
        for args, size in zip(jobs, sizes, strict=True):
          function(*args)
          bar.update(size)
        return
      # `spawn`, because a forked child inherits locks that threads of the parent may hold.
      context, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
      with concurrent.futures.ProcessPoolExecutor(min(workers, len(jobs)), context, exit_with_parent) as pool:
        pending = {pool.submit(function, *args): size for args, size in zip(jobs, sizes, strict=True)}
        try:
          for done in concurrent.futures.as_completed(pending):
            done.result()
            bar.update(pending[done])
        except concurrent.futures.BrokenExecutor:
          raise OSError(
            f"a worker process of --workers={workers} ended before its work was done, perhaps because it was killed "
            "for want of memory; the same command resumes from the parts that are done, with fewer --workers if need be"
          ) from None
        except BaseException:
          pool.shutdown(wait=False, cancel_futures=True)
          for process in set(multiprocessing.active_children()) - others:  # Otherwise the pool waits for their work.
            process.terminate()
          raise

  return run


def beam(options: str) -> Callable[..., None]:
  """Returns a runner on Apache Beam: Dataflow, Flink, Spark, or Beam's own on this machine.

  Args:
    options: str, Beam's own flags, such as `--runner=DataflowRunner --project=…`.

  Returns:
    function as `local` returns. The corpus, the vocabulary and the output must be where all workers can reach them.

  Raises:
    UserError: Beam is not installed.
  """
  try:
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError:
    raise UserError("--runner=beam needs Apache Beam: pip install apache-beam") from None

  def run(function, jobs, sizes, title):
    del sizes  # Beam shows its own progress
    label = title.capitalize()
    with apache_beam.Pipeline(options=PipelineOptions(options.split())) as pipeline:
      units = pipeline | apache_beam.Create(jobs) | apache_beam.Reshuffle()
      _ = units | label >> apache_beam.Map(_Call(function))

  return run


class _Call:
  """Calls a function with a tuple's items as arguments; a class, so that it pickles by name."""

  def __init__(self, function):
    self.function = function

  def __call__(self, args):
    self.function(*args)
