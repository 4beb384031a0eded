"""vlm-edge: take a vision-language model to an edge box and prove that it still works."""

__version__ = "0.1.0"
