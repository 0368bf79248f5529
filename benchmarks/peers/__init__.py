"""Servers that the service is measured against. Each runs as a process of its own."""
