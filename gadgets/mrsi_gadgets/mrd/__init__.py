"""What MRD data mean: header and profile to a protocol, roles, readouts to k-t data, the check of a file."""
