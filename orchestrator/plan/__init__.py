"""What is to be done: tasks, their identity, the graph, plugins by name."""
