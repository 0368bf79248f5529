"""Heavier faults: thousands of connections and minutes of abuse."""
