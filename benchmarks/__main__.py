"""All benchmarks, one after the other: `python -m benchmarks`, or `make bench`."""

from __future__ import annotations

import importlib.util
import sys

from benchmarks import image_visits, recall, training_time, truncation, vector_steps, visits


def main() -> None:
    """Run every benchmark; refuse at once where an optional package is missing."""
    if importlib.util.find_spec("peft") is None:
        sys.exit(
            "The benchmarks compare with Hugging Face PEFT, which is not installed: use "
            "`make bench`, or install it with `pip install -e '.[peft]'`."
        )
    for benchmark in (recall, truncation, vector_steps, training_time, visits, image_visits):
        print(f"== {benchmark.__name__.removeprefix('benchmarks.')}", flush=True)
        benchmark.main()


if __name__ == "__main__":
    main()
