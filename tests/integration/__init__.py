"""The complete service under test: gunicorn, its workers, Valkey, and real clients."""
