"""Answers for the Decathlon's server, and their score."""
