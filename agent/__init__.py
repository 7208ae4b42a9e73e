"""The device daemon `fleet-agent`: verifies, installs, swaps, runs and reports models."""
