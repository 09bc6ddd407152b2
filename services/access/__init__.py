"""Who may use the service, and who did what: API keys, their scopes, and the audit."""
