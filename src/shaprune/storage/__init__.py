"""Files written beside, then renamed, and the head of every JSON document."""
