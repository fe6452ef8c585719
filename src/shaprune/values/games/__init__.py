"""Games: what a coalition is worth, and wrappers that each add one behaviour."""
