"""Trackers of others: they get the committed metrics of a run."""
