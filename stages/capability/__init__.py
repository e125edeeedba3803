"""Capability data: training splits of benchmarks, and the suite to evaluate with."""
