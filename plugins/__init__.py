"""Everything that knows a platform, an engine or a business skill."""
