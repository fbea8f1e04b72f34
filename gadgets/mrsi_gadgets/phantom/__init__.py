"""The numerical brain: anatomy, molecules, physics of one acquisition, truth and scores."""
