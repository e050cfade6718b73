"""Parts of the line mode: input, output and signals."""
