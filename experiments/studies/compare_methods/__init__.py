"""Every hypergradient method on the same three problems: error against the
exact gradient, certificate, cost, time, memory."""
