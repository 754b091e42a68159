"""What a network costs: MACs, latency, memory; one record, one report."""
