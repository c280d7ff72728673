"""Datasets: from folders of images and masks to a Manifest."""
