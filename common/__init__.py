"""What the five methods share: data loaders, metrics, checkpoints, figures and small run-time helpers."""
