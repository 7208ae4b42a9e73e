"""What an operator or a device may ask the service to change: one transaction each, audited, or refused."""
