"""Players as data: what can leave a network, what leaves with it, and what it costs. No torch."""
