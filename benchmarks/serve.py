"""Load test of `albert-jax serve` on this machine: throughput, latency, a restart under load, and memory.

  pip install -e '.[serve]'
  ALBERT_DATA=DIR python benchmarks/serve.py --size=small --requests=2000

A classifier with random weights answers sentences of SST-2's development set, one text a request. Server and client
share the machine. Four parts, in this order:
  one by one   one connection, the next request after the last answer
  together     --clients connections, each as before: what batching gains is the ratio to one by one,
               the median of five turns
  rates        requests arrive at random times (Poisson) at shares of that throughput: p50 and p99
  restart      under load, another server on the same port and SIGTERM to the first: requests that were never answered
Memory is the server's resident set, after each tenth of --requests more.
"""

import argparse
import asyncio
import atexit
import dataclasses
import json
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time

SIZES = {
  "tiny": {"embedding_size": 32, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
           "intermediate_size": 128},
  "small": {"embedding_size": 128, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4,
            "intermediate_size": 1024},
  "base": {},
}  # fmt: skip
ROUNDS = 5
RATES = (0.25, 0.5, 0.75, 0.9)


def export(folder, size, data):
  """Writes a classifier with random weights and the genuine English vocabulary."""
  import jax
  import numpy as np

  import albert_jax
  from albert_jax.convert import hf
  from albert_jax.data.tokenizer import Tokenizer
  from albert_jax.tasks.base import about

  cfg = dataclasses.replace(albert_jax.VARIANTS["base"], **SIZES[size])
  params = jax.jit(albert_jax.init, static_argnums=0)(cfg, jax.random.key(0))
  params = {name: part for name, part in params.items() if name not in ("mlm", "sop")}
  kernel = np.random.default_rng(0).normal(0, 0.02, (cfg.hidden_size, 2)).astype(np.float32)
  params["classifier"] = {"kernel": kernel, "bias": np.zeros(2, np.float32)}
  facts = about("classify", ("negative", "positive"), kind="classification", pair=False, seq_length=128)
  hf.save(folder, cfg, params, vocabulary=Tokenizer(data / "vocab/albert_en_30k/spiece.model"), extra=facts)


class Server:
  """`albert-jax serve` in a process of its own."""

  def __init__(self, checkpoint, flags, port=0):
    command = [
      sys.executable,
      "-m",
      "albert_jax",
      "serve",
      f"--checkpoint={checkpoint}",
      f"--port={port}",
      "--reuse_port",
      *flags,
    ]
    started = time.monotonic()
    self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    line = self.process.stdout.readline()
    if not line:
      sys.exit("the server did not start; run: " + " ".join(command))
    self.seconds = time.monotonic() - started  # With --reuse_port it says its line once it is ready.
    atexit.register(self.process.kill)
    self.port = int(line.split()[0].rstrip("/").rsplit(":", 1)[1])

  def stop(self):
    """Stops the server with SIGTERM; returns its exit code."""
    self.process.send_signal(signal.SIGTERM)
    return self.process.wait(timeout=60)


async def read_answer(reader):
  """Returns (status, whether the connection stays open, body) of one HTTP/1.1 answer."""
  head = (await reader.readuntil(b"\r\n\r\n")).decode("latin1").lower()
  length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length:"))
  return int(head.split(" ", 2)[1]), "connection: close" not in head, await reader.readexactly(length)


async def get(port, path):
  reader, writer = await asyncio.open_connection("127.0.0.1", port)
  writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
  status, _, body = await read_answer(reader)
  writer.close()
  return status, body


class Connection:
  """A client that keeps its connection. A request that was not answered is sent again, and counted."""

  def __init__(self, port):
    self.port, self.reader, self.writer, self.again = port, None, None, 0

  async def classify(self, text, patience=60.0):
    """Waits for a response; returns its status.

    Raises:
      TimeoutError: nothing came in `patience` seconds.
    """
    body = json.dumps({"inputs": text}).encode()
    head = "POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    request = f"{head}{len(body)}\r\n\r\n".encode() + body
    end = time.monotonic() + patience
    while time.monotonic() < end:
      try:
        if self.writer is None:
          self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writer.write(request)
        status, stays, _ = await read_answer(self.reader)
        if not stays:
          self.close()
        if status == 503:
          self.again += 1
          await asyncio.sleep(0.1)
          continue
        return status
      except (OSError, asyncio.IncompleteReadError):
        self.close()
        self.again += 1
        await asyncio.sleep(0.02)
    raise TimeoutError

  def close(self):
    if self.writer is not None:
      self.writer.close()
    self.reader = self.writer = None


async def closed_loop(port, texts, clients):
  """Lets clients send their next text after each answer; returns (requests a second, latencies)."""
  queue, latencies = iter(texts), []

  async def client():
    connection = Connection(port)
    for text in queue:
      started = time.monotonic()
      status = await connection.classify(text)
      if status != 200:
        sys.exit(f"status {status}")
      latencies.append(time.monotonic() - started)
    connection.close()

  started = time.monotonic()
  await asyncio.gather(*(client() for _ in range(clients)))
  return len(texts) / (time.monotonic() - started), latencies


async def open_loop(port, texts, rate, seconds):
  """Sends requests at random times, without waiting for answers; returns their latencies."""
  latencies, free, tasks, chosen = [], [], [], random.Random(0)

  async def request(text, arrival):
    connection = free.pop() if free else Connection(port)
    await connection.classify(text)
    latencies.append(time.monotonic() - arrival)
    free.append(connection)

  arrival = time.monotonic()
  end = arrival + seconds
  while arrival < end:
    arrival += chosen.expovariate(rate)
    await asyncio.sleep(arrival - time.monotonic())
    tasks.append(asyncio.create_task(request(chosen.choice(texts), arrival)))
  await asyncio.gather(*tasks)
  for connection in free:
    connection.close()
  return latencies


async def restart(server, checkpoint, flags, texts, clients):
  """Starts a second server on the same port under load, and sends SIGTERM to the first.

  Returns:
    (the second, counts).
  """
  stopping, latencies = asyncio.Event(), []
  counts = {"answered": 0, "sent_again": 0, "lost": 0}

  async def client(number):
    connection, chosen = Connection(server.port), random.Random(number)
    while not stopping.is_set():
      started = time.monotonic()
      try:
        counts["answered" if await connection.classify(chosen.choice(texts)) == 200 else "lost"] += 1
        latencies.append(time.monotonic() - started)
      except TimeoutError:
        counts["lost"] += 1
    counts["sent_again"] += connection.again
    connection.close()

  tasks = [asyncio.create_task(client(i)) for i in range(clients)]
  after = await asyncio.to_thread(Server, checkpoint, flags, server.port)
  await asyncio.sleep(1)
  counts["exit_code"] = await asyncio.to_thread(server.stop)
  await asyncio.sleep(1)
  stopping.set()
  await asyncio.gather(*tasks)
  return after, counts | {"slowest_ms": round(1000 * max(latencies))}


async def memory(port):
  """MiB of the server's resident set."""
  lines = (await get(port, "/metrics"))[1].decode().splitlines()
  line = next(line for line in lines if line.startswith("process_resident_memory_bytes"))
  return float(line.split()[1]) / 2**20


def milliseconds(latencies):
  cuts = statistics.quantiles(latencies, n=100)
  return {"p50_ms": round(1000 * cuts[49], 1), "p99_ms": round(1000 * cuts[98], 1)}


async def measure(checkpoint, flags, texts, args):
  server = Server(checkpoint, flags)
  numbers = {"start_seconds": round(server.seconds, 1)}
  print(f"ready after {numbers['start_seconds']} s")
  await closed_loop(server.port, texts[:200], 8)
  # In turns, so that other programs on the machine slow down both.
  turns = {1: [], args.clients: []}
  for _ in range(ROUNDS):
    for clients, results in turns.items():
      count = max(20, args.requests // ROUNDS // (10 if clients == 1 else 1))
      results.append(await closed_loop(server.port, texts[:count], clients))
  for name, (clients, results) in zip(("one_by_one", "together"), turns.items(), strict=True):
    rate = statistics.median(rate for rate, _ in results)
    latencies = [latency for _, latencies in results for latency in latencies]
    numbers[name] = {"requests_per_second": round(rate, 1), **milliseconds(latencies), "clients": clients}
  throughput = numbers["together"]["requests_per_second"]
  ratios = sorted(round(b / a, 2) for (a, _), (b, _) in zip(*turns.values(), strict=True))
  numbers |= {"ratio": statistics.median(ratios), "ratios": ratios}
  print(f"one by one {numbers['one_by_one']}\ntogether   {numbers['together']}: {numbers['ratio']} times {ratios}")
  numbers["rates"] = []
  for share in RATES:
    latencies = await open_loop(server.port, texts, share * throughput, args.seconds)
    numbers["rates"].append({"share": share, "rate": round(share * throughput, 1), **milliseconds(latencies)})
    print(f"rate       {numbers['rates'][-1]}")
  numbers["memory_mib"] = [round(await memory(server.port), 1)]
  for _ in range(10):
    await closed_loop(server.port, texts[: max(1, args.requests // 10)], args.clients)
    numbers["memory_mib"].append(round(await memory(server.port), 1))
  print(f"memory     {numbers['memory_mib']} MiB")
  server, numbers["restart"] = await restart(server, checkpoint, flags, texts, args.clients)
  print(f"restart    {numbers['restart']}")
  server.stop()
  return numbers


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--size", choices=SIZES, default="small")
  parser.add_argument("--requests", type=int, default=2000, help="of the part `together`, and of the memory's")
  parser.add_argument("--clients", type=int, default=32)
  parser.add_argument("--seconds", type=float, default=5, help="of each rate")
  parser.add_argument("--flags", default="", help="for albert-jax serve, with spaces between")
  parser.add_argument("--json", metavar="FILE", help="write the numbers there")
  args = parser.parse_args()
  data = pathlib.Path(os.environ["ALBERT_DATA"])
  lines = (data / "glue/SST-2/dev.tsv").read_text().split("\n")[1:]
  texts = [line.split("\t")[0] for line in lines if line]
  texts = (texts * (args.requests // len(texts) + 1))[: max(args.requests, len(texts))]
  with tempfile.TemporaryDirectory() as folder:
    checkpoint = pathlib.Path(folder) / "classifier"
    export(checkpoint, args.size, data)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # So that the server is stopped too.
    numbers = asyncio.run(measure(checkpoint, args.flags.split(), texts, args))
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
  main()
