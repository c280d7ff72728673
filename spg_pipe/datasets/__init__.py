"""Datasets: from folders of images and masks to a Manifest, and from files to arrays."""
