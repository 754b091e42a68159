"""Latency, memory and energy of networks, on this machine or over ssh. Public names are in `profiles`.

Modules that run on another machine import no torch: benchmark, warmup, cases, gpu, energy, memory, machine, scenarios,
loadgen and remote_worker.
"""
