"""Open sessions on their way from one worker to another (docs/design/handoff.md)."""
