"""The command line: the only package that asks, prints or exits."""
