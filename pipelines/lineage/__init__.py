"""Where a file came from: digests, a manifest beside every output, and the walk from a checkpoint back to its rows."""
