"""Measurements: python -m launch.bench infer|throughput|train|decode|check|index|recipe|sharding [flags]; see bench/"""

import importlib
import sys

from launch import cli

KINDS = ("infer", "throughput", "train", "decode", "check", "index", "recipe", "sharding")

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in KINDS:
        cli.fail(f"name what to measure: {', '.join(KINDS)}")
    bench = importlib.import_module(f"bench.{sys.argv.pop(1)}")

    def main(_):
        cli.keep_compiled()
        bench.run()

    cli.run(main, required=[])
