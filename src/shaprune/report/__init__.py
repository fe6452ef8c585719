"""Reports: what was measured, drawn, in one HTML file that needs nothing else."""
