"""What the service costs, measured side by side with its peers; `python -m benchmarks`."""
