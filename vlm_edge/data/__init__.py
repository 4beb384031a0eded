"""Data sets: what describes one (a manifest in YAML), what reads one, and its digest."""

from vlm_edge.data.loading import dataset_digest, load_dataset

__all__ = ["dataset_digest", "load_dataset"]
