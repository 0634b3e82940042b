"""What is made of results: plots."""
