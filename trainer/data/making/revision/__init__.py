"""Which content a source has: a manifest of its files, their hashes, and the commit of a dataset of the hub."""
