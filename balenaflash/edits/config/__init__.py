"""Changes of config.json, with nothing else in the file changed."""
