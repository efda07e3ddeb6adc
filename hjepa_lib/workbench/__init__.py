"""Many runs: experiments, their tables and the benchmark."""
