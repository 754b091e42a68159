"""What runs on another machine: files that need Python, NumPy and a runtime there, and nothing else of ours."""
