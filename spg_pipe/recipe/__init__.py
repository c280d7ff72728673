"""params.yaml as typed values, ready-made recipes, protocols, and where artefacts lie."""
