"""The public verbs: measure sensitivity, score, plan, prune, search, compress."""
