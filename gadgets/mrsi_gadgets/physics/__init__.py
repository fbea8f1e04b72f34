"""Physics of the signal: spin systems, basis sets, lineshapes, brain values and ensembles (eq. 1 to 5)."""
