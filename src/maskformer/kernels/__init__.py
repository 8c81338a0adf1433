"""Accelerated operations, each tested against a plain formulation of the same."""
