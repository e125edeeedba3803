"""Vision-language models: towers, fused model, images, conversations, benchmarks. Shared by the stages of the VLM
branch.
"""
