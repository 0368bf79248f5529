"""From an accepted message to the bytes on every subscriber's socket."""
