"""Find, open, build and prove the engines that can run a graph on this machine."""
