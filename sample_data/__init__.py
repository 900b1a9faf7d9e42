"""The made-up Decathlon of the demo and the tests."""
