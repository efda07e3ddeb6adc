"""Looking inside one roll-out (notebook 06); needs the extra `lab`."""
