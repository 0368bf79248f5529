"""What lives between processes; no state of a single client."""
