"""Manifests, layouts and the walk through folders."""
