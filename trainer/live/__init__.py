"""What a run does now, from a few small objects of its store. `make watch` and `make runs` show it.

It only reads, and little at a time, however long the run is. All that it reads may be missing, damaged, or anybody's.
"""
