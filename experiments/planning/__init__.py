"""From a spec to the graph of tasks."""
