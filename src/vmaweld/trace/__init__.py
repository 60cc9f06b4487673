"""Recording a command; reading perf and strace; the trace store."""
