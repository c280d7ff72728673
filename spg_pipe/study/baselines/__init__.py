"""Other ways to decide on the same store, and what each of them was allowed to see.

A method turns a batch of tokens into a value a patch, layer by layer; maps, image scores and
metrics are then made alike for all (`patchwise`).
"""
