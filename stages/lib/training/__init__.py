"""Training of a model that is spread over processes, for every stage that trains in the pipeline's own code.

`trainer` the loop, `lr_scheduler`, `optimizer`, `checkpointer`, `parallel_dims` (who the processes are), `evaluation`
(held-out loss), `metrics`, `gradient_threads`, `validation`; `backends/`: PyTorch's FSDP2 and Colossal-AI.
"""
