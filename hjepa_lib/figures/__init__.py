"""What a reader sees of arrays: figures and GIFs in one look."""
