"""Linear operators: their algebra and the physics of encoding (eq. 2 of science.md)."""
