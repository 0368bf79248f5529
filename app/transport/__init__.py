"""Detached connections; nothing here knows what a message means."""
