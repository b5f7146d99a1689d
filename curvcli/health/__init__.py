"""Rules, thresholds and baselines behind `curvcli check`."""
