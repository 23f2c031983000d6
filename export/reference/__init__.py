"""Build reference networks from the original libraries, which share no code with the exported graph.

An export is verified against the answers of its reference network.
"""
