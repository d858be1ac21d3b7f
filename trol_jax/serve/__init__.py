"""Answers over the network: an HTTP API and a web page."""
