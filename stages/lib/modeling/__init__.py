"""The Moxin decoder: own code, weights and logits interchangeable with transformers' MistralForCausalLM."""
