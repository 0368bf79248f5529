"""The protocol as tables: what clients may send, what the service sends, and every HTTP call.

Imports go one way: `kinds`, `limits`, `payloads`, `bodies`, then `actions`, `events` and `calls`, then the
documents that are made of them: `json_schema`, `asyncapi`, `openapi`. The error codes and close codes are
rows of `app/errors.py`. `make protocol` writes the types of the clients and the tables of the
pages; a new action, event or call is one row here, and its handler.
"""
