"""Run the inspection station: frames from a source, verdicts, a journal, and sinks that deliver."""
