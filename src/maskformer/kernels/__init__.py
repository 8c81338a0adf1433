"""Accelerated operations on the CPU, each tested against a plain formulation of the same."""
