"""What each command does, callable without a terminal; one file a command."""
