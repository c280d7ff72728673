"""The Detector: make, save, load, judge; score a store and evaluate its scores."""
