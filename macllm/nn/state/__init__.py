"""What a model remembers of a batch of sequences: a cache of one state a layer."""
