"""Generation: a request in, events out."""
