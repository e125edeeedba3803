"""What both planes share: declarations of stages, artifacts, graph, keys, store, ledger, runtime. Only pydantic and
boto3.
"""
