"""The full-step model: trained here and cached, or loaded from whom it may come."""
