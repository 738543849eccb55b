"""The command line ``alflb``."""
