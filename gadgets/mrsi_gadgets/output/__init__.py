"""What leaves the chain: console images, NIfTI, pictures and the result folder."""
