"""Alerts: what a person should hear of a run while it runs, and how it reaches them."""
