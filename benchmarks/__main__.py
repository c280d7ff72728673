"""`make bench`: the benchmarks of speed in turn, each a ratio against a named baseline."""

from benchmarks import sae_step

if __name__ == "__main__":
    sae_step.run()
