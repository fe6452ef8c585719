"""Evidence: data sets, reference networks, and what benchmarks measure them with."""
