"""Models that torch.fx cannot follow: calls of modules are recorded and answered from the record."""
