"""What the fine-tuning stages share: settings, loading and saving, labels, the trainer's callbacks, measures, sampling,
card.
"""
