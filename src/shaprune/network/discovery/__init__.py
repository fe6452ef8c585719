"""Find the players of a network, and prove that masking is removing."""
