"""One part of the service with a real Valkey, a real gunicorn or processes of its own."""
