"""Synthetic sets: an auxiliary set with masks from normal images alone, its defects painted.

Perlin-textured spots (as in DRAEM), pasted pieces (as in CutPaste and NSA) and scars, in a layout
of its own that says what it is. `writer` makes a set, `layout` reads it.
"""
