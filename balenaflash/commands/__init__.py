"""The actions of the commands, callable without a terminal; one file for each command."""
