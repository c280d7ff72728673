"""Manifests, layouts, images and masks."""
