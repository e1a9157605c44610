"""The front door: what people import."""
