"""Benchmarks: ratios of times measured side by side within one run."""

import os

# Read when torch is imported. By default a thread that waits for its share of a matrix product
# spins; on a machine that does other work too, that is measured instead of the product (two
# threads of which one has to share its core: a tenth of the speed of one thread).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
