"""Options of the commands, each declared once, and what their texts mean. No torch."""
