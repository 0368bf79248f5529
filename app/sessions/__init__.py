"""Clients: who they are, what they subscribed to, what they may ask for."""
