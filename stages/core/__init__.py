"""What both planes share: contracts, artifacts, graph, keys, store, ledger, runtime. Only pydantic and boto3."""
