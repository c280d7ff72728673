"""The reference recipe: docs/method.md and docs/metrics.md written out literally.

Dense codes, every formula as it stands, gradients by autograd. The tests hold the project's own
arithmetic to it, and the benchmarks time it as the baseline.
"""
