"""`make bench`: every benchmark in turn, each a ratio against a named baseline."""

from benchmarks import sae_step

if __name__ == "__main__":
    sae_step.main()
