"""Other ways to judge the patches of a store, and what each of them was allowed to see.

A baseline is a module with a function that returns a `Baseline`: how anomalous patches are, layer
by layer. Maps, image scores and metrics are then made alike for all (`patchwise`). `methods` says
which of them are compared.
"""
