"""One function a stage: the commands and the scripts in stages/ only parse and call these.

They are in `features`, `training`, `targets` and `synthetic`; `predict` judges a person's images. A
stage takes a RecipeRun, works in the recipe's paths (recipe/paths.py) and returns the path of the
artefact that it wrote.
"""
