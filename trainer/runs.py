"""`make runs STORE=…`: every run of a store, the newest first."""
