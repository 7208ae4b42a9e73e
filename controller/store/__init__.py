"""The service's durable state: tables, views, sessions, files on disk.

Owns everything that must survive a restart. One process writes; it decides nothing.
"""
