"""Sessions of clients: identity, subscriptions, requests and limits."""
