"""From calibrated k-t samples to spectral images: calibration, solvers, priors and methods (eq. 7 of science.md)."""
