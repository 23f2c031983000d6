"""Take frames from folders, videos, cameras and triggers."""
