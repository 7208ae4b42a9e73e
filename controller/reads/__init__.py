"""Answers: what the API tells about the fleet, read from one state of the database. Nothing here changes anything."""
