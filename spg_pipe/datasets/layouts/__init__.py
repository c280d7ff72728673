"""How datasets lie on disk: one module a layout, names only."""
