"""Where processes run: the supervisor, local processes, the coordination service, this machine."""
