"""Alerts, dashboard and health check, with the real programs where there are any."""
