"""Trackers of others, which get the committed metrics of a run: `make track RUN= TO=`.

`TRACKERS` in `tracker.py` is the one place to add another. No torch here: a tracker is fed on whatever machine reads
the store, not by the trainer.
"""
