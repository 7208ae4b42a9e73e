"""What comes from devices: checked, stored once, acknowledged."""
