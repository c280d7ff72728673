"""The published guides: four codes a layer, trained with masks (docs/method.md §3)."""
