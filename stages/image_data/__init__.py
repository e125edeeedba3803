"""Visual instruction data, and the seven visual benchmarks."""
