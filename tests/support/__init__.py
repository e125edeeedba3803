"""What several tests share: builders of inputs, stand-ins for engines and servers, limits. Tests import from here
alone, never from a test.
"""
