"""Results as DICOM: classic MR images, parametric maps, MR spectroscopy, and their way into an archive."""
