"""How a case is checked, timed and told: what all benchmarks share."""
