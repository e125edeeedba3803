"""Tasks in lm-evaluation-harness's form that it lacks: one YAML file each, and what their files call."""
