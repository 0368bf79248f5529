"""What tests and benchmarks share: services, programs, clients, ports and waiting."""

from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
