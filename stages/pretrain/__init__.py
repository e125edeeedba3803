"""One phase of pre-training."""
