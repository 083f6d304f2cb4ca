"""Batches across clients: items of several requests run in one batch."""

import asyncio
import collections
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from albert_jax import pipelines


class Busy(Exception):
  """The queue is full."""


@dataclass(frozen=True)
class Entry:
  item: object
  result: asyncio.Future
  arrival: float  # time.monotonic()


class Batcher:
  """Queues of items, and one thread that runs a batch at a time.

  There is a queue for each key. The queue whose first item arrived earliest runs next, so that a model waits for at
  most one batch of another model.

  Attributes:
    waiting: how many items are queued.
  """

  def __init__(self, size: int, window: float, limit: int, observe: Callable = lambda key, count, seconds: None):
    """
    Args:
      size: the most items in a batch.
      window: seconds for which the first item of a batch waits for others. Items that arrive while another batch runs
        form the next batch.
      limit: the most items that may be queued.
      observe: called after each batch with its key, number of items, and seconds.
    """
    self.size, self.window, self.limit, self._observe = size, window, limit, observe
    self.waiting = 0
    self.thread = ThreadPoolExecutor(1, "albert-jax-model")
    self._queues: dict[Hashable, collections.deque[Entry]] = {}
    self._functions: dict[Hashable, Callable] = {}
    self._changed = asyncio.Event()
    self._task: asyncio.Task | None = None

  def start(self) -> None:
    """Starts running batches. Must be called in the event loop."""
    self._task = asyncio.create_task(self._work())

  async def stop(self) -> None:
    """Stops after the current batch. Items that are still queued are not answered."""
    if self._task:
      self._task.cancel()
      await asyncio.wait([self._task])
    self.thread.shutdown(wait=True, cancel_futures=True)

  async def submit(self, key: Hashable, function: Callable, items: list) -> list:
    """Runs items, in batches with those of other callers that have the same key.

    Args:
      key: identifies items that can share a batch, such as (model, task).
      function: list of items -> list of results, for every caller with this key. It runs in the model's thread.
      items: the items of one request.

    Returns:
      the results in the order of the items.

    Raises:
      Busy: there is no room for the items in the queue.
      UserError: the function raised it for one of these items; items of other callers are not affected.
    """
    if self.waiting + len(items) > self.limit:
      raise Busy
    loop, arrival = asyncio.get_running_loop(), time.monotonic()
    entries = [Entry(item, loop.create_future(), arrival) for item in items]
    self._functions[key] = function
    self._queues.setdefault(key, collections.deque()).extend(entries)
    self.waiting += len(entries)
    self._changed.set()
    results = await asyncio.gather(*(entry.result for entry in entries), return_exceptions=True)
    for result in results:
      if isinstance(result, BaseException):
        raise result
    return results

  async def _work(self):
    loop = asyncio.get_running_loop()
    while True:
      key = min((key for key, queue in self._queues.items() if queue), default=None,
                key=lambda key: self._queues[key][0].arrival)  # fmt: skip
      if key is None:
        self._changed.clear()
        await self._changed.wait()
        continue
      queue = self._queues[key]
      left = queue[0].arrival + self.window - time.monotonic()
      if left > 0 and len(queue) < self.size:
        self._changed.clear()
        try:
          async with asyncio.timeout(left):
            await self._changed.wait()
        except TimeoutError:
          pass
        else:
          continue
      taken = [queue.popleft() for _ in range(min(self.size, len(queue)))]
      self.waiting -= len(taken)
      # The result of an entry is done if its request timed out or its client left.
      entries = [entry for entry in taken if not entry.result.done()]
      if not entries:
        continue
      started = time.monotonic()
      items = [entry.item for entry in entries]
      results = await loop.run_in_executor(self.thread, _run, self._functions[key], items)
      self._observe(key, len(items), time.monotonic() - started)
      for entry, result in zip(entries, results, strict=True):
        if entry.result.done():
          continue
        if isinstance(result, Exception):
          entry.result.set_exception(result)
        else:
          entry.result.set_result(result)


def _run(function, items):
  """Returns the result of each item, or the exception that it raised alone."""
  try:
    return pipelines.by_halves(function, items)
  except Exception as error:  # A bug: each request of the batch gets a 500, and the server continues.
    return [error] * len(items)
