"""Write a network for a runtime, and prove that it still answers alike."""
