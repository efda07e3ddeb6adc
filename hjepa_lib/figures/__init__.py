"""What a reader sees: figures, film strips and GIFs, tables and the HTML report."""
