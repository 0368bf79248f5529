"""`make reload`: new code and settings for a service that runs."""
