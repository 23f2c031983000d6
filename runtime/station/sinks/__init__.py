"""Deliver the records of the journal to files, brokers, controllers and servers."""
