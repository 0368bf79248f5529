"""Writes what is made of the tables in app/protocol/schema: `make protocol`."""
