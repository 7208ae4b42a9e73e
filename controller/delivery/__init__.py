"""What leaves for devices: decided from the database, signed, kept on the broker through one connection."""
