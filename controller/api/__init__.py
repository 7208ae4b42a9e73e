"""The operator's REST API and the device-facing listener."""
