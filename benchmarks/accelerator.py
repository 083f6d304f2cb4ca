"""Whether this device computes correctly, and how fast: `albert-jax bench`, from a checkout.

python benchmarks/accelerator.py --minutes=8 --out=DIR
"""

import sys

from albert_jax.__main__ import main

if __name__ == "__main__":
  sys.exit(main(["bench", *sys.argv[1:]]))
