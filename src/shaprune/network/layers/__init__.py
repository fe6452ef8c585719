"""What layers are: their kinds, what they are given, what they cost, and least squares for their weights."""
