"""Files: MRD .h5, raw files of scanners, sequence descriptions."""
