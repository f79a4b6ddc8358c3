"""The observer: the process beside a training that measures, judges and tells, so that the training need not."""
