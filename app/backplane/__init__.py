"""The streams in Valkey: bus, history and order of every message."""
