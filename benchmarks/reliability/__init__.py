"""Faults on purpose: kills, power losses, full disks, damaged and hostile files, and what the product does then."""
