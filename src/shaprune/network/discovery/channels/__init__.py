"""Which channels can only leave together: followed by NaN marks through the network."""
