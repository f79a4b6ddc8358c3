"""The observer: a process that measures a run, says what is wrong with it, and keeps its report up to date.

It only watches. Training, checkpoints and exit codes do not know whether it lives. `__main__` is the story: sample,
judge, tell, hand over. What is measured is `trainer.telemetry`'s, and so is what counts as wrong (`health.py`).
"""
