"""Settings: the configuration file, environment variables, and where each value comes from."""
