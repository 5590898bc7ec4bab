"""Weight file formats, each imported only when a file of that format is met."""
