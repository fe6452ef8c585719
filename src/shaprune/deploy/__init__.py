"""The pruned network: saved, loaded, exported, and measured."""
