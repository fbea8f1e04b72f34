"""Streaming reconstruction and quantification of MR spectroscopic imaging (MRSI)."""

__version__ = "0.1.0"
