"""What was verified on which GPU, and the check that finds out."""
